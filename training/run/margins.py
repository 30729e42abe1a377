"""A short search for the margin: a few epochs with each of several, judged on identities that are not trained on."""

import copy
import json
from pathlib import Path
from typing import Any

from app.errors import TrainingFailed
from app.files import replacing
from training.network.encoder import Encoder
from training.recipe import Recipe
from training.run.experiment import Experiment
from training.run.fit import fit

MARGINS = "margins.json"
CANDIDATES = (0.5, 0.7, 0.85, 1.0, 1.2)
# Epochs with each: enough to tell a bad margin, not to tell two good ones apart.
SHARE, AT_LEAST = 0.1, 2


def search_margin(
    experiment: Experiment, network: Encoder, *, results: Path, progress: bool = True
) -> tuple[Recipe, list[dict[str, Any]]]:
    """The recipe with the margin that did best, and the figures of each margin.

    Margins are judged on the calibration identities: by the EER within groups where there are groups, else by the EER.
    The figures are kept in the file `results`, from which an interrupted search goes on. Raises `TrainingFailed` if
    every margin fails.
    """
    recipe = experiment.recipe
    tried: list[dict[str, Any]] = json.loads(results.read_text()) if results.exists() else []
    experiment.fabric.barrier()
    for margin in CANDIDATES[len(tried) :]:
        epochs = max(AT_LEAST, round(SHARE * recipe.epochs))
        short = recipe.but(margin=margin, epochs=epochs, patience=0)
        row: dict[str, Any] = {"margin": margin, "epochs": epochs, "eer": None, "same_group_eer": None, "seconds": 0.0}
        try:
            _, done = fit(
                experiment.with_recipe(short),
                copy.deepcopy(network),
                progress=progress,
                title=f"margin {margin:g}",
            )
        except TrainingFailed as problem:
            row["failed"] = problem.detail
        else:
            last = done.history[-1]
            row |= {"eer": last["validation_eer"], "same_group_eer": last["validation_same_group_eer"]}
            row["seconds"] = sum(epoch["seconds"] for epoch in done.history)
        tried.append(row)
        if experiment.fabric.is_global_zero:
            with replacing(results) as file:
                file.write(json.dumps(tried).encode())
    if all("failed" in row for row in tried):
        raise TrainingFailed(
            f"Training failed with every margin of {', '.join(map(str, CANDIDATES))}. {tried[-1]['failed']}"
        )
    best = min((row for row in tried if "failed" not in row), key=_errors)
    return recipe.but(margin=best["margin"]), tried


def _errors(row: dict[str, Any]) -> float:
    for figure in (row["same_group_eer"], row["eer"]):
        if figure is not None:
            return float(figure)
    return 1.0
