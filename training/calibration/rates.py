"""Counts of pairs to error rates and thresholds: pure functions on arrays.

Most examples are about four pairs: genuine ones at the distances 0.2 and 0.8, impostor ones at 0.6 and 1.0.
"""

from typing import Any

import numpy as np

from app.arrays import Floats
from app.checkpoint.matching import MAX_DISTANCE
from training.calibration.pairs import GRID, STEPS, PairCounts

# A rate is promised only if at least this many false matches were seen, from this many pairs of identities.
MIN_FALSE_MATCHES = 10
MIN_IDENTITY_PAIRS = 10


def threshold_at_fmr(fmr_G: Floats, target: float) -> float | None:
    """The largest threshold of the grid whose FMR is at most `target`; None if even 0 has a larger one.

    >>> fmr_G = np.zeros(STEPS + 1); fmr_G[5000:] = 0.02
    >>> threshold_at_fmr(fmr_G, 0.01)
    0.4999
    """
    index = int(np.searchsorted(fmr_G, target + 1e-12, side="right")) - 1
    return float(GRID[index]) if index >= 0 else None


def equal_error_rate(fmr_G: Floats, fnmr_G: Floats) -> float:
    """The rate where FMR = FNMR, linear between two points of the grid.

    >>> equal_error_rate(np.linspace(0, 1, STEPS + 1), np.linspace(1, 0, STEPS + 1))
    0.5
    """
    above = int(np.argmax(fmr_G >= fnmr_G))
    if above == 0:
        return float((fmr_G[0] + fnmr_G[0]) / 2)
    gap_before, gap_after = fnmr_G[above - 1] - fmr_G[above - 1], fmr_G[above] - fnmr_G[above]
    share = gap_before / (gap_before + gap_after) if gap_before + gap_after else 0.0
    return float(fmr_G[above - 1] + share * (fmr_G[above] - fmr_G[above - 1]))


def equal_error_rates(counts: PairCounts) -> tuple[float | None, float | None]:
    """EER with all impostors and with those of the same group; None without pairs of both kinds.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> counts = count_listed_pairs(np.array([0.2, 0.8, 0.6, 1.0]), np.array([True, True, False, False]))
    >>> equal_error_rates(counts)  # between 0.6 and 0.8, one of two is wrong of either kind
    (0.5, None)
    """
    if not counts.genuine_count_G.any() or not counts.impostor_count_G.any():
        return None, None
    near = counts.same_group_count_G.any()
    return (
        equal_error_rate(counts.fmr_G, counts.fnmr_G),
        equal_error_rate(counts.same_group_fmr_G, counts.fnmr_G) if near else None,
    )


def verification_accuracy(counts: PairCounts) -> float | None:
    """Share of right verdicts at the best threshold, genuine and impostor pairs weighing the same; None without pairs
    of both kinds.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> counts = count_listed_pairs(np.array([0.2, 0.8, 0.6, 1.0]), np.array([True, True, False, False]))
    >>> verification_accuracy(counts)  # at 0.2 one of four is wrong
    0.75
    """
    if not counts.genuine_count_G.any() or not counts.impostor_count_G.any():
        return None
    return float(1 - ((counts.fmr_G + counts.fnmr_G) / 2).min())


def mean_contrastive_loss(counts: PairCounts, margin: float) -> float:
    """The loss of `training.run.loss` over all pairs counted; the impostor term is averaged over all impostor pairs.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> counts = count_listed_pairs(np.array([0.2, 0.8, 0.6, 1.0]), np.array([True, True, False, False]))
    >>> round(mean_contrastive_loss(counts, margin=1.0), 6)  # (0.04 + 0.64) / 4 + (0.16 + 0) / 4
    0.21
    """
    genuine = (counts.genuine_weight_G * GRID**2).sum() / 2
    impostor = (counts.impostor_weight_G * np.maximum(0, margin - GRID) ** 2).sum() / 2
    return float(genuine + impostor)


def mean_impostor_distance(counts: PairCounts) -> float | None:
    """The mean distance between different identities; None without impostor pairs.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> counts = count_listed_pairs(np.array([0.2, 0.8, 0.6, 1.0]), np.array([True, True, False, False]))
    >>> mean_impostor_distance(counts)
    0.8
    """
    return float((counts.impostor_weight_G * GRID).sum()) if counts.impostor_count_G.any() else None


def rates_at(counts: PairCounts, threshold: float) -> dict[str, Any]:
    """FMR and FNMR at one threshold, with pair counts; None where there are no such pairs.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> counts = count_listed_pairs(np.array([0.2, 0.8, 0.6, 1.0]), np.array([True, True, False, False]))
    >>> found = rates_at(counts, 0.7)
    >>> found["fmr"], found["false_matches"], found["fnmr"], found["false_non_matches"]
    (0.5, 1, 0.5, 1)
    """
    index = int(np.floor(threshold * (STEPS / MAX_DISTANCE) + 1e-7))
    index = min(max(index, 0), STEPS)
    impostors, genuine, near = (
        int(bins.sum()) for bins in (counts.impostor_count_G, counts.genuine_count_G, counts.same_group_count_G)
    )
    return {
        "fmr": min(float(counts.fmr_G[index]), 1.0) if impostors else None,
        "fnmr": float(counts.fnmr_G[index]) if genuine else None,
        "same_group_fmr": float(counts.same_group_fmr_G[index]) if near else None,
        "impostor_pairs": impostors,
        "false_matches": int(counts.impostor_count_G[: index + 1].sum()),
        "genuine_pairs": genuine,
        "false_non_matches": int(counts.genuine_count_G[index + 1 :].sum()),
        "same_group_impostor_pairs": near,
    }


def supported_from(counts: PairCounts) -> float | None:
    """The smallest threshold at which the sample holds enough false matches, from enough different pairs of
    identities, to promise its FMR; None if it holds too few at any threshold.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> supported_from(count_listed_pairs(np.arange(1, 12) / 10, np.zeros(11, dtype=bool)))  # the tenth of eleven
    1.0
    """
    false_matches_G = np.cumsum(counts.impostor_count_G)
    identity_pairs_G = np.searchsorted(counts.closest_P, GRID + 1e-9, side="right")
    enough_G = (false_matches_G >= MIN_FALSE_MATCHES) & (identity_pairs_G >= MIN_IDENTITY_PAIRS)
    return float(GRID[int(np.argmax(enough_G))]) if enough_G.any() else None


def is_supported(counts: PairCounts, threshold: float) -> bool:
    """Whether the sample holds enough false matches at this threshold to promise its FMR.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> counts = count_listed_pairs(np.arange(1, 12) / 10, np.zeros(11, dtype=bool))
    >>> is_supported(counts, 0.9), is_supported(counts, 1.0)
    (False, True)
    """
    smallest = supported_from(counts)
    return smallest is not None and threshold >= smallest - 1e-9


def metrics(counts: PairCounts, threshold: float) -> dict[str, Any]:
    """The figures of one evaluation, as `metrics.json` holds them."""
    eer, same_group_eer = equal_error_rates(counts)
    return {
        "threshold": threshold,
        **rates_at(counts, threshold),
        "eer": eer,
        "same_group_eer": same_group_eer,
        "identities": counts.identities,
    }
