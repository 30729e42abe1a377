"""The same encoder with thresholds and error rates measured on other images. Needs no PyTorch."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from app.arrays import Ints
from app.checkpoint.format import CALIBRATION, ONNX, WEIGHTS, Checkpoint, RuntimeName, printable
from app.checkpoint.store import seal_checkpoint
from app.errors import UsageError
from training.calibration.calibrate import Sample, calibrate
from training.calibration.points import Unit
from training.data.dataset import Dataset, new_directory, read_dataset
from training.embed import embed_images, open_encoder
from training.evaluate import splits_of_training

# Units that the two halves need at least.
MIN_UNITS = 4


def recalibrate(
    checkpoint: Checkpoint,
    root: Path,
    output: Path,
    *,
    target_fmr: float,
    seed: int,
    split_by: Unit = "identity",
    runtime: RuntimeName = "onnxruntime",
    progress: bool = True,
) -> Checkpoint:
    """Write a checkpoint with the same encoder and with thresholds and error rates measured on the folder tree `root`.

    Half of its identities, or of its groups, choose the thresholds; the other half measure the error rates. On the
    folder that the checkpoint was trained on, only the identities that training never saw take part, split as in
    training. Raises `UsageError` with fewer than four identities or groups, and for an output that can't be used.
    """
    new_directory(output, root)
    old = checkpoint.description
    encoder = open_encoder(checkpoint, runtime)
    dataset = read_dataset(root, encoder.preprocessing, progress=progress)
    if dataset.fingerprint == old.dataset.fingerprint:
        trained = splits_of_training(checkpoint, dataset)
        halves = trained["calibration"], trained["test"]
        split_by = old.training["split_by"]
    else:
        halves = _split_in_halves(dataset, split_by, seed)
    samples = []
    for identities in halves:
        index_N = dataset.images_of(identities)
        embeddings_ND = embed_images(encoder, dataset.images_NHWC, index_N, progress=progress)
        samples.append(Sample(embeddings_ND, dataset.identity_N[index_N], dataset.group_N[index_N]))
    calibration = calibrate(
        *samples, margin=old.margin, target_fmr=target_fmr, unit=split_by, fingerprint=dataset.fingerprint
    )

    for name in (ONNX, WEIGHTS):
        shutil.copyfile(checkpoint.directory / name, output / name)
    np.savez_compressed(output / CALIBRATION, **calibration.curves)  # type: ignore[arg-type]
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    description = old.model_copy(
        update={"name": printable(output.name), "created_at": created_at, **calibration.fields}
    )
    return seal_checkpoint(output, description)


def _split_in_halves(dataset: Dataset, split_by: Unit, seed: int) -> tuple[Ints, Ints]:
    """Two halves of the identities, drawn at random; whole groups where `split_by` says so."""
    units = dataset.groups if split_by == "group" else dataset.identities
    order = np.random.default_rng(seed).permutation(len(units))
    if len(order) < MIN_UNITS:
        dataset.refuse_flat_folder(MIN_UNITS)
        kind = "groups (folders of identities)" if split_by == "group" else "identities (folders of images)"
        raise UsageError(f"{dataset.root} holds {len(order)} {kind}. Calibration needs at least {MIN_UNITS}.")
    unit_of_identity = dataset.group_of_identity if split_by == "group" else np.arange(len(units))
    first, second = (np.flatnonzero(np.isin(unit_of_identity, order[part::2])) for part in (0, 1))
    return first, second
