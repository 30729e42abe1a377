"""Other runtimes and precisions: how much faster, how far distances drift, and how many of 10,000 verdicts change.

    python -m benchmarks.runtimes CHECKPOINT FOLDER

FOLDER is a tree of labelled images, one folder an identity. Half of the 10,000 pairs are genuine, as many of the
impostors as can be from one group: the hard ones. `int8` is ONNX Runtime's static quantisation, tuned on 200 images of
the folder; it is measured here to know what it would do, and can't be asked of the service.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.arrays import ImageU8
from app.checkpoint.matching import decide
from app.checkpoint.runtimes import OnnxRuntime, Session, open_session
from app.checkpoint.store import load_checkpoint
from training.data.dataset import Dataset, read_dataset

PAIRS = 10_000
BATCH = 64
TUNED_ON = 200
TURNS, SECONDS = 5, 1.0
Pairs = NDArray[np.int64]


def draw(dataset: Dataset, rng: np.random.Generator) -> Pairs:
    """Pairs of images `[10,000, 2]`: genuine ones first, then impostors."""
    identity_N, group_N = dataset.identity_N, dataset.group_N
    genuine: list[tuple[int, int]] = []
    impostors: list[tuple[int, int]] = []
    while min(len(genuine), len(impostors)) < PAIRS // 2:
        a = int(rng.integers(len(dataset)))
        same = np.flatnonzero(identity_N == identity_N[a])
        near = np.flatnonzero((group_N == group_N[a]) & (identity_N != identity_N[a]))
        others = near if len(near) else np.flatnonzero(identity_N != identity_N[a])
        if len(same) > 1:
            genuine.append((a, int(rng.choice(same[same != a]))))
        impostors.append((a, int(rng.choice(others))))
    return np.array(genuine[: PAIRS // 2] + impostors[: PAIRS // 2])


class Tuning:
    """Images, one at a time, as ONNX Runtime's quantisation wants them."""

    def __init__(self, images_NHWC: ImageU8, name: str) -> None:
        self._feeds: Iterator[dict[str, ImageU8]] = iter([{name: one[None]} for one in images_NHWC])

    def get_next(self) -> dict[str, ImageU8] | None:
        return next(self._feeds, None)


def int8(graph: Path, images_NHWC: ImageU8, directory: Path) -> Session:
    """The graph with weights and activations of 8 bits."""
    from onnxruntime.quantization import QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, quantised = directory / "prepared.onnx", directory / "int8.onnx"
    quant_pre_process(graph, prepared, skip_symbolic_shape=True)
    name = OnnxRuntime(graph, 1)._session.get_inputs()[0].name
    quantize_static(prepared, quantised, Tuning(images_NHWC, name), quant_format=QuantFormat.QDQ, per_channel=True)
    return OnnxRuntime(quantised, 1)


def embed(session: Session, images_NHWC: ImageU8) -> NDArray[np.float64]:
    parts = [session.run(images_NHWC[at : at + BATCH]) for at in range(0, len(images_NHWC), BATCH)]
    return np.concatenate(parts).astype(np.float64)


def pairs_a_second(session: Session, images_NHWC: ImageU8) -> float:
    """Two images at a time, on one core."""
    done, started = 0, time.perf_counter()
    while time.perf_counter() < started + SECONDS:
        session.run(images_NHWC[done % 8 : done % 8 + 2])
        done += 1
    return done / (time.perf_counter() - started)


def measure(name: str, folder: Path) -> None:
    """Run it and print the table."""
    opened = load_checkpoint(name)
    dataset = read_dataset(folder, opened.description.preprocessing, progress=False)
    rng = np.random.default_rng(0)
    pairs = draw(dataset, rng)
    used, at = np.unique(pairs, return_inverse=True)
    images_NHWC = np.asarray(dataset.images_NHWC[used])
    at = at.reshape(pairs.shape)
    with tempfile.TemporaryDirectory(prefix="diptych-bench-") as directory:
        sessions: dict[str, Session] = {
            "ONNX Runtime": open_session(opened.onnx),
            "OpenVINO": open_session(opened.onnx, "openvino"),
            "OpenVINO, bfloat16": open_session(opened.onnx, "openvino-bf16"),
            "ONNX Runtime, int8": int8(opened.onnx, rng.permutation(images_NHWC)[:TUNED_ON], Path(directory)),
        }
        distances = {}
        for who, session in sessions.items():
            embeddings_ND = embed(session, images_NHWC)
            distances[who] = np.linalg.norm(embeddings_ND[at[:, 0]] - embeddings_ND[at[:, 1]], axis=1)
        rates: dict[str, list[float]] = {who: [] for who in sessions}
        for _ in range(TURNS):
            for who, session in sessions.items():
                rates[who].append(pairs_a_second(session, images_NHWC))
    reference, threshold = distances["ONNX Runtime"], opened.description.threshold
    about = opened.description
    print(f"\n`{about.name}`, {about.parameters:,} weights, {len(used):,} images of {folder.name}\n")
    print("| runtime | speed | drift: mean, largest | of 10,000 verdicts change | FMR, FNMR of these |")
    print("| --- | --- | --- | --- | --- |")
    before = np.array([decide(one, threshold) for one in reference])
    for who, found in distances.items():
        ratio = statistics.median(a / b for a, b in zip(rates[who], rates["ONNX Runtime"], strict=True))
        drift, now = np.abs(found - reference), np.array([decide(one, threshold) for one in found])
        fnmr, fmr = np.mean(now[: PAIRS // 2] != "similar"), np.mean(now[PAIRS // 2 :] == "similar")
        print(
            f"| {who} | {ratio:.2f} | {drift.mean():.1e}, {drift.max():.1e} | {np.count_nonzero(now != before)} "
            f"| {fmr:.2%}, {fnmr:.2%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    measure(given.checkpoint, given.folder)


if __name__ == "__main__":
    main()
