"""Is training going well? The usual troubles of twin networks, named, with what to do about them.

What can't become a usable checkpoint ends the run with `TrainingFailed`. What may be intended is a warning, which the
command prints and the report keeps.
"""

import math
from typing import Any

import torch
from torch import Tensor

from app.errors import TrainingFailed
from training.recipe import Recipe

# Steps between two checks of the loss. On a GPU each check waits for the device.
CHECK_EVERY = 50
# If different identities lie nearer to each other than this on average, they are nearly one point: distances are
# counted in steps of 0.0001, and the rounding of another runtime would change verdicts.
COLLAPSED = 0.02
# A fresh network embeds all images nearly alike, too: it gets this many steps, and a quarter of the run, to unfold.
UNFOLDING = 200
# The distance of embeddings at right angles on the unit sphere. No more than dim + 1 points can all be farther apart.
RIGHT_ANGLE = math.sqrt(2)


class EpochSums:
    """Sums over the steps of one epoch, kept on the device where they arise."""

    def __init__(self, epoch: int, recipe: Recipe) -> None:
        self.epoch, self.recipe = epoch, recipe
        self.steps = 0
        self.sums = torch.zeros(3)

    def add_step(self, loss: Tensor, genuine: Tensor, impostor: Tensor) -> None:
        """Add a step. Raises `TrainingFailed` soon after the loss stops being a finite number."""
        self.sums = self.sums.to(loss.device) + torch.stack([loss, genuine, impostor])
        self.steps += 1
        if self.steps % CHECK_EVERY == 1:
            self._check_loss()

    def _check_loss(self) -> None:
        loss = float(self.sums[0])
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"The loss became {loss} in epoch {self.epoch}. Try a smaller --learning-rate than "
                f"{self.recipe.learning_rate:g}, or a longer --warm-up-share than {self.recipe.warm_up_share:g}."
            )

    def row(self) -> dict[str, Any]:
        """Means over the epoch. Raises `TrainingFailed` as `add_step` does."""
        self._check_loss()
        loss, genuine, impostor = (self.sums / max(1, self.steps)).tolist()
        return {"train_loss": loss, "train_genuine_term": genuine, "train_impostor_term": impostor}


def warn_of_recipe(recipe: Recipe) -> list[str]:
    """Warnings about a recipe, before the first step.

    >>> warn_of_recipe(Recipe(margin=1.0))
    []
    """
    if isinstance(recipe.margin, float) and recipe.margin > RIGHT_ANGLE:
        return [
            f"The margin {recipe.margin:g} is larger than {RIGHT_ANGLE:.2f}, the distance of embeddings at right "
            f"angles. At most {recipe.embedding_dim + 1} identities can all be that far apart, so the loss never "
            "reaches zero. Margins from 0.5 to 1.2 usually do better; --margin search tries several."
        ]
    return []


def judge_epoch(row: dict[str, Any], recipe: Recipe, warnings: list[str]) -> None:
    """Add to `warnings` what an epoch shows, each trouble once. `row["steps"]` counts from the start of the run.

    Raises `TrainingFailed` for collapsed embeddings, and where the weights are no longer finite numbers.
    """
    margin = recipe.fixed_margin
    if math.isnan(row["validation_loss"]):
        raise TrainingFailed(
            f"The weights became NaN in epoch {row['epoch']}. Try a smaller --learning-rate than "
            f"{recipe.learning_rate:g}."
        )
    unfolded = row["steps"] >= UNFOLDING and row["epoch"] >= recipe.epochs / 4
    if unfolded and _is_collapsed(row):
        raise TrainingFailed(
            f"The embeddings collapsed in epoch {row['epoch']}: the average distance between different identities is "
            f"{row['validation_impostor_distance']:.4f}, with a margin of {margin:g}. Try a larger --margin (0.5 to "
            f"1.2), --impostors active (now {recipe.impostors}), or a smaller --learning-rate (now "
            f"{recipe.learning_rate:g}), and check with `diptych lint` whether identities share images."
        )
    # Semi-hard mining also leaves nothing where every impostor is nearer than the genuine partner.
    if row["train_impostor_term"] == 0 and row["train_genuine_term"] > 0 and recipe.impostors != "semi-hard":
        _add_once(
            warnings,
            f"From epoch {row['epoch']} on there were epochs in which every impostor pair was farther apart than the "
            f"margin {margin:g}, so nothing pushed identities apart. If the error rates are too high, try a larger "
            "--margin, more --identities-per-batch, or a larger --near-share.",
        )


def warn_of_kept_epoch(row: dict[str, Any], warnings: list[str]) -> None:
    """Add to `warnings` what the epoch that is kept shows."""
    eer = row["validation_eer"]
    if _is_collapsed(row):
        _add_once(
            warnings,
            f"The average distance between different identities is {row['validation_impostor_distance']:.4f}: the run "
            "was too short to spread the embeddings out. Try more --epochs, or a larger --learning-rate.",
        )
    if eer is not None and eer > 0.4:
        _add_once(
            warnings,
            f"The EER on identities that were not trained on is {eer:.0%}, hardly better than chance (50 %). Try more "
            "images, more --epochs, or other --weights to start from, and check with `diptych lint` whether images "
            "are in the right folders.",
        )


def _is_collapsed(row: dict[str, Any]) -> bool:
    distance = row["validation_impostor_distance"]
    return distance is not None and not distance > COLLAPSED


def _add_once(warnings: list[str], text: str) -> None:
    """Add a warning unless one that begins alike is there."""
    if not any(text.split(" ")[:2] == known.split(" ")[:2] for known in warnings):
        warnings.append(text)
