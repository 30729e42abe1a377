"""Error rates of a checkpoint on other images: a folder tree, or a list of pairs. Needs no PyTorch."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.arrays import Ints
from app.checkpoint.format import Checkpoint, RuntimeName
from app.checkpoint.matching import distances
from app.errors import UsageError
from training.calibration.pairs import count_listed_pairs, count_pairs
from training.calibration.rates import metrics
from training.data.dataset import Dataset, read_dataset
from training.data.splits import SplitName, split_identities
from training.embed import embed_files, embed_images, open_encoder


@dataclass(frozen=True)
class Evaluation:
    """Figures on the images of a folder or a list, and a note about what they rest on."""

    metrics: dict[str, Any]
    note: str | None = None


def evaluate_folder(
    checkpoint: Checkpoint, root: Path, *, runtime: RuntimeName = "onnxruntime", progress: bool = True
) -> Evaluation:
    """Error rates at the checkpoint's threshold over all pairs of a folder tree.

    On the folder that the checkpoint was trained on, only its test identities count. Raises `UsageError` for a folder
    that can't be read or holds fewer than two images.
    """
    encoder = open_encoder(checkpoint, runtime)
    dataset = read_dataset(root, encoder.preprocessing, progress=progress)
    note = None
    index_N = np.arange(len(dataset))
    if dataset.fingerprint == checkpoint.description.dataset.fingerprint:
        index_N = dataset.images_of(splits_of_training(checkpoint, dataset)["test"])
        note = (
            "This is the folder of the training run: only its test identities, which training never saw, are counted."
        )
    elif dataset.fingerprint == checkpoint.description.calibration.fingerprint:
        note = "The threshold was chosen on this folder, so these are not the error rates on unseen images."
    embeddings_ND = embed_images(encoder, dataset.images_NHWC, index_N, progress=progress)
    counts = count_pairs(embeddings_ND, dataset.identity_N[index_N], dataset.group_N[index_N])
    figures = metrics(counts, checkpoint.description.threshold)
    if figures["genuine_pairs"] + figures["impostor_pairs"] == 0:
        raise UsageError(f"{root} holds a single image, so there is no pair to judge. Give one folder per identity.")
    return Evaluation({**figures, "images": len(index_N), "skipped": dataset.skipped}, note)


def evaluate_pairs(
    checkpoint: Checkpoint,
    listing: Path,
    root: Path,
    *,
    runtime: RuntimeName = "onnxruntime",
    progress: bool = True,
) -> Evaluation:
    """Error rates at the checkpoint's threshold over the pairs of a CSV file: `image_a,image_b,same`.

    Paths are relative to `root`. Pairs with an image that can't be decoded are skipped and counted. Raises
    `UsageError` for a file that is not such a list, or without a single pair of readable images.
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
    distance_I = np.array([distances(embeddings[a], embeddings[b][None, :])[0] for a, b, _ in usable])
    counts = count_listed_pairs(distance_I, np.array([same for _, _, same in usable]))
    figures = metrics(counts, checkpoint.description.threshold)
    skipped = len(rows) - len(usable)
    return Evaluation(
        {**figures, "images": len(embeddings), "skipped": len(files) - len(embeddings)},
        f"{skipped:,} pairs were skipped, because an image could not be read." if skipped else None,
    )


def _read_pairs(listing: Path) -> list[tuple[str, str, bool]]:
    columns = "columns image_a,image_b,same, where same is 1 or 0"
    try:
        with listing.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"image_a", "image_b", "same"} <= set(reader.fieldnames or []):
                raise UsageError(f"{listing} lacks a column. It needs the {columns}.")
            rows = []
            for row in reader:
                same = (row["same"] or "").strip()
                if same not in ("0", "1") or not row["image_a"] or not row["image_b"]:
                    raise UsageError(f"{listing}, line {reader.line_num}, is incomplete. It needs the {columns}.")
                rows.append((row["image_a"], row["image_b"], same == "1"))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise UsageError(f"{listing} can't be read as CSV ({problem}).") from None
    if not rows:
        raise UsageError(f"{listing} lists no pairs. It needs the {columns}, and a row for each pair.")
    return rows


def splits_of_training(checkpoint: Checkpoint, dataset: Dataset) -> dict[SplitName, Ints]:
    """The splits of the checkpoint's training run, given its folder."""
    recipe = checkpoint.description.training
    return split_identities(
        dataset,
        calibration=recipe["calibration_share"],
        test=recipe["test_share"],
        by=recipe["split_by"],
        seed=checkpoint.description.dataset.split_seed,
    )
