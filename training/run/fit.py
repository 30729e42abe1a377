"""The loop over epochs: steps, validation on identities that are not trained on, and what is kept."""

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from app.progress import progress_bar
from training.calibration.pairs import count_pairs
from training.calibration.rates import (
    equal_error_rates,
    mean_contrastive_loss,
    mean_impostor_distance,
    verification_accuracy,
)
from training.network.encoder import Encoder, embed_with_network
from training.run.experiment import Experiment
from training.run.health import EpochSums, judge_epoch, warn_of_kept_epoch
from training.run.resume import Progress, load_state, save_state
from training.run.trainer import Trainer

Row = dict[str, Any]


def fit(
    experiment: Experiment,
    network: Encoder,
    *,
    state: Path | None = None,
    record: Callable[[Row], None] = lambda row: None,
    progress: bool = True,
    title: str = "training",
) -> tuple[Encoder, Progress]:
    """Train `network`. Returns the moving average of its weights: of the last epoch, or with patience the best.

    Validation is over all pairs of images of the calibration identities, which are not trained on. After each epoch
    the run's state is written to the file `state`; if that file exists at the start, the run goes on from there, to
    the same result. Raises `TrainingFailed` where training can't give a usable encoder, and `UsageError` where
    `state` belongs to another run.
    """
    fabric, recipe = experiment.fabric, experiment.recipe
    trainer = Trainer(experiment, network)
    done, best = Progress(), trainer.averaged
    if state is not None and state.exists():
        done, best = load_state(state, trainer)
        for earlier in done.history:
            record(earlier)
    elif state is not None and fabric.is_global_zero:
        save_state(state, trainer, done, best)  # so that a run can be resumed whenever it ends
    steps = trainer.steps_per_epoch
    total, shown = recipe.epochs * steps, progress and fabric.is_global_zero
    with progress_bar(title, "steps", total, initial=done.epoch * steps, enabled=shown) as bar:
        for epoch in range(done.epoch + 1, recipe.epochs + 1):
            if recipe.patience and epoch > done.best_epoch + recipe.patience:
                break
            trainer.learner.train()
            started, sums = time.monotonic(), EpochSums(epoch, recipe)
            for number in range((epoch - 1) * steps, epoch * steps):
                trainer.step(number, sums)
                bar.update()
            row: Row = {"epoch": epoch, "steps": epoch * steps, **sums.row()}
            if fabric.is_global_zero:
                row |= _validate(trainer.averaged, experiment)
                row["seconds"] = time.monotonic() - started
            row = fabric.broadcast(row)
            done.add_epoch(row)
            judge_epoch(row, recipe, done.warnings)
            if recipe.patience and done.best_epoch == epoch:
                best = copy.deepcopy(trainer.averaged)
            record(row)
            if state is not None and fabric.is_global_zero:
                save_state(state, trainer, done, best)
            bar.set_postfix(
                loss=f"{row['train_loss']:.4f}",
                validation_loss=f"{row['validation_loss']:.4f}",
                validation_eer="-" if row["validation_eer"] is None else f"{row['validation_eer']:.2%}",
            )
    warn_of_kept_epoch(done.history[(done.best_epoch if recipe.patience else done.epoch) - 1], done.warnings)
    return best, done


def _validate(network: Encoder, experiment: Experiment) -> Row:
    """Figures over all pairs of the calibration images."""
    dataset, index = experiment.dataset, experiment.images["calibration"]
    embeddings_ND = embed_with_network(network, dataset.images_NHWC, index)
    if not np.isfinite(embeddings_ND).all():
        names = ("accuracy", "eer", "same_group_eer", "impostor_distance")
        return {"validation_loss": math.nan, **{f"validation_{name}": None for name in names}}
    counts = count_pairs(embeddings_ND, dataset.identity_N[index], dataset.group_N[index])
    eer, same_group_eer = equal_error_rates(counts)
    return {
        "validation_loss": mean_contrastive_loss(counts, experiment.recipe.fixed_margin),
        "validation_accuracy": verification_accuracy(counts),
        "validation_eer": eer,
        "validation_same_group_eer": same_group_eer,
        "validation_impostor_distance": mean_impostor_distance(counts),
    }
