"""A short search for the margin: a few epochs with each of several, judged on identities never trained on."""

import copy
import json
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from app.arrays import Ints
from app.errors import TrainingFailed
from app.files import replacing
from training.data.dataset import Dataset
from training.network.network import Encoder
from training.recipe import Recipe
from training.run.fit import fit

MARGINS = "margins.json"
CANDIDATES = (0.5, 0.7, 0.85, 1.0, 1.2)
# Epochs with each: enough to tell a bad margin, not to tell two good ones apart.
SHARE, AT_LEAST = 0.1, 2


def search_margin(
    fabric: Fabric,
    network: Encoder,
    dataset: Dataset,
    train_identities: Ints,
    validation_N: Ints,
    recipe: Recipe,
    *,
    found: Path,
    progress: bool = True,
) -> tuple[Recipe, list[dict[str, Any]]]:
    """The recipe with the margin that did best, and what each of them gave.

    Judged by the EER among near neighbours where there are groups, else by the EER, on the calibration identities.
    What was tried is kept in the file `found`, from which an interrupted search goes on. Raises `TrainingFailed` if
    every margin fails.
    """
    tried: list[dict[str, Any]] = json.loads(found.read_text()) if found.exists() else []
    fabric.barrier()
    for margin in CANDIDATES[len(tried) :]:
        epochs = max(AT_LEAST, round(SHARE * recipe.epochs))
        short = recipe.but(margin=margin, epochs=epochs, patience=0)
        row: dict[str, Any] = {"margin": margin, "epochs": epochs, "eer": None, "same_group_eer": None, "seconds": 0.0}
        try:
            _, done = fit(
                fabric,
                copy.deepcopy(network),
                dataset,
                train_identities,
                validation_N,
                short,
                progress=progress,
                words=f"margin {margin:g}",
            )
        except TrainingFailed as problem:
            row["failed"] = problem.detail
        else:
            last = done.history[-1]
            row |= {"eer": last["validation_eer"], "same_group_eer": last["validation_same_group_eer"]}
            row["seconds"] = sum(epoch["seconds"] for epoch in done.history)
        tried.append(row)
        if fabric.is_global_zero:
            with replacing(found) as file:
                file.write(json.dumps(tried).encode())
    if all("failed" in row for row in tried):
        raise TrainingFailed(f"No margin of {', '.join(map(str, CANDIDATES))} trains. {tried[-1]['failed']}")
    best = min((row for row in tried if "failed" not in row), key=_errors)
    return recipe.but(margin=best["margin"]), tried


def _errors(row: dict[str, Any]) -> float:
    for figure in (row["same_group_eer"], row["eer"]):
        if figure is not None:
            return float(figure)
    return 1.0
