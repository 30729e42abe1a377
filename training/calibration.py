"""Counts of pairs to error rates, thresholds and operating points: pure functions on arrays.

Array axes: G points of the grid of distances.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app import checkpoint as format_1
from app.checkpoint import CalibrationFacts
from app.matching import MAX_DISTANCE, OperatingPoint
from training.pairs import GRID, STEPS, Float, PairCounts

TARGETS = (0.1, 0.01, 0.001, 0.0001)
# A rate is promised only if at least so many false matches, from so many pairs of identities, carry it.
MIN_FALSE_MATCHES = 10
MIN_IDENTITY_PAIRS = 10


def threshold_at_fmr(fmr_G: Float, target: float) -> float | None:
    """The largest threshold of the grid whose FMR is at most `target`; None if even 0 has a larger one.

    >>> fmr_G = np.zeros(STEPS + 1); fmr_G[5000:] = 0.02
    >>> threshold_at_fmr(fmr_G, 0.01)
    0.4999
    """
    index = int(np.searchsorted(fmr_G, target + 1e-12, side="right")) - 1
    return float(GRID[index]) if index >= 0 else None


def equal_error_rate(fmr_G: Float, fnmr_G: Float) -> float:
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
    """EER with all impostors and with those of the same group; null without pairs of both kinds."""
    if not counts.genuine_count_G.any() or not counts.impostor_count_G.any():
        return None, None
    near = counts.same_group_count_G.any()
    return (
        equal_error_rate(counts.fmr_G, counts.fnmr_G),
        equal_error_rate(counts.same_group_fmr_G, counts.fnmr_G) if near else None,
    )


def verification_accuracy(counts: PairCounts) -> float | None:
    """Share of right verdicts at the best threshold where genuine and impostor pairs are equally many; None without
    pairs of both kinds."""
    if not counts.genuine_count_G.any() or not counts.impostor_count_G.any():
        return None
    return float(1 - ((counts.fmr_G + counts.fnmr_G) / 2).min())


def contrastive_loss(counts: PairCounts, margin: float) -> float:
    """The loss of `training.loss` over all pairs counted, impostor term averaged over all impostor pairs."""
    genuine = (counts.genuine_weight_G * GRID**2).sum() / 2
    impostor = (counts.impostor_weight_G * np.maximum(0, margin - GRID) ** 2).sum() / 2
    return float(genuine + impostor)


def mean_impostor_distance(counts: PairCounts) -> float | None:
    """How far apart different identities lie on average; None without impostor pairs."""
    return float((counts.impostor_weight_G * GRID).sum()) if counts.impostor_count_G.any() else None


def fit_logistic(counts: PairCounts) -> tuple[float, float]:
    """Slope and intercept of log-odds = slope * distance + intercept, at prior 0.5.

    Logistic regression on the counted pairs, genuine and impostor pairs weighing half each (J. Platt, 1999).
    (0, 0), which says nothing, without pairs of both kinds.
    """
    if not counts.genuine_count_G.any() or not counts.impostor_count_G.any():
        return 0.0, 0.0
    from sklearn.linear_model import LogisticRegression  # comes with training, not with serving

    weights = np.concatenate([counts.genuine_weight_G, counts.impostor_weight_G])
    used = weights > 0
    distance = np.concatenate([GRID, GRID])[used, None]
    genuine = np.repeat([1, 0], len(GRID))[used]
    # scaled, since scikit-learn's regularisation counts pairs; 1e6 of them leave it without effect
    model = LogisticRegression(C=1e6).fit(distance, genuine, sample_weight=weights[used])
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def reliability(counts: PairCounts, slope: float, intercept: float, bins: int = 10) -> tuple[Float, Float, Float]:
    """Of the pairs given a probability, how many are genuine, at prior 0.5: for each bin that holds pairs, the mean
    probability given, the share that is genuine, and the share of all pairs."""
    probability_G = 1 / (1 + np.exp(-(slope * GRID + intercept)))
    bin_G = np.minimum((probability_G * bins).astype(np.int64), bins - 1)
    genuine = np.bincount(bin_G, counts.genuine_weight_G / 2, bins)
    both_G = (counts.genuine_weight_G + counts.impostor_weight_G) / 2
    both = np.bincount(bin_G, both_G, bins).astype(np.float64)
    given = np.bincount(bin_G, both_G * probability_G, bins)
    used = both > 0
    return given[used] / both[used], genuine[used] / both[used], both[used]


def rates_at(counts: PairCounts, threshold: float) -> dict[str, Any]:
    """FMR and FNMR at one threshold, with pair counts; null where there are no such pairs."""
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


def is_supported(counts: PairCounts, threshold: float) -> bool:
    """Whether the sample holds enough false matches at this threshold to promise its FMR."""
    false_matches = rates_at(counts, threshold)["false_matches"]
    identity_pairs = int(np.searchsorted(counts.closest_P, threshold, side="right"))
    return bool(false_matches >= MIN_FALSE_MATCHES and identity_pairs >= MIN_IDENTITY_PAIRS)


def operating_points(
    calibration: PairCounts, test: PairCounts, targets: Sequence[float] = TARGETS
) -> list[OperatingPoint]:
    """For each target FMR, the threshold chosen on calibration and the rates measured on test identities.

    A target that the calibration identities do not support gets a point without a threshold.
    """
    points = []
    for target in targets:
        threshold = threshold_at_fmr(calibration.fmr_G, target)
        if threshold is None or not is_supported(calibration, threshold):
            points.append(OperatingPoint(target_fmr=target, supported=False))
            continue
        rates = rates_at(test, threshold)
        points.append(
            OperatingPoint(
                target_fmr=target,
                supported=True,
                threshold=threshold,
                measured_on="test",
                **{name: rates[name] for name in _MEASURED},
            )
        )
    return points


_MEASURED = ("fmr", "fnmr", "impostor_pairs", "false_matches", "genuine_pairs", "false_non_matches")


def default_threshold(
    points: Sequence[OperatingPoint], target_fmr: float, margin: float
) -> tuple[float, Literal["calibration", "margin"], str | None]:
    """Threshold, its source and a note: that of `target_fmr`, or margin / 2 where it is not supported.

    At margin / 2 the loss's pull on a genuine pair (D) equals its push on an impostor pair (m - D).
    """
    for point in points:
        if point.target_fmr == target_fmr and point.supported and point.threshold is not None:
            return point.threshold, "calibration", None
    note = (
        f"The calibration identities hold too few false matches at FMR {target_fmr:g} (fewer than "
        f"{MIN_FALSE_MATCHES}, or from fewer than {MIN_IDENTITY_PAIRS} pairs of identities), so the threshold "
        "is margin / 2 and no error rate is promised. More identities would mend it."
    )
    return margin / 2, "margin", note


def curves(calibration: PairCounts, test: PairCounts) -> Mapping[str, NDArray[Any]]:
    """What `calibration.npz` holds: curves over `distance`, named by rate, population and references.

    `calibration_*` chose the thresholds, the others were measured on test identities. `_1`: one reference.
    """
    named = {
        "distance": GRID,
        "fmr_all_1": test.fmr_G,
        "fnmr_all_1": test.fnmr_G,
        "calibration_fmr_all_1": calibration.fmr_G,
        "calibration_fnmr_all_1": calibration.fnmr_G,
    }
    if test.same_group_count_G.any():
        named["fmr_same_group_1"] = test.same_group_fmr_G
    return {name: curve.astype(np.float32) for name, curve in named.items()}


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


@dataclass(frozen=True)
class Calibration:
    """What a checkpoint says of verdicts: `curves` goes into `calibration.npz`, `fields` into its description."""

    curves: Mapping[str, NDArray[Any]]
    fields: dict[str, Any]


def calibrate(
    choose: PairCounts, measure: PairCounts, *, margin: float, target_fmr: float, fingerprint: str, images: int
) -> Calibration:
    """Choose thresholds on one set of identities and measure them on the other.

    `fingerprint` names the data set, `images` counts those of `measure`.
    """
    points = operating_points(choose, measure, sorted({*TARGETS, target_fmr}, reverse=True))
    threshold, source, note = default_threshold(points, target_fmr, margin)
    eer, same_group_eer = equal_error_rates(measure)
    named = curves(choose, measure)
    return Calibration(
        named,
        {
            "calibration_id": format_1.calibration_id(margin, threshold, points, named),
            "target_fmr": target_fmr,
            "threshold": threshold,
            "threshold_source": source,
            "operating_points": points,
            "calibration": CalibrationFacts(
                fingerprint=fingerprint,
                measured_on="test",
                identities=measure.identities,
                images=images,
                genuine_pairs=int(measure.genuine_count_G.sum()),
                impostor_pairs=int(measure.impostor_count_G.sum()),
                eer=eer,
                same_group_eer=same_group_eer,
                note=note,
            ),
        },
    )
