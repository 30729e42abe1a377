"""What the checkpoint's calibration says of a distance: rates, likelihood ratio, thresholds for a wish.

A claim is decided by the nearest of an identity's references. More references mean more chances of a lucky match, so
thresholds and rates depend on their number: with more references a threshold never grows and a false-match rate never
falls. A figure that the calibration does not support is null.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from app.arrays import Array
from app.checkpoint.curves import Curves
from app.checkpoint.format import Checkpoint
from app.checkpoint.thresholds import OperatingPoint, Threshold
from app.errors import ConflictingFields, InvalidRequest, NotSupported

MORE_IMAGES = "Measure on more images with `diptych calibrate`, or give `threshold`."


@dataclass(frozen=True)
class Figures:
    """What the calibration says of one comparison; null where it does not support a figure."""

    fmr: float | None = None
    fmr_ci95: tuple[float, float] | None = None
    fnmr: float | None = None
    fnmr_ci95: tuple[float, float] | None = None
    log_likelihood_ratio: float | None = None
    percentile: float | None = None


class Calibration:
    """Operating points and curves of a checkpoint, and its default threshold."""

    def __init__(
        self,
        curves: Mapping[str, Array],
        default: Threshold,
        operating_points: Sequence[OperatingPoint],
        *,
        has_likelihood_ratio: bool,
    ) -> None:
        self.curves = Curves(curves)
        self.default = default
        self._points = [point for point in operating_points if point.supported and point.threshold is not None]
        self._has_likelihood_ratio = has_likelihood_ratio

    # --- thresholds ----------------------------------------------------------------------------------------

    def choose(
        self, references: int = 1, *, threshold: float | None = None, target_fmr: float | None = None
    ) -> Threshold:
        """The threshold of one request: the caller's own, that for a target, or the default.

        Raises `NotSupported` where the calibration can't promise the target.
        """
        if threshold is not None:
            return Threshold(threshold, "request")
        if target_fmr is not None:
            return self.at_fmr(target_fmr, references)
        if references == 1 or self.default.point is None:
            return self.default
        if not self.curves.numbers:
            return Threshold(self.default.value, self.default.source)
        try:
            return self.at_fmr(self.default.point.target_fmr, references)
        except NotSupported:  # nobody asked for a rate, so none is promised, but the threshold shrinks all the same
            value = self._largest_within(self.default.point.target_fmr, references)
            return Threshold(min(self.default.value, value), self.default.source)

    def at_fmr(self, target_fmr: float, references: int = 1, field: str = "target_fmr") -> Threshold:
        """The threshold chosen for a false-match rate. `field` is what the request calls the rate.

        Raises `NotSupported` where the calibration can't promise it, and `InvalidRequest` where it does not lie
        between 0 and 1.
        """
        if not 0 < target_fmr < 1:
            raise InvalidRequest(f"`{field}` must lie between 0 and 1.")
        if references == 1:
            for point in self._points:
                if point.threshold is not None and math.isclose(point.target_fmr, target_fmr):
                    return Threshold(point.threshold, "calibration", point)
        curves = self.curves
        if not curves.numbers:
            rates = [point.target_fmr for point in self._points]
            raise NotSupported(
                "This checkpoint was calibrated for one reference and these false-match rates only: "
                f"{', '.join(f'{rate:g}' for rate in rates) or 'none'}. `diptych calibrate` measures more.",
                supported_target_fmr=rates,
            )
        value = self._largest_within(target_fmr, references)
        number, times = curves.closest(references)
        limit = curves.supported_from(number)
        if value < limit:
            first = int(np.searchsorted(curves.distance_G, limit))
            supported = []
            if first < len(curves.distance_G):
                smallest = rounded_up(times * float(curves.curve("calibration_fmr_all", number)[first]))
                supported = [smallest] if smallest < 1 else []
            of = f" for {references} references" if references > 1 else ""
            if not supported:
                raise NotSupported(
                    f"This checkpoint promises no false-match rate{of}: it was calibrated on too few identities. "
                    f"{MORE_IMAGES}",
                    **{f"supported_{field}": supported},
                )
            raise NotSupported(
                f"The calibration saw too few false matches to promise `{field}` {target_fmr:g}{of}. The smallest "
                f"rate that it supports is {supported[0]:g}.",
                **{f"supported_{field}": supported},
            )
        # The target alone: rates are measured elsewhere than they were chosen, and `figures` reads them.
        return Threshold(value, "calibration", OperatingPoint(target_fmr, supported=True))

    def _largest_within(self, target_fmr: float, references: int) -> float:
        """The largest distance at which the false-match rate is at most the target.

        For one reference the operating points, which were chosen on a finer grid than that of the curves, bound it.
        """
        curves = self.curves
        number, times = curves.closest(references)
        found = curves.largest_within(times * curves.curve("calibration_fmr_all", number), target_fmr)
        value = float(curves.distance_G[found or 0])
        for point in self._points:
            if point.threshold is None:
                continue
            if point.target_fmr >= target_fmr * (1 - 1e-9):
                value = min(value, point.threshold)
            elif references == 1:
                value = max(value, point.threshold)
        return value

    def band(self, chosen: Threshold, inconclusive_fmr: float, references: int = 1) -> float:
        """The distance up to which a verdict is inconclusive: the threshold for a larger false-match rate.

        Raises `NotSupported` and `InvalidRequest` as `at_fmr` does, and `ConflictingFields` where that threshold is
        not larger than the one chosen.
        """
        end = self.at_fmr(inconclusive_fmr, references, "inconclusive_fmr").value
        if end <= chosen.value:
            than = (
                f"the rate of the verdict ({chosen.point.target_fmr:g})"
                if chosen.point
                else f"that of the threshold {chosen.value:.4g}"
            )
            raise ConflictingFields(f"`inconclusive_fmr` ({inconclusive_fmr:g}) must be larger than {than}.")
        return end

    def usual_band(self, chosen: Threshold, inconclusive_fmr: float | None, references: int = 1) -> float | None:
        """The same for the service's setting; None where the request's threshold leaves no band."""
        if inconclusive_fmr is None:
            return None
        try:
            return self.band(chosen, inconclusive_fmr, references)
        except (NotSupported, ConflictingFields):
            return None

    # --- one comparison ------------------------------------------------------------------------------------

    def figures(self, distance: float, chosen: Threshold, references: int = 1) -> Figures:
        """Rates at the threshold, and how this very distance is to be read."""
        curves = self.curves
        point = chosen.point if references == 1 and chosen.point and chosen.point.fmr is not None else None
        if not curves.numbers:
            return Figures(point.fmr, point.fmr_ci95, point.fnmr, point.fnmr_ci95) if point else Figures()
        number, times = curves.closest(references)
        exact = times == 1  # beyond the largest number of references only bounds are known
        supported = chosen.value >= curves.supported_from(number, measured=True)
        rates = Figures(
            fmr=self._rate("fmr_all", number, chosen.value, times) if supported else None,
            fmr_ci95=self._interval("fmr", number, chosen.value, times) if supported else None,
            # More references only ever bring the nearest closer, so the curve of fewer is an upper bound.
            fnmr=self._rate("fnmr_all", number, chosen.value, 1),
            fnmr_ci95=self._interval("fnmr", number, chosen.value, 1),
        )
        measured = point or rates
        return Figures(
            fmr=measured.fmr,
            fmr_ci95=measured.fmr_ci95,
            fnmr=measured.fnmr,
            fnmr_ci95=measured.fnmr_ci95,
            log_likelihood_ratio=(
                curves.value("llr", number, distance) if exact and self._has_likelihood_ratio else None
            ),
            percentile=_percentile(curves.value("calibration_fmr_all", number, distance)) if exact else None,
        )

    def _rate(self, name: str, number: int, threshold: float, times: int) -> float | None:
        rate = self.curves.value(name, number, threshold)
        return None if math.isnan(rate) else min(1.0, times * rate)

    def _interval(
        self, rate: Literal["fmr", "fnmr"], number: int, threshold: float, times: int
    ) -> tuple[float, float] | None:
        low, high = (self.curves.value(f"{rate}_{end}", number, threshold) for end in ("low", "high"))
        if math.isnan(low) or math.isnan(high):
            return None
        # Of the union bound only the high end says something: the rate itself may be as low as that of one set.
        return low, min(1.0, times * high)


def read_calibration(checkpoint: Checkpoint) -> Calibration:
    """The calibration of a checkpoint that was verified."""
    description = checkpoint.description
    return Calibration(
        checkpoint.curves(),
        description.default_threshold,
        description.operating_points,
        has_likelihood_ratio=description.calibration.likelihood_ratio is not None,
    )


def probability(log_likelihood_ratio: float, prior: float) -> float:
    """Of a genuine pair, from the log-likelihood ratio and the probability before looking (Bayes).

    >>> probability(0.0, 0.2), round(probability(math.log(9), 0.5), 6)
    (0.2, 0.9)
    """
    odds = log_likelihood_ratio + math.log(prior) - math.log1p(-prior)
    return 1 / (1 + math.exp(-odds)) if odds > 0 else math.exp(odds) / (1 + math.exp(odds))


def _percentile(rate: float) -> float | None:
    return None if math.isnan(rate) else 100 * (1 - rate)


def rounded_up(value: float) -> float:
    """To three digits that read well and are still supported."""
    if value <= 0:
        return value
    digits: float = 10.0 ** (2 - math.floor(math.log10(value)))
    return math.ceil(value * digits - 1e-9) / digits
