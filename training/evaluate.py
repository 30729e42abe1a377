"""A checkpoint on other images: embed them, count its errors, calibrate it anew. Needs no PyTorch."""

import csv
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from app.arrays import EmbeddingsF32, ImageU8, Ints
from app.checkpoint.encoder import Encoder
from app.checkpoint.format import CALIBRATION, ONNX, WEIGHTS, Checkpoint, RuntimeName, printable
from app.checkpoint.matching import distances
from app.checkpoint.store import seal_checkpoint
from app.errors import UsageError
from training.calibration import calibrate as verdicts
from training.calibration import rates
from training.calibration.calibrate import Sample
from training.calibration.pairs import PairCounts, count_listed_pairs, count_pairs
from training.calibration.points import Unit
from training.data.dataset import (
    Dataset,
    decode_files,
    image_files,
    new_directory,
    read_dataset,
    split_identities,
)

BATCH = 32


@dataclass(frozen=True)
class Evaluation:
    """Figures on images of one folder or list, and how many identities or pairs were passed over."""

    metrics: dict[str, Any]
    note: str | None = None


def open_encoder(checkpoint: Checkpoint, runtime: RuntimeName = "onnxruntime") -> Encoder:
    """The encoder with all cores for one batch. Raises `UsageError` for a runtime that can't be had here."""
    return Encoder(checkpoint, os.cpu_count() or 1, runtime)


def embed_images(
    encoder: Encoder, images_NHWC: ImageU8, of: Ints | None = None, *, progress: bool = True
) -> EmbeddingsF32:
    """Unit embeddings `[N, D]` of all decoded images, or of those that `of` names."""
    index = np.arange(len(images_NHWC)) if of is None else of
    parts = [np.empty((0, encoder.embedding_dim), dtype=np.float32)]
    for start in tqdm(range(0, len(index), BATCH), desc="embedding", unit="batch", disable=not progress):
        parts.append(encoder.embed(images_NHWC[index[start : start + BATCH]]))
    return np.concatenate(parts)


def embed_files(encoder: Encoder, files: Sequence[Path], *, progress: bool = True) -> tuple[list[Path], EmbeddingsF32]:
    """Those of the files that are images, in order, and their embeddings `[N, D]`."""
    paths: list[Path] = []
    batch: list[ImageU8] = []
    parts = [np.empty((0, encoder.embedding_dim), dtype=np.float32)]
    for path, decoded in decode_files(files, encoder.preprocessing, progress=progress):
        if decoded is not None:
            paths.append(path)
            batch.append(decoded[0])
        if len(batch) == BATCH:
            parts.append(encoder.embed(np.stack(batch)))
            batch.clear()
    if batch:
        parts.append(encoder.embed(np.stack(batch)))
    return paths, np.concatenate(parts)


def embed_folder(encoder: Encoder, root: Path, *, progress: bool = True) -> tuple[list[str], EmbeddingsF32, int]:
    """Relative paths and embeddings of every image below `root`, and how many files were no image."""
    files = image_files(root, hidden=True)
    paths, embeddings_ND = embed_files(encoder, files, progress=progress)
    return [path.relative_to(root).as_posix() for path in paths], embeddings_ND, len(files) - len(paths)


def evaluate_folder(
    checkpoint: Checkpoint, root: Path, *, runtime: RuntimeName = "onnxruntime", progress: bool = True
) -> Evaluation:
    """Error rates at the checkpoint's threshold over all pairs of a folder tree.

    On the very folder that the checkpoint was trained on, only its test identities count.
    """
    encoder = open_encoder(checkpoint, runtime)
    dataset = read_dataset(root, encoder.preprocessing, progress=progress)
    note = None
    chosen = np.arange(len(dataset))
    if dataset.fingerprint == checkpoint.description.dataset.fingerprint:
        chosen = dataset.images_of(_splits_of_training(checkpoint, dataset)["test"])
        note = "This is the training folder: only the test identities, which training never saw, are counted."
    elif dataset.fingerprint == checkpoint.description.calibration.fingerprint:
        note = "The threshold was chosen on this folder, so these rates are not of unseen images."
    counts = _count(encoder, dataset, chosen, progress=progress)
    metrics = rates.metrics(counts, checkpoint.description.threshold)
    metrics = {**metrics, "images": len(chosen), "skipped": dataset.skipped}
    if metrics["genuine_pairs"] + metrics["impostor_pairs"] == 0:
        raise UsageError(f"{root} holds a single image, so there is no pair to judge. Give a folder per identity.")
    return Evaluation(metrics, note)


