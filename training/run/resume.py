"""The state of an interrupted run: written after each epoch, read back without unpickling objects."""

import copy
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from app.errors import UsageError
from app.files import replacing
from training.network.encoder import Encoder
from training.run.trainer import Trainer

STATE = "resume.pt"


@dataclass
class Progress:
    """How far a run has come: one row for each epoch, the best epoch so far, and warnings about its health."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        return len(self.history)

    def add_epoch(self, row: dict[str, Any]) -> None:
        """Add an epoch. The best has the lowest EER on the calibration identities, or the lowest loss where there are
        no pairs of both kinds."""
        self.history.append(row)
        best = self.history[self.best_epoch - 1]
        if not self.best_epoch or _errors(row) < _errors(best):
            self.best_epoch = row["epoch"]


def _errors(row: dict[str, Any]) -> float:
    eer = row["validation_eer"]
    return float(row["validation_loss"] if eer is None else eer)


def save_state(path: Path, trainer: Trainer, done: Progress, best: Encoder) -> None:
    """Write the state under another name and rename it, so that an interruption leaves the state before it."""
    state = {
        "key": trainer.experiment.key,
        "history": done.history,
        "best_epoch": done.best_epoch,
        "warnings": done.warnings,
        "learner": trainer.learner.state_dict(),
        "averaged": trainer.averaged.state_dict(),
        "best": None if best is trainer.averaged else best.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "precision": trainer.experiment.fabric.strategy.precision.state_dict(),  # the scale of float16 gradients
    }
    with replacing(path) as file:
        torch.save(state, file)


def load_state(path: Path, trainer: Trainer) -> tuple[Progress, Encoder]:
    """Put the state back into the trainer. Returns how far the run had come, and its best encoder.

    Raises `UsageError` if the file can't be read, or if it belongs to a run with another `Experiment.key`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file makes PyTorch warn before it raises
            state = torch.load(path, map_location="cpu", weights_only=True)
        stored = state["key"]
    except Exception as problem:  # noqa: BLE001  whatever a damaged file makes the reader raise
        raise UsageError(
            f"{path} can't be read ({type(problem).__name__}). Delete it and start again without --resume."
        ) from None
    key = trainer.experiment.key
    if stored != key:
        different = sorted(name for name in key if stored.get(name) != key[name])
        raise UsageError(
            f"{path} belongs to a run with another {', '.join(different)}, so it can't be resumed. Give the same "
            "options as that run, or start again in a new directory."
        )
    trainer.learner.load_state_dict(state["learner"])
    trainer.averaged.load_state_dict(state["averaged"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.experiment.fabric.strategy.precision.load_state_dict(state["precision"])
    best = trainer.averaged
    if state["best"] is not None:
        best = copy.deepcopy(trainer.averaged)
        best.load_state_dict(state["best"])
    return Progress(state["history"], state["best_epoch"], state["warnings"]), best
