"""A short search for the margin: a few epochs with each of several, judged on identities never trained on."""

import copy
from typing import Any

from lightning_fabric import Fabric

from training.dataset import Dataset
from training.fit import fit
from training.network import Encoder
from training.pairs import Int
from training.recipe import Recipe

CANDIDATES = (0.5, 0.7, 0.85, 1.0, 1.2)
# Epochs with each: enough to tell a bad margin, not to tell two good ones apart.
SHARE, AT_LEAST = 0.1, 2


def search_margin(
    fabric: Fabric,
    network: Encoder,
    dataset: Dataset,
    train_identities: Int,
    validation_N: Int,
    recipe: Recipe,
    *,
    progress: bool = True,
) -> tuple[Recipe, list[dict[str, Any]]]:
    """The recipe with the margin that did best, and what each of them gave.

    Judged by the EER among near neighbours where there are groups, else by the EER, on the calibration identities.
    """
    tried: list[dict[str, Any]] = []
    for margin in CANDIDATES:
        epochs = max(AT_LEAST, round(SHARE * recipe.epochs))
        short = recipe.but(margin=margin, epochs=epochs, patience=0)
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
        last = done.history[-1]
        tried.append({"margin": margin, "epochs": epochs, "eer": last["validation_eer"],
                      "same_group_eer": last["validation_same_group_eer"]})  # fmt: skip
    best = min(tried, key=_errors)
    return recipe.but(margin=best["margin"]), tried


def _errors(row: dict[str, Any]) -> float:
    for figure in (row["same_group_eer"], row["eer"]):
        if figure is not None:
            return float(figure)
    return 1.0