def evaluate_pairs(
    checkpoint: Checkpoint,
    listing: Path,
    root: Path,
    *,
    runtime: RuntimeName = "onnxruntime",
    progress: bool = True,
) -> Evaluation:
    """Error rates at the checkpoint's threshold over the pairs of a CSV: `image_a,image_b,same`.

    Paths are relative to `root`. Pairs with an image that can't be decoded are passed over and counted.
    """
    rows = _read_pairs(listing)
    encoder = open_encoder(checkpoint, runtime)
    files = sorted({root / name for a, b, _ in rows for name in (a, b)})
    embeddings = dict(zip(*embed_files(encoder, files, progress=progress), strict=True))
    usable = [(root / a, root / b, same) for a, b, same in rows if {root / a, root / b} <= embeddings.keys()]
    if not usable:
        raise UsageError(
            f"No pair of {listing} has two readable images below {root}; check --root (first: {rows[0][0]!r})."
        )
    apart = np.array([distances(embeddings[a], embeddings[b][None, :])[0] for a, b, _ in usable])
    counts = count_listed_pairs(apart, np.array([same for _, _, same in usable]))
    metrics = rates.metrics(counts, checkpoint.description.threshold)
    return Evaluation(
        {**metrics, "images": len(embeddings), "skipped": len(files) - len(embeddings)},
        None if len(usable) == len(rows) else f"{len(rows) - len(usable)} pairs were passed over: unreadable images.",
    )


def _read_pairs(listing: Path) -> list[tuple[str, str, bool]]:
    wanted = "columns image_a,image_b,same, where same is 1 or 0"
    try:
        with listing.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"image_a", "image_b", "same"} <= set(reader.fieldnames or []):
                raise UsageError(f"{listing} lacks a column: it needs {wanted}.")
            rows = []
            for row in reader:
                same = (row["same"] or "").strip()
                if same not in ("0", "1") or not row["image_a"] or not row["image_b"]:
                    raise UsageError(f"{listing}, line {reader.line_num}: it needs {wanted}.")
                rows.append((row["image_a"], row["image_b"], same == "1"))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise UsageError(f"{listing} can't be read as CSV ({problem}).") from None
    if not rows:
        raise UsageError(f"{listing} lists no pairs: it needs {wanted}, and rows.")
    return rows


def calibrate(
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
    """The same encoder with threshold and error rates measured anew on the folder tree `root`.

    Half of its identities, or of its groups, choose the threshold, the other half measure it. On the training folder
    only the identities that training never saw take part, as training split them. Raises `UsageError` with fewer than
    four identities or groups.
    """
    new_directory(output, root)
    old = checkpoint.description
    encoder = open_encoder(checkpoint, runtime)
    dataset = read_dataset(root, encoder.preprocessing, progress=progress)
    if dataset.fingerprint == old.dataset.fingerprint:
        trained = _splits_of_training(checkpoint, dataset)
        choosing, measuring = trained["calibration"], trained["test"]
        split_by = old.training["split_by"]
    else:
        choosing, measuring = _halves(dataset, root, split_by, seed)
    samples = []
    for identities in (choosing, measuring):
        of = dataset.images_of(identities)
        embeddings_ND = embed_images(encoder, dataset.images_NHWC, of, progress=progress)
        samples.append(Sample(embeddings_ND, dataset.identity_N[of], dataset.group_N[of]))
    found = verdicts.calibrate(
        *samples, margin=old.margin, target_fmr=target_fmr, unit=split_by, fingerprint=dataset.fingerprint
    )

    for name in (ONNX, WEIGHTS):
        shutil.copyfile(checkpoint.directory / name, output / name)
    np.savez_compressed(output / CALIBRATION, **found.curves)  # type: ignore[arg-type]
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    description = old.model_copy(update={"name": printable(output.name), "created_at": created_at, **found.fields})
    return seal_checkpoint(output, description)


def _halves(dataset: Dataset, root: Path, split_by: Unit, seed: int) -> tuple[Ints, Ints]:
    names = dataset.groups if split_by == "group" else dataset.identities
    order = np.random.default_rng(seed).permutation(len(names))
    if len(order) < 4:
        raise UsageError(
            f"{root} holds {len(order)} {'groups' if split_by == 'group' else 'identities'}; calibration needs four at "
            f"least, each a folder{' of identities' if split_by == 'group' else ''}."
        )
    unit_of_identity = dataset.group_of_identity if split_by == "group" else np.arange(len(names))
    first, second = (np.flatnonzero(np.isin(unit_of_identity, order[part::2])) for part in (0, 1))
    return first, second


def _count(encoder: Encoder, dataset: Dataset, of: Ints, *, progress: bool) -> PairCounts:
    embeddings_ND = embed_images(encoder, dataset.images_NHWC, of, progress=progress)
    return count_pairs(embeddings_ND, dataset.identity_N[of], dataset.group_N[of])


def _splits_of_training(checkpoint: Checkpoint, dataset: Dataset) -> dict[Any, Ints]:
    recipe = checkpoint.description.training
    return dict(
        split_identities(
            dataset,
            calibration=recipe["calibration_share"],
            test=recipe["test_share"],
            by=recipe["split_by"],
            seed=checkpoint.description.dataset.split_seed,
        )
    )
