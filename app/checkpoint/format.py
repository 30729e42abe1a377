"""The checkpoint: the one artefact that training writes and the service loads. Format version 1.

    checkpoint.json        what this file describes; sha256 of the others and of itself
    encoder.onnx           uint8 pixels [N, H, W, C] -> unit float32 embeddings [N, D]; only N is dynamic
    encoder.safetensors    the same weights, for fine-tuning and export
    calibration.npz        FMR and FNMR curves over a grid of distances, their intervals, likelihood ratios
    report/                plots and metrics.json; outside the hashes, may be deleted

Nothing in it is pickled, and nothing is loaded before its hash was compared.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.arrays import Array, Floats
from app.checkpoint.matching import OperatingPoint, Threshold
from app.errors import CheckpointError
from app.image.policy import DECODING_POLICY, Preprocessing

FORMAT_VERSION = 1
DESCRIPTION = "checkpoint.json"
ONNX = "encoder.onnx"
WEIGHTS = "encoder.safetensors"
CALIBRATION = "calibration.npz"
HASHED = (ONNX, WEIGHTS, CALIBRATION)
# `default` becomes another one the day that a checkpoint for photographs ships.
BUNDLED = {"omniglot": "omniglot", "default": "omniglot"}


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(Part):
    """What builds the network again: a name that `training.network` knows, and its options."""

    name: str
    options: dict[str, Any]


class Split(Part):
    identities: int
    images: int


class DatasetFacts(Part):
    """What the encoder learned from. `fingerprint` hashes relative paths and bytes of all images."""

    fingerprint: str
    identities: int
    images: int
    skipped: int
    split_seed: int
    splits: dict[Literal["train", "calibration", "test"], Split]


class CalibrationFacts(Part):
    """Which images thresholds and error rates were measured on, and what they gave as a whole.

    `eer` and `same_group_eer` are measured on the identities that `measured_on` names; `note` says why
    a threshold fell back to the margin, if it did. `smallest_fmr` is the smallest false-match rate that the
    calibration identities support. Intervals come from drawing anew `units` identities or groups, as
    `intervals_over` says. `likelihood_ratio` names the fit behind the log-likelihood ratios, which stay within
    `llr_bounds` (natural logarithms); `cllr` is what they cost on the test identities, in bits, and `cllr_min` the
    least that any fit could.
    """

    fingerprint: str
    measured_on: Literal["test", "calibration"]
    identities: int
    images: int
    genuine_pairs: int
    impostor_pairs: int
    eer: float | None
    same_group_eer: float | None
    note: str | None = None
    smallest_fmr: float | None = None
    intervals_over: Literal["identity", "group"] | None = None
    units: int | None = None
    likelihood_ratio: str | None = None
    llr_bounds: tuple[float, float] | None = None
    cllr: float | None = None
    cllr_min: float | None = None


class Runtime(Part):
    """The runtime that serves, its precision, and how far its distances drift from training's."""

    name: str
    version: str
    precision: str
    pairs: int
    max_distance_drift: float


class Description(Part):
    """`checkpoint.json`."""

    format_version: Literal[1] = 1
    name: str
    created_at: str
    model_id: str
    calibration_id: str
    architecture: Architecture
    embedding_dim: int = Field(gt=0)
    preprocessing: Preprocessing
    parameters: int
    margin: float
    target_fmr: float
    threshold: float
    threshold_source: Literal["calibration", "margin"]
    operating_points: list[OperatingPoint]
    calibration: CalibrationFacts
    dataset: DatasetFacts
    training: dict[str, Any]
    runtime: Runtime
    versions: dict[str, str]
    sha256: dict[str, str] = Field(default_factory=dict)

    @property
    def default_threshold(self) -> Threshold:
        """The threshold where a request names none, with its operating point if it was calibrated."""
        points = [p for p in self.operating_points if p.threshold == self.threshold and p.supported]
        points.sort(key=lambda point: point.target_fmr != self.target_fmr)
        return Threshold(self.threshold, self.threshold_source, points[0] if points else None)


