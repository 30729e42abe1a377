"""Identities to disjoint splits: to train on, to choose the threshold, to measure error rates."""

from typing import Literal

import numpy as np

from app.arrays import Ints
from app.errors import UsageError
from training.data.dataset import Dataset

SplitName = Literal["train", "calibration", "test"]


def split_identities(
    dataset: Dataset,
    *,
    calibration: float,
    test: float,
    by: Literal["identity", "group"],
    seed: int,
) -> dict[SplitName, Ints]:
    """Identities of the three splits, disjoint, as sorted indices; the same for the same seed and names.

    `calibration` and `test` are shares of the identities (or of the groups, which then stay whole).
    Raises `UsageError` where a split would hold fewer than two identities.
    """
    dataset.refuse_flat_folder(_least_identities(calibration, test))
    total = len(dataset.identities) if by == "identity" else len(dataset.groups)
    if by == "group" and total < 3:
        raise UsageError(
            f"{dataset.root} holds {total} groups (folders of identities), and --split-by group needs at least three: "
            "one to train, one to choose the threshold, one to measure it. Use --split-by identity."
        )
    order = np.random.default_rng(seed).permutation(total)
    n_calibration, n_test, _ = _split_sizes(total, calibration, test)
    parts: dict[SplitName, Ints] = {
        "train": order[n_calibration + n_test :],
        "calibration": order[:n_calibration],
        "test": order[n_calibration : n_calibration + n_test],
    }
    unit_of_identity = np.arange(total) if by == "identity" else dataset.group_of_identity
    splits = {name: np.flatnonzero(np.isin(unit_of_identity, units)) for name, units in parts.items()}
    for name, identities in splits.items():
        if len(identities) < 2:
            raise UsageError(
                f"Of the {len(dataset.identities)} identities (folders of images) in {dataset.root}, {len(identities)} "
                f"would be in the {name} split. Each split needs at least two. Add identities, or change "
                "--calibration-share and --test-share."
            )
    return splits


def _split_sizes(total: int, calibration: float, test: float) -> tuple[int, int, int]:
    """Sizes of the calibration, test and training split.

    >>> _split_sizes(40, 0.15, 0.15)
    (6, 6, 28)
    """
    n_calibration, n_test = max(1, round(total * calibration)), max(1, round(total * test))
    return n_calibration, n_test, total - n_calibration - n_test


def _least_identities(calibration: float, test: float) -> int:
    """The smallest number of identities at which each split holds two.

    >>> _least_identities(0.15, 0.15), _least_identities(0.3, 0.3)
    (10, 6)
    """
    # where the shares leave nothing to train on, no number is enough; six would be, with other shares
    return next((total for total in range(6, 1000) if min(_split_sizes(total, calibration, test)) >= 2), 6)
