"""What the calibration says of a search among many identities: each comparison is another chance of a false match."""

import math

import numpy as np

from app.checkpoint.calibration import MORE_IMAGES, Calibration, rounded_up
from app.checkpoint.thresholds import Threshold
from app.errors import NotSupported


def threshold_for_search(calibration: Calibration, target_fpir: float, identities: int, references: int) -> Threshold:
    """The threshold at which a share `target_fpir` of searches for somebody who is not enrolled finds somebody, among
    so many identities with so many references each. Raises `NotSupported` where the calibration can't tell."""
    curves = calibration.curves
    if not curves.numbers:
        raise NotSupported(
            "This checkpoint is not calibrated for `target_fpir`. Calibrate it with `diptych calibrate`."
        )
    if not identities:
        return calibration.default
    number, _ = curves.closest(references)
    rate_G = curves.fpir("calibration_", references, identities)
    limit = curves.supported_from(number)
    found = curves.largest_within(rate_G, target_fpir)
    if found is not None and curves.distance_G[found] >= limit:
        return Threshold(float(curves.distance_G[found]), "calibration")
    first = int(np.searchsorted(curves.distance_G, limit)) if math.isfinite(limit) else len(rate_G)
    supported = [rounded_up(float(rate_G[first]))] if first < len(rate_G) and rate_G[first] < 0.99 else []
    least = f"The smallest rate that it supports is {supported[0]:g}." if supported else MORE_IMAGES
    raise NotSupported(
        f"The calibration saw too few false matches to promise `target_fpir` {target_fpir:g} in a gallery of "
        f"{identities} identities. {least}",
        supported_target_fpir=supported,
    )


def search_rates(
    calibration: Calibration, threshold: float, identities: int, references: int
) -> tuple[float | None, float | None]:
    """Expected FPIR of a search at a threshold, and expected number of false matches, as the test identities show them;
    null where they don't support it."""
    curves = calibration.curves
    if not identities:
        return 0.0, 0.0
    if not curves.numbers:
        return None, None
    number, times = curves.closest(references)
    if threshold < curves.supported_from(number, measured=True):
        return None, None
    rate = float(np.interp(threshold, curves.distance_G, curves.fpir("", references, identities)))
    matches = identities * times * curves.value("probe_fmr", number, threshold)
    return rate, min(float(identities), matches)