class Checkpoint(BaseModel):
    """A checkpoint whose every file was found and verified."""

    model_config = ConfigDict(frozen=True)

    directory: Path
    description: Description

    @property
    def onnx(self) -> Path:
        return self.directory / ONNX

    @property
    def weights(self) -> Path:
        return self.directory / WEIGHTS

    def curves(self) -> dict[str, Floats]:
        """The calibration's curves by name, e.g. `fmr_all_1`, over the grid `distance`."""
        with np.load(self.directory / CALIBRATION, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def find(name_or_directory: str) -> Path:
    """The directory of a checkpoint, given as a path or as the name of a bundled one."""
    if name_or_directory in BUNDLED and not (Path(name_or_directory) / DESCRIPTION).exists():
        return Path(str(files("app") / "checkpoint" / "bundled" / BUNDLED[name_or_directory]))
    return Path(name_or_directory)


def load(name_or_directory: str | Path) -> Checkpoint:
    """Verify and open a checkpoint. Raises `CheckpointError` naming what is missing, altered or too new."""
    directory = find(str(name_or_directory))
    path = directory / DESCRIPTION
    if not directory.is_dir():
        raise CheckpointError(
            f"There is no checkpoint {str(name_or_directory)!r}: give a directory that `diptych train` wrote, "
            f"or a bundled name ({', '.join(sorted(BUNDLED))})."
        )
    try:
        raw = json.loads(path.read_bytes())
        version = raw["format_version"]
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, so {directory} is no checkpoint.") from None
    except OSError as problem:
        raise CheckpointError(f"{path} can't be read: {problem.strerror}.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path} is damaged: it is not the JSON that training wrote.") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}; this version of Diptych reads {FORMAT_VERSION}. "
            "A newer checkpoint needs a newer Diptych."
        )
    try:
        description = Description.model_validate(raw)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path} is altered: {where}: {first['msg']}.") from None
    if description.preprocessing.decoding_policy != DECODING_POLICY:
        raise CheckpointError(
            f"{path} wants decoding policy {description.preprocessing.decoding_policy}; "
            f"this version of Diptych has {DECODING_POLICY}."
        )
    if description.sha256.get(DESCRIPTION) != _sha256_of_description(raw):
        raise CheckpointError(f"{path} is altered: it differs from what was written (sha256).")
    for name in HASHED:
        _verify(directory / name, description.sha256.get(name))
    return Checkpoint(directory=directory, description=description)


def seal(directory: Path, description: Description) -> Checkpoint:
    """Hash the files in `directory` into the description and write it, last and at once.

    The description goes in by a rename, so a directory without a whole `checkpoint.json` was interrupted.
    """
    sha256 = {name: _sha256(directory / name) for name in HASHED}
    document = description.model_copy(update={"sha256": sha256}).model_dump(mode="json")
    document["sha256"][DESCRIPTION] = _sha256_of_description(document)
    temporary = directory / (DESCRIPTION + ".tmp")
    temporary.write_text(json.dumps(document, indent=2) + "\n")
    temporary.replace(directory / DESCRIPTION)
    return load(directory)


def printable(name: str) -> str:
    """A directory's name as JSON can carry it: what is not Unicode in it is replaced."""
    return name.encode("utf-8", "replace").decode()


def model_id(weights: Mapping[str, Array], architecture: Architecture, preprocessing: Preprocessing) -> str:
    """Hash of what decides an embedding: architecture, preprocessing and weights in canonical order."""
    decided_by = {
        "architecture": architecture.model_dump(mode="json"),
        "preprocessing": asdict(preprocessing),
    }
    return _hash(decided_by, weights)


def calibration_id(margin: float, threshold: float, points: list[OperatingPoint], curves: Mapping[str, Array]) -> str:
    """Hash of what decides a verdict, given the distance."""
    decided_by = {
        "margin": margin,
        "threshold": threshold,
        "operating_points": [asdict(point) for point in points],
    }
    return _hash(decided_by, curves)


def _hash(document: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(_canonical(document))
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"))
        digest.update(_canonical({"name": name, "dtype": array.dtype.str, "shape": list(array.shape)}))
        digest.update(array.tobytes())
    return digest.hexdigest()[:32]


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _sha256_of_description(document: Mapping[str, Any]) -> str:
    others = {name: value for name, value in document.get("sha256", {}).items() if name != DESCRIPTION}
    return hashlib.sha256(_canonical({**document, "sha256": others})).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, expected: str | None) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing from the checkpoint.")
    try:
        found = _sha256(path)
    except OSError as problem:
        raise CheckpointError(f"{path} can't be read: {problem.strerror}.") from None
    if found != expected:
        raise CheckpointError(f"{path} is altered: it differs from what was written (sha256).")
