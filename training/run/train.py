"""The training run, top to bottom: folder to checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.arrays import Ints
from app.checkpoint.format import Architecture, Checkpoint
from app.errors import UsageError
from training.data import lint
from training.data.dataset import Dataset, check_new, new_directory, read_dataset, split_identities
from training.data.look import settle
from training.export import write_checkpoint
from training.network.backbones import build
from training.network.weights import check_weights, load_weights, refuse_leak, scaling_of
from training.recipe import Recipe
from training.report import report
from training.run import health
from training.run.fit import fit
from training.run.margins import MARGINS, search_margin
from training.run.processes import open_fabric
from training.run.resume import STATE
from training.run.scalars import scalars


@dataclass(frozen=True)
class Options:
    """What of a run is no part of the recipe: it does not change what is learned."""

    command: str = ""
    device: str = "auto"
    resume: bool = False
    despite_lint: bool = False
    report_images: bool = True
    progress: bool = True


def train(data: Path, output: Path, recipe: Recipe, options: Options) -> Checkpoint | None:
    """Train an encoder on the folder tree `data` and write its checkpoint to `output`.

    Of several processes the first writes and returns the checkpoint, the others return None. Raises
    `UsageError` for data or an output that can't be used, `TrainingFailed` where training diverges or the
    exported encoder is not the trained one.
    """
    _check_output(output, data, resume=options.resume)
    check_weights(recipe)
    fabric = open_fabric(recipe, options.device)
    recipe = settle(data, recipe)
    preprocessing = recipe.preprocessing
    dataset = read_dataset(data, preprocessing, progress=options.progress and fabric.is_global_zero)
    splits = split_identities(
        dataset,
        calibration=recipe.calibration_share,
        test=recipe.test_share,
        by=recipe.split_by,
        seed=recipe.seed,
    )
    images = {name: dataset.images_of(identities) for name, identities in splits.items()}
    findings: list[lint.Finding] = []
    if fabric.is_global_zero:  # before the long part, so that it can't fail after it
        findings = lint.look(dataset, splits, progress=options.progress)
        if not options.despite_lint:
            lint.refuse(findings, data)
            refuse_leak(recipe, dataset)
        if not options.resume:
            new_directory(output, data)
    fabric.barrier()

    architecture = architecture_of(dataset, images["train"], recipe)
    network, loaded = build(architecture), None
    if recipe.weights:
        loaded = load_weights(network, recipe)
    warnings = [*health.before(recipe), *(str(finding) for finding in findings)]
    tried: list[dict[str, Any]] = []
    if recipe.margin == "search":
        recipe, tried = search_margin(
            fabric,
            network,
            dataset,
            splits["train"],
            images["calibration"],
            recipe,
            found=output / MARGINS,
            progress=options.progress,
        )
    with scalars(output / "report" / "tensorboard", enabled=fabric.is_global_zero) as record:
        averaged, done = fit(
            fabric,
            network,
            dataset,
            splits["train"],
            images["calibration"],
            recipe,
            state=output / STATE,
            record=record,
            progress=options.progress,
        )
    if not fabric.is_global_zero:
        return None
    averaged.cpu()
    training = {
        **recipe.model_dump(),
        "minutes": round(sum(row["seconds"] for row in (*tried, *done.history)) / 60, 1),
        "command": _command(options.command, fabric.world_size),
        "device": str(fabric.device),
        "processes": fabric.world_size,
        "precision_used": str(fabric.strategy.precision.precision),
        "kept_epoch": done.best_epoch if recipe.patience else done.epoch,
        "weights_loaded": loaded,
        "margins_tried": tried,
        "warnings": [*warnings, *done.warnings],
    }
    sealed = write_checkpoint(output, averaged, dataset, splits, preprocessing, architecture, recipe, training)
    report.write(sealed, dataset, splits, done.history, findings, with_images=options.report_images)
    for name in (STATE, MARGINS):
        (output / name).unlink(missing_ok=True)
    return sealed


def _check_output(output: Path, data: Path, *, resume: bool) -> None:
    """Mistakes that are better named before the images are read."""
    if resume and not (output / STATE).exists() and not (output / MARGINS).exists():
        raise UsageError(f"There is nothing to resume: {output / STATE} is missing. Leave --resume away to start anew.")
    if not resume and (output / STATE).exists():
        raise UsageError(
            f"{output} holds an unfinished run: go on with it by --resume, or give a new directory, so that nothing is "
            "lost."
        )
    if not resume:
        check_new(output, data)


def _command(words: str, processes: int) -> str:
    return words if processes == 1 else f"torchrun --nproc-per-node {processes} --no-python {words}"


def architecture_of(dataset: Dataset, train_N: Ints, recipe: Recipe) -> Architecture:
    """The network that the recipe asks for, scaled to the pixels of (a sample of) the training images."""
    mean, std = _mean_and_std(dataset, train_N, recipe.seed)
    options: dict[str, Any] = {
        "embedding_dim": recipe.embedding_dim,
        "channels": recipe.channels,
        "dropout": recipe.dropout,
        "pooling": recipe.pooling,
        "bottleneck": recipe.bottleneck,
        "image_size": recipe.image_size,
    }
    if recipe.backbone == "compact":
        widths = [_wide(channels, recipe.width) for channels in STAGES]
        blocks = [[width, 2 if n == 0 else 1] for width in widths for n in range(recipe.depth)]
        options |= {"stem": _wide(STEM, recipe.width), "blocks": blocks, "mean": mean, "std": std}
    else:
        options |= {"mean": mean, "std": std}
    options |= scaling_of(recipe)
    return Architecture(name=recipe.backbone, options=options)


def _mean_and_std(dataset: Dataset, train_N: Ints, seed: int) -> tuple[list[float], list[float]]:
    """Of each channel in [0, 1], over a sample of the training images."""
    sample = np.sort(np.random.default_rng(seed).permutation(train_N)[:2000])
    total, squares, count = np.zeros(dataset.images_NHWC.shape[3]), np.zeros(dataset.images_NHWC.shape[3]), 0
    for start in range(0, len(sample), 64):
        pixels = dataset.images_NHWC[sample[start : start + 64]].astype(np.float64) / 255
        total, squares = total + pixels.sum(axis=(0, 1, 2)), squares + np.square(pixels).sum(axis=(0, 1, 2))
        count += pixels[..., 0].size
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return [round(float(value), 4) for value in mean], [round(max(float(value), 0.05), 4) for value in std]


# Channels of each stage of the compact backbone. Its stem halves the image, and so does each stage: full resolution is
# where the time goes, and the weights are needed later.
STEM, STAGES = 32, (56, 112, 176)


def _wide(channels: int, width: float) -> int:
    """Channels scaled by `width`, in steps of eight, which processors like."""
    return max(8, round(channels * width / 8) * 8)
