"""The checkpoint: the one artefact that training writes and the service loads. Format version 1.

    checkpoint.json        the `Description` below, with the sha256 of the other files and of itself
    encoder.onnx           uint8 pixels [N, H, W, C] -> unit float32 embeddings [N, D]; only N is dynamic
    encoder.safetensors    the same weights, for fine-tuning and export
    calibration.npz        FMR and FNMR curves over a grid of distances, their intervals, likelihood ratios
    report/                plots and metrics.json; not hashed, may be deleted

Nothing in it is pickled, and no file is loaded before its hash is checked.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from app.arrays import Floats
from app.checkpoint.thresholds import OperatingPoint, Threshold
from app.image.policy import Preprocessing

FORMAT_VERSION = 1
DESCRIPTION = "checkpoint.json"
ONNX = "encoder.onnx"
WEIGHTS = "encoder.safetensors"
CALIBRATION = "calibration.npz"
HASHED = (ONNX, WEIGHTS, CALIBRATION)

RuntimeName = Literal["onnxruntime", "openvino", "openvino-bf16"]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(Part):
    """The network: a name that `training.network` knows, and its options."""

    name: str
    options: dict[str, Any]


class Split(Part):
    identities: int
    images: int


class DatasetFacts(Part):
    """The data that the encoder learned from. `fingerprint` hashes the relative paths and bytes of all images."""

    fingerprint: str
    identities: int
    images: int
    skipped: int
    split_seed: int
    splits: dict[Literal["train", "calibration", "test"], Split]


class CalibrationFacts(Part):
    """The images that thresholds and error rates were measured on, and what was measured overall.

    `eer` and `same_group_eer` were measured on the identities that `measured_on` names. `note` says, where it applies,
    why the threshold fell back to the margin. `smallest_fmr` is the smallest false-match rate that the calibration
    identities support. Intervals are bootstrapped over `units` identities or groups, as `intervals_over` says.
    `likelihood_ratio` names the fit of the log-likelihood ratios, which stay within `llr_bounds` (natural logarithms).
    `cllr` is their cost on the test identities, in bits, and `cllr_min` the least cost that any fit could have.
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
    """The runtime of the encoder, its precision, and how far its distances differ from those in training."""

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
        """The threshold of a request that names none, with its operating point if it was calibrated."""
        points = [p for p in self.operating_points if p.threshold == self.threshold and p.supported]
        points.sort(key=lambda point: point.target_fmr != self.target_fmr)
        return Threshold(self.threshold, self.threshold_source, points[0] if points else None)


class Checkpoint(BaseModel):
    """A checkpoint on disk, all of whose files were found and verified."""

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


def printable(name: str) -> str:
    """A directory's name in valid Unicode, as JSON needs it."""
    return name.encode("utf-8", "replace").decode()
