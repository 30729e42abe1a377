"""The training run, top to bottom: folder to checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.checkpoint.format import Checkpoint
from app.errors import UsageError
from training.data.dataset import check_new, new_directory, read_dataset
from training.data.lint import Finding, lint_dataset, refuse_findings
from training.data.splits import split_identities
from training.data.survey import complete_recipe
from training.export import write_checkpoint
from training.network.architecture import architecture_of
from training.network.backbones import build
from training.network.weights import check_weights, load_weights, refuse_leak
from training.recipe import Recipe
from training.report.report import write_report
from training.run.experiment import Experiment
from training.run.fit import fit
from training.run.health import warn_of_recipe
from training.run.margins import MARGINS, search_margin
from training.run.processes import open_fabric
from training.run.resume import STATE, Progress
from training.run.scalars import tensorboard_scalars


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that are not in the recipe, since they do not change what is learned."""

    command: str = ""
    device: str = "auto"
    resume: bool = False
    despite_lint: bool = False
    report_images: bool = True
    progress: bool = True


def train_encoder(data: Path, output: Path, recipe: Recipe, options: RunOptions) -> Checkpoint | None:
    """Train an encoder on the folder tree `data` and write its checkpoint to `output`.

    Of several processes the first writes and returns the checkpoint, the others return None. Raises `UsageError` for
    data or an output that can't be used, `TrainingFailed` where training diverges or where the exported encoder
    differs from the trained one.
    """
    _check_output(output, data, resume=options.resume)
    check_weights(recipe)
    fabric = open_fabric(recipe, options.device)
    recipe = complete_recipe(data, recipe)
    dataset = read_dataset(data, recipe.preprocessing, progress=options.progress and fabric.is_global_zero)
    splits = split_identities(
        dataset,
        calibration=recipe.calibration_share,
        test=recipe.test_share,
        by=recipe.split_by,
        seed=recipe.seed,
    )
    findings: list[Finding] = []
    if fabric.is_global_zero:  # first what may be refused, then the long part
        findings = lint_dataset(dataset, splits, progress=options.progress)
        if not options.despite_lint:
            refuse_findings(findings, data)
            refuse_leak(recipe, dataset)
        if not options.resume:
            new_directory(output, data)
    fabric.barrier()

    architecture = architecture_of(dataset, dataset.images_of(splits["train"]), recipe)
    network = build(architecture)
    loaded = load_weights(network, recipe) if recipe.weights else None
    warnings = [*warn_of_recipe(recipe), *(str(finding) for finding in findings)]
    experiment = Experiment(fabric, dataset, splits, recipe, architecture)
    tried: list[dict[str, Any]] = []
    if recipe.margin == "search":
        recipe, tried = search_margin(experiment, network, results=output / MARGINS, progress=options.progress)
        experiment = experiment.with_recipe(recipe)
    with tensorboard_scalars(output / "report" / "tensorboard", enabled=fabric.is_global_zero) as record:
        encoder, done = fit(experiment, network, state=output / STATE, record=record, progress=options.progress)
    if not fabric.is_global_zero:
        return None
    facts = {
        "weights_loaded": loaded,
        "margins_tried": tried,
        "warnings": [*warnings, *done.warnings],
        **_facts_of_run(experiment, done, tried, options.command),
    }
    checkpoint = write_checkpoint(output, encoder.cpu(), experiment, facts)
    write_report(checkpoint, dataset, splits, done.history, findings, with_images=options.report_images)
    for name in (STATE, MARGINS):
        (output / name).unlink(missing_ok=True)
    return checkpoint


def _check_output(output: Path, data: Path, *, resume: bool) -> None:
    """Raises `UsageError` for mistakes that can be named before the images are read."""
    if resume:
        if not (output / STATE).exists() and not (output / MARGINS).exists():
            raise UsageError(
                f"There is nothing to resume: {output / STATE} is missing. Start a new run without --resume."
            )
        return
    if (output / STATE).exists():
        raise UsageError(
            f"{output} holds an unfinished run. Continue it with --resume, or give a new directory with --output."
        )
    check_new(output, data)


def _facts_of_run(experiment: Experiment, done: Progress, tried: list[dict[str, Any]], command: str) -> dict[str, Any]:
    """What the checkpoint records about the run: every choice, and how it was computed."""
    fabric, recipe = experiment.fabric, experiment.recipe
    processes = fabric.world_size
    return {
        **recipe.model_dump(),
        "minutes": round(sum(row["seconds"] for row in (*tried, *done.history)) / 60, 1),
        "command": command if processes == 1 else f"torchrun --nproc-per-node {processes} --no-python {command}",
        "device": str(fabric.device),
        "processes": processes,
        "precision_used": str(fabric.strategy.precision.precision),
        "kept_epoch": done.best_epoch if recipe.patience else done.epoch,
    }
