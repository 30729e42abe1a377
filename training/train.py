"""The training run, top to bottom: folder to checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.checkpoint import Architecture, Checkpoint
from app.errors import UsageError
from training import health, lint, report
from training.dataset import Dataset, new_directory, read_dataset, split_identities
from training.export import write_checkpoint
from training.fit import fit
from training.look import settle
from training.margins import search_margin
from training.network import build
from training.pairs import Int
from training.processes import open_fabric
from training.recipe import Recipe
from training.resume import STATE
from training.scalars import scalars


@dataclass(frozen=True)
class Options:
    """What of a run is no part of the recipe: it does not change what is learned."""

    command: str = ""
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
    fabric = open_fabric(recipe)
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
        _open_output(output, resume=options.resume)
    fabric.barrier()

    architecture = architecture_of(dataset, images["train"], recipe)
    network, loaded = build(architecture), None
    if recipe.weights:
        from training.backbones import load_weights  # torchvision takes a second to import

        loaded = load_weights(network, recipe.backbone, recipe.weights)
    warnings = [*health.before(recipe), *(str(finding) for finding in findings)]
    tried: list[dict[str, Any]] = []
    if recipe.margin == "search":
        recipe, tried = search_margin(
            fabric, network, dataset, splits["train"], images["calibration"], recipe, progress=options.progress
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
        "minutes": round(sum(row["seconds"] for row in done.history) / 60, 1),
        "command": options.command,
        "device": str(fabric.device),
        "processes": fabric.world_size,
        "precision_used": str(fabric.strategy.precision.precision),
        "best_epoch": done.best_epoch,
        "weights_loaded": loaded,
        "margins_tried": tried,
        "warnings": [*warnings, *done.warnings],
    }
    sealed = write_checkpoint(output, averaged, dataset, splits, preprocessing, architecture, recipe, training)
    report.write(sealed, dataset, splits, done.history, findings, with_images=options.report_images)
    (output / STATE).unlink(missing_ok=True)
    return sealed


def _open_output(output: Path, *, resume: bool) -> None:
    """The directory of a new run, or of one that is to go on."""
    if not resume:
        if (output / STATE).exists():
            raise UsageError(
                f"{output} holds an unfinished run: go on with it by --resume, or give a new directory, "
                "so that nothing is lost."
            )
        new_directory(output)
    elif not (output / STATE).exists():
        raise UsageError(f"There is nothing to resume: {output / STATE} is missing. Leave --resume away to start anew.")


def architecture_of(dataset: Dataset, train_N: Int, recipe: Recipe) -> Architecture:
    """The network that the recipe asks for, scaled to the pixels of (a sample of) the training images."""
    sample = np.sort(np.random.default_rng(recipe.seed).permutation(train_N)[:2000])
    pixels = dataset.images_NHWC[sample].astype(np.float64) / 255
    mean = [round(float(value), 4) for value in pixels.mean(axis=(0, 1, 2))]
    std = [round(max(float(value), 0.05), 4) for value in pixels.std(axis=(0, 1, 2))]
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
        from training.backbones import IMAGENET_MEAN, IMAGENET_STD

        known = recipe.weights is not None
        options |= {"mean": IMAGENET_MEAN if known else mean, "std": IMAGENET_STD if known else std}
    return Architecture(name=recipe.backbone, options=options)


# Channels of each stage of the compact backbone. Its stem halves the image, and so does each stage: full resolution is
# where the time goes, and the weights are needed later.
STEM, STAGES = 32, (56, 112, 176)


def _wide(channels: int, width: float) -> int:
    """Channels scaled by `width`, in steps of eight, which processors like."""
    return max(8, round(channels * width / 8) * 8)
