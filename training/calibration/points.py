"""Counted pairs to operating points: a threshold for each target with its rates, and the default threshold."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from app.arrays import Floats, Ints
from app.checkpoint.thresholds import OperatingPoint
from training.calibration import bootstrap
from training.calibration.claims import draw_claims
from training.calibration.pairs import Labelled, PairCounts
from training.calibration.rates import (
    MIN_FALSE_MATCHES,
    MIN_IDENTITY_PAIRS,
    is_supported,
    rates_at,
    threshold_at_fmr,
)

TARGETS = (0.1, 0.01, 0.001, 0.0001)
# A larger share of genuine pairs at distance zero than this is reported.
SAME_IMAGE = 0.01
# Measured on random draws from Omniglot, five images of each identity: 30 calibration identities supported FMR 0.01
# every time, 20 in one draw of three. With the default shares, 30 for calibration are 200 identities in all.
ADVICE = (
    "Use more identities. On handwritten characters, FMR 0.01 needed about 30 calibration identities: 200 in all for a "
    "training run with the default shares, or 60 for `diptych calibrate`."
)

Unit = Literal["identity", "group"]


def operating_points(
    chosen: PairCounts, measured: PairCounts, data: Labelled, unit: Unit, targets: Sequence[float] = TARGETS
) -> list[OperatingPoint]:
    """For each target FMR, the threshold chosen on calibration and the rates measured on test identities (`data`).

    A target that the calibration identities do not support gets a point without a threshold. An FMR that the test
    identities do not support is null.
    """
    found = [threshold_at_fmr(chosen.fmr_G, target) for target in targets]
    thresholds = [t if t is not None and is_supported(chosen, t) else None for t in found]
    kept = np.array(sorted({t for t in thresholds if t is not None}))
    if not len(kept):
        return [OperatingPoint(target_fmr=target, supported=False) for target in targets]
    unit_U = units_of(data, unit)
    resampled = bootstrap.resample_rates(draw_claims(data), kept, bootstrap.draw_resamples(unit_U), unit_U)
    fmr, fnmr = resampled.fmr_interval, resampled.fnmr_interval
    points = []
    for target, threshold in zip(targets, thresholds, strict=True):
        if threshold is None:
            points.append(OperatingPoint(target_fmr=target, supported=False))
            continue
        at = int(np.searchsorted(kept, threshold))
        measured_rates = rates_at(measured, threshold)
        if not is_supported(measured, threshold):
            measured_rates["fmr"] = None
        points.append(
            OperatingPoint(
                target_fmr=target,
                supported=True,
                threshold=threshold,
                measured_on="test",
                fmr_ci95=None if measured_rates["fmr"] is None else _ends(fmr, at),
                fnmr_ci95=_ends(fnmr, at),
                **{name: measured_rates[name] for name in _MEASURED},
            )
        )
    return points


_MEASURED = ("fmr", "fnmr", "impostor_pairs", "false_matches", "genuine_pairs", "false_non_matches")


def default_threshold(
    points: Sequence[OperatingPoint], target_fmr: float, margin: float, identities: int
) -> tuple[float, Literal["calibration", "margin"], str | None]:
    """Threshold, its source and a note: that of `target_fmr`, or margin / 2 where it is not supported.

    At margin / 2 the loss's pull on a genuine pair (D) equals its push on an impostor pair (m - D). `identities` is the
    number of calibration identities.

    >>> default_threshold([OperatingPoint(0.01, supported=True, threshold=0.4)], 0.01, margin=1.0, identities=30)
    (0.4, 'calibration', None)
    >>> default_threshold([OperatingPoint(0.01, supported=False)], 0.01, margin=1.0, identities=6)[:2]
    (0.5, 'margin')
    """
    for point in points:
        if point.target_fmr == target_fmr and point.supported and point.threshold is not None:
            return point.threshold, "calibration", None
    note = (
        f"The threshold is half the margin, not calibrated, and no false-match rate is promised: FMR {target_fmr:g} "
        f"needs at least {MIN_FALSE_MATCHES} false matches from at least {MIN_IDENTITY_PAIRS} different pairs of "
        f"identities, which the {identities} calibration identities do not give. {ADVICE}"
    )
    return margin / 2, "margin", note


def units_of(data: Labelled, unit: Unit) -> Ints:
    """The unit that each identity is resampled with, `[U]`: itself, or its group.

    >>> from training.calibration.pairs import sort_by_identity
    >>> data = sort_by_identity(np.eye(3, dtype=np.float32), np.array([0, 1, 2]), np.array([5, 5, 8]))
    >>> units_of(data, "identity").tolist(), units_of(data, "group").tolist()
    ([0, 1, 2], [5, 5, 8])
    """
    return data.group_U if unit == "group" else np.arange(len(data.sizes_U))


def _ends(interval: tuple[Floats, Floats], at: int) -> tuple[float, float] | None:
    low, high = float(interval[0][at]), float(interval[1][at])
    return None if np.isnan(low) or np.isnan(high) else (low, high)


def oddities(counts: PairCounts, which: str) -> list[str]:
    """Sentences about properties of a sample that make its figures meaningless or too good.

    >>> from training.calibration.pairs import count_pairs
    >>> nothing = count_pairs(np.eye(2, dtype=np.float32), np.array([0, 0]), np.array([0, 0]))
    >>> oddities(nothing, "test")
    ['The test images are all of one identity, so there are no impostor pairs and no FMR.']
    """
    found = []
    if not counts.impostor_count_G.any():
        found.append(f"The {which} images are all of one identity, so there are no impostor pairs and no FMR.")
    if not counts.genuine_count_G.any():
        found.append(f"No {which} identity has two images, so there are no genuine pairs and no FNMR.")
    both = counts.genuine_count_G + counts.impostor_count_G
    if both.sum() > 1 and int((both > 0).sum()) == 1:
        found.append(
            f"All {which} distances are equal: the encoder can't tell anything apart, or all images are the same image."
        )
    same = counts.genuine_count_G[:2].sum()  # within a step of the grid, which is what rounding may leave
    if same > SAME_IMAGE * counts.genuine_count_G.sum():
        share = same / counts.genuine_count_G.sum()
        found.append(f"{share:.0%} of the genuine {which} pairs are the same image twice, so the FNMR is too low.")
    return found
