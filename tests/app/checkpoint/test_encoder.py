"""The encoder: what it embeds, and what it keeps to itself."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app.checkpoint.encoder import Encoder
from app.checkpoint.store import load_checkpoint
from app.image.policy import decode
from tests.files import EVALUATION, GOLDEN


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(load_checkpoint(GOLDEN))


def test_embeddings_are_unit_vectors_of_the_promised_size(encoder: Encoder) -> None:
    """For any batch size, the empty one included."""
    paths = sorted(EVALUATION.rglob("*.png"))[:9]
    images = np.stack([decode(path.read_bytes(), encoder.preprocessing) for path in paths])
    for count in (0, 1, 2, 9):
        embeddings = encoder.embed(images[:count])
        assert embeddings.shape == (count, encoder.embedding_dim) and embeddings.dtype == np.float32
        assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_an_image_embeds_alike_whatever_batch_it_comes_in(encoder: Encoder) -> None:
    """So that enrolling many and verifying one are the same thing."""
    paths = sorted(EVALUATION.rglob("*.png"))[:8]
    images = np.stack([decode(path.read_bytes(), encoder.preprocessing) for path in paths])
    together = encoder.embed(images)
    for index in range(len(images)):
        assert np.linalg.norm(encoder.embed(images[index : index + 1])[0] - together[index]) < 1e-5


def test_the_runtime_reports_to_nobody(tmp_path: Path) -> None:
    """ONNX Runtime's telemetry keeps a store in the user's cache when it is on; with ours there is none."""
    script = f"""
from app.checkpoint.store import load_checkpoint
from app.checkpoint.encoder import Encoder
Encoder(load_checkpoint({str(GOLDEN)!r})).warm_up()
"""
    # CI machines are spared by the telemetry itself, which would make this test idle there.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment = {name: value for name, value in environment.items() if not name.startswith("XDG_")}
    environment["HOME"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=60)
    assert list(tmp_path.rglob("*onnxruntime*")) == []
