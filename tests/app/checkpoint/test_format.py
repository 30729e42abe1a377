"""The checkpoint format: what is refused, by name, and what the ids hash."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from app.checkpoint.encoder import Encoder
from app.checkpoint.format import HASHED, Checkpoint
from app.checkpoint.ids import compute_calibration_id, compute_model_id
from app.checkpoint.store import load_checkpoint
from app.errors import CheckpointError
from app.image.policy import Preprocessing, decode
from tests.files import GOLDEN, drawings


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "checkpoint"))


def rewrite(directory: Path, **changes: object) -> None:
    path = directory / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_golden_checkpoint_of_version_1_still_opens_and_embeds_as_it_did() -> None:
    """Whoever changes the format or the decoding policy meets this test first."""
    checkpoint = load_checkpoint(GOLDEN)
    encoder = Encoder(checkpoint)
    pixels = decode(drawings("Angelic/character01")[0].read_bytes(), encoder.preprocessing)
    embedding = encoder.embed(pixels[None])[0]
    recorded = np.array(json.loads((GOLDEN.parent / "checkpoint_format_1_embedding.json").read_text()))
    assert np.linalg.norm(embedding - recorded) < 1e-4
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)


def test_the_model_id_is_the_hash_of_weights_architecture_and_preprocessing() -> None:
    """It can be computed again from the files, and not from the ONNX bytes."""
    description = load_checkpoint(GOLDEN).description
    weights = load_file(GOLDEN / "encoder.safetensors")
    shuffled = dict(reversed(list(weights.items())))
    same = compute_model_id(shuffled, description.architecture, description.preprocessing)
    assert same == description.model_id
    other = Preprocessing(**{**vars(description.preprocessing), "aspect": "crop"})
    assert compute_model_id(weights, description.architecture, other) != same
    weights["head.bias"] = weights["head.bias"] + np.float32(1e-6)
    assert compute_model_id(weights, description.architecture, description.preprocessing) != same


def test_the_calibration_id_is_the_hash_of_thresholds_and_curves() -> None:
    """Calibrating anew changes it; the model_id stays."""
    checkpoint = load_checkpoint(GOLDEN)
    d = checkpoint.description
    curves = checkpoint.curves()
    assert compute_calibration_id(d.margin, d.threshold, d.operating_points, curves) == d.calibration_id
    assert compute_calibration_id(d.margin, d.threshold + 0.01, d.operating_points, curves) != d.calibration_id


@pytest.mark.parametrize("name", [*HASHED, "checkpoint.json"])
def test_a_missing_file_is_refused_by_name(copied: Path, name: str) -> None:
    """Half a checkpoint is none."""
    (copied / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        load_checkpoint(copied)


@pytest.mark.parametrize("name", HASHED)
def test_an_altered_file_is_refused_by_name(copied: Path, name: str) -> None:
    """One flipped bit is enough."""
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{name} was altered"):
        load_checkpoint(copied)


@pytest.mark.parametrize("change", [{"threshold": 1.9}, {"margin": 0.1}, {"name": "mine"}, {"surprise": 1}])
def test_an_altered_description_is_refused(copied: Path, change: dict[str, object]) -> None:
    """A threshold edited by hand is no calibration."""
    rewrite(copied, **change)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json was altered"):
        load_checkpoint(copied)


def test_a_newer_format_version_is_refused_by_name(copied: Path) -> None:
    """It says what to do about it."""
    rewrite(copied, format_version=2)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json has format version 2.*newer Diptych"):
        load_checkpoint(copied)


def test_a_description_without_hashes_is_refused(copied: Path) -> None:
    """By name too."""
    path = copied / "checkpoint.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"}))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json was altered"):
        load_checkpoint(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"a": 1}', "[" * 100_000])
def test_a_damaged_description_is_refused(copied: Path, text: str) -> None:
    """Whatever it holds."""
    (copied / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged"):
        load_checkpoint(copied)


def test_the_report_may_be_deleted() -> None:
    """The golden checkpoint has none."""
    assert not (GOLDEN / "report").exists()
    assert isinstance(load_checkpoint(GOLDEN), Checkpoint)


@pytest.mark.parametrize("name", ["omniglot", "default"])
def test_bundled_checkpoints_open_by_name_and_take_at_most_8_megabytes(name: str) -> None:
    """They come with the package, wherever one stands."""
    checkpoint = load_checkpoint(name)
    assert sum(file.stat().st_size for file in checkpoint.directory.rglob("*") if file.is_file()) <= 8_000_000
    assert checkpoint.description.threshold_source == "calibration"


def test_an_unknown_checkpoint_is_refused_with_the_names_of_the_bundled() -> None:
    """A typo is told from a missing file."""
    with pytest.raises(CheckpointError, match="default, omniglot"):
        load_checkpoint("omniglott")
