"""The state of an interrupted run: written after each epoch, read back without unpickling objects."""

import copy
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import Precision
from torch import nn

from app.errors import UsageError
from app.files import replacing
from training.network.network import Encoder

STATE = "resume.pt"


@dataclass
class Progress:
    """How far a run has come: one row an epoch, the best epoch so far, and what looked unhealthy."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        return len(self.history)

    def see(self, row: dict[str, Any]) -> None:
        """Add an epoch. The best has the lowest EER on the calibration identities; the loss stands in for it
        where there are no pairs of both kinds."""
        self.history.append(row)
        best = self.history[self.best_epoch - 1]
        if not self.best_epoch or _errors(row) < _errors(best):
            self.best_epoch = row["epoch"]


def _errors(row: dict[str, Any]) -> float:
    eer = row["validation_eer"]
    return float(row["validation_loss"] if eer is None else eer)


def save_state(
    path: Path,
    key: dict[str, Any],
    done: Progress,
    learner: nn.Module,
    averaged: Encoder,
    best: Encoder,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
) -> None:
    """Write the state at once, by a rename, so that an interruption leaves the one before.

    `key` says what the run is of: a state goes on only with the same recipe, data and build of PyTorch.
    """
    state = {
        "key": key,
        "history": done.history,
        "best_epoch": done.best_epoch,
        "warnings": done.warnings,
        "learner": learner.state_dict(),
        "averaged": averaged.state_dict(),
        "best": None if best is averaged else best.state_dict(),
        "optimizer": optimizer.state_dict(),
        "precision": precision.state_dict(),  # the scale of float16 gradients
    }
    with replacing(path) as file:
        torch.save(state, file)


def load_state(
    path: Path,
    key: dict[str, Any],
    learner: nn.Module,
    averaged: Encoder,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
) -> tuple[Progress, Encoder]:
    """Put the state back into the run's parts. Returns how far it had come, and the best encoder.

    Raises `UsageError` if the file can't be read, or was left by another run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a damaged file looks like
            state = torch.load(path, map_location="cpu", weights_only=True)
        kept = state["key"]
    except Exception as problem:  # noqa: BLE001  whatever a damaged file makes the reader raise
        raise UsageError(f"{path} can't be read ({type(problem).__name__}): remove it and start anew.") from None
    if kept != key:
        other = sorted(name for name in key if kept.get(name) != key[name])
        raise UsageError(f"{path} was left by a run with another {', '.join(other)}: it can't be resumed by this one.")
    learner.load_state_dict(state["learner"])
    averaged.load_state_dict(state["averaged"])
    optimizer.load_state_dict(state["optimizer"])
    precision.load_state_dict(state["precision"])
    best = averaged
    if state["best"] is not None:
        best = copy.deepcopy(averaged)
        best.load_state_dict(state["best"])
    return Progress(state["history"], state["best_epoch"], state["warnings"]), best
