"""Is training going well? The classic troubles of twin networks, named, with what to do about them.

What can't become a usable checkpoint ends the run with `TrainingFailed`; what may be meant is a warning that the
command prints and the report keeps.
"""

import math
from typing import Any

import torch
from torch import Tensor

from app.errors import TrainingFailed
from training.recipe import Recipe

# Steps between two looks at the loss: on a GPU each one waits for it.
LOOK = 50
# If different identities lie nearer to each other than this on average, they are nearly one point: distances are
# counted in steps of 0.0001, and rounding in another runtime would change verdicts.
COLLAPSED = 0.02
# A fresh network embeds all images nearly alike, too: it gets so many steps, and a quarter of the run, to unfold.
UNFOLDING = 200
# On the unit sphere, embeddings at right angles are this far apart; more than dim + 1 can't all be farther.
RIGHT_ANGLE = math.sqrt(2)


class Watch:
    """The figures of one epoch of training, kept where they arise."""

    def __init__(self, epoch: int, recipe: Recipe) -> None:
        self.epoch, self.recipe = epoch, recipe
        self.steps = 0
        self.sums = torch.zeros(3)

    def see(self, loss: Tensor, genuine: Tensor, impostor: Tensor) -> None:
        """Add a step. Raises `TrainingFailed` soon after the loss is no number any more."""
        self.sums = self.sums.to(loss.device) + torch.stack([loss, genuine, impostor])
        self.steps += 1
        if self.steps % LOOK == 1:
            self._look()

    def _look(self) -> None:
        loss = float(self.sums[0])
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"The loss became {loss} in epoch {self.epoch}. A smaller --learning-rate than "
                f"{self.recipe.learning_rate:g} usually mends it, or a longer --warm-up-share than "
                f"{self.recipe.warm_up_share:g}."
            )

    def row(self) -> dict[str, Any]:
        """Means over the epoch."""
        self._look()
        loss, genuine, impostor = (self.sums / max(1, self.steps)).tolist()
        return {"train_loss": loss, "train_genuine_term": genuine, "train_impostor_term": impostor}


def before(recipe: Recipe) -> list[str]:
    """What can be said of a recipe before the first step."""
    if isinstance(recipe.margin, float) and recipe.margin > RIGHT_ANGLE:
        return [
            f"The margin {recipe.margin:g} is above {RIGHT_ANGLE:.2f}, the distance of embeddings at right angles: "
            f"no more than {recipe.embedding_dim + 1} identities can all be that far apart, so the loss never rests. "
            "Margins from 0.5 to 1.2 usually do better; --margin search tries some."
        ]
    return []


def judge(row: dict[str, Any], recipe: Recipe, warnings: list[str]) -> None:
    """Look at an epoch, `row["steps"]` steps after the start: add to `warnings` what it shows, once.

    Raises `TrainingFailed` for a collapse, and where the weights are no numbers any more.
    """
    margin = recipe.fixed_margin
    if math.isnan(row["validation_loss"]):
        raise TrainingFailed(
            f"The weights became no numbers in epoch {row['epoch']}. A smaller --learning-rate than "
            f"{recipe.learning_rate:g} usually mends it."
        )
    unfolded = row["steps"] >= UNFOLDING and row["epoch"] >= recipe.epochs / 4
    if unfolded and _is_collapsed(row):
        raise TrainingFailed(
            f"The embeddings collapsed in epoch {row['epoch']}: different identities lie "
            f"{row['validation_impostor_distance']:.4f} apart on average, with a margin of {margin:g}. The pull on "
            f"genuine pairs has won. What helps: a larger --margin (0.5 to 1.2), --impostors active (now "
            f"{recipe.impostors}), a smaller --learning-rate (now {recipe.learning_rate:g}); and look whether "
            "identities share images (`diptych lint`)."
        )
    # Semi-hard mining leaves nothing, too, where every impostor is nearer than the genuine partner.
    if row["train_impostor_term"] == 0 and row["train_genuine_term"] > 0 and recipe.impostors != "semi-hard":
        _once(
            warnings,
            f"From epoch {row['epoch']} on there were epochs in which every impostor pair lay beyond the margin "
            f"{margin:g}, so nothing pushed identities apart. If the error rates do not satisfy: a larger --margin, "
            "more --identities-per-batch, or a larger --near-share.",
        )


def after(row: dict[str, Any], warnings: list[str]) -> None:
    """Look at the epoch that is kept."""
    eer = row["validation_eer"]
    if _is_collapsed(row):
        _once(
            warnings,
            f"Different identities lie {row['validation_impostor_distance']:.4f} apart on average: the run was too "
            "short to unfold the embeddings. More --epochs, or a larger --learning-rate.",
        )
    if eer is not None and eer > 0.4:
        _once(
            warnings,
            f"On identities that it was not trained on the EER is {eer:.0%}, hardly better than chance (50 %). More "
            "images, more --epochs, or other --weights to start from; and look whether the folders are what they "
            "should be (`diptych lint`).",
        )


def _is_collapsed(row: dict[str, Any]) -> bool:
    apart = row["validation_impostor_distance"]
    return apart is not None and not apart > COLLAPSED


def _once(warnings: list[str], words: str) -> None:
    if not any(words.split(" ")[:2] == known.split(" ")[:2] for known in warnings):
        warnings.append(words)
