"""What the checkpoint's calibration says of a distance: rates, likelihood ratio, thresholds for a wish.

A claim is judged by the nearest of an identity's references, and the nearest of five is closer by chance too, so there
are curves for several numbers of references. Beyond the largest, R references match by chance at most as often as R
single ones together (the union bound), and what has no bound is null.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from app.arrays import Floats
from app.checkpoint.format import Checkpoint
from app.checkpoint.matching import OperatingPoint, Threshold, fpir
from app.errors import ConflictingFields, InvalidRequest, NotSupported


@dataclass(frozen=True)
class Said:
    """What the calibration says of one comparison; null where it does not support a figure."""

    fmr: float | None = None
    fmr_ci95: tuple[float, float] | None = None
    fnmr: float | None = None
    fnmr_ci95: tuple[float, float] | None = None
    log_likelihood_ratio: float | None = None
    percentile: float | None = None


class Calibration:
    """A checkpoint's curves, read by distance."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        description = checkpoint.description
        self._curves: Mapping[str, Floats] = {
            name: curve.astype(np.float64) for name, curve in checkpoint.curves().items()
        }
        self._distance = self._curves["distance"].round(6)  # stored as float32
        self._default = description.default_threshold
        self._points = description.operating_points
        self._speaks = description.calibration.likelihood_ratio is not None
        # checkpoints of earlier versions hold a curve for one reference, without intervals
        self._known = sorted(
            int(name.removeprefix("supported_")) for name in self._curves if name.startswith("supported_")
        )
        self._fpir = lru_cache(maxsize=64)(self._fpir_uncached)  # galleries change less often than they are searched

    # --- thresholds ----------------------------------------------------------------------------------------

    def choose(
        self, references: int = 1, *, threshold: float | None = None, target_fmr: float | None = None
    ) -> Threshold:
        """The threshold of one request: the caller's own, that for a target, or the default.

        With several references the same false-match rate needs a smaller threshold. Raises `ConflictingFields` for
        both at once and `NotSupported` for a target below what the calibration supports.
        """
        if threshold is not None and target_fmr is not None:
            raise ConflictingFields("Give `threshold` or `target_fmr`, not both.")
        if threshold is not None:
            return Threshold(threshold, "request")
        if target_fmr is not None:
            return self.at_fmr(target_fmr, references)
        if references == 1 or self._default.point is None:
            return self._default
        if not self._known:
            return Threshold(self._default.value, self._default.source)
        try:
            return self.at_fmr(self._default.point.target_fmr, references)
        except NotSupported:  # nobody asked for a rate, so none is promised, but the threshold shrinks all the same
            value = self._largest_within(self._default.point.target_fmr, *self._closest(references))
            return Threshold(min(self._default.value, value), self._default.source)

    def at_fmr(self, target_fmr: float, references: int = 1, field: str = "target_fmr") -> Threshold:
        """The threshold chosen for a false-match rate.

        Raises `NotSupported` where the calibration can't promise it, `InvalidRequest` for what is no rate. `field` is
        what the request calls it.
        """
        if not 0 < target_fmr < 1:
            raise InvalidRequest(f"`{field}` must lie between 0 and 1.")
        if references == 1:
            for point in self._points:
                if point.supported and point.threshold is not None and math.isclose(point.target_fmr, target_fmr):
                    return Threshold(point.threshold, "calibration", point)
        if not self._known:
            one = [p.target_fmr for p in self._points if p.supported]
            raise NotSupported(
                "This checkpoint was calibrated for one reference and these false-match rates alone: "
                f"{', '.join(f'{rate:g}' for rate in one) or 'none'}. `diptych calibrate` measures more.",
                supported_target_fmr=one,
            )
        known, times = self._closest(references)
        value, limit = self._largest_within(target_fmr, known, times), self._curves[f"supported_{known}"][0]
        if value < limit - 1e-6:
            first = int(np.searchsorted(self._distance, limit - 1e-6))
            supported = []
            if first < len(self._distance):
                smallest = _rounded_up(times * float(self._curves[f"calibration_fmr_all_{known}"][first]))
                supported = [smallest] if smallest < 1 else []
            least = f"The smallest that it supports is {supported[0]:g}." if supported else "It supports none."
            of = f" for {references} references" if references > 1 else ""
            raise NotSupported(
                f"The calibration holds too few false matches to promise `{field}` {target_fmr:g}{of}. {least}",
                **{f"supported_{field}": supported},
            )
        # the target alone; rates are read off by `said`
        return Threshold(value, "calibration", OperatingPoint(target_fmr, supported=True))

    def _largest_within(self, target_fmr: float, known: int, times: int) -> float:
        fmr_G = times * self._curves[f"calibration_fmr_all_{known}"]
        at = int(np.searchsorted(fmr_G, target_fmr * (1 + 1e-6), side="right")) - 1
        return float(self._distance[max(at, 0)])

    def band(self, chosen: Threshold, inconclusive_fmr: float, references: int = 1) -> float:
        """The distance up to which a verdict is inconclusive: the threshold for a larger false-match rate.

        Raises `NotSupported` as `at_fmr` does, and `ConflictingFields` where no band is left beyond the threshold.
        """
        end = self.at_fmr(inconclusive_fmr, references, "inconclusive_fmr").value
        if end <= chosen.value:
            raise ConflictingFields(
                f"`inconclusive_fmr` {inconclusive_fmr:g} belongs to the distance {end:.4f}, which is not beyond the "
                f"threshold {chosen.value:.4f}: no band lies between them. Give a larger rate."
            )
        return end

    def usual_band(self, chosen: Threshold, inconclusive_fmr: float | None, references: int = 1) -> float | None:
        """The same by the service's setting, which a request may leave nothing of: then None."""
        if inconclusive_fmr is None:
            return None
        try:
            return self.band(chosen, inconclusive_fmr, references)
        except (NotSupported, ConflictingFields):
            return None

    # --- one comparison ------------------------------------------------------------------------------------

    def said(self, distance: float, chosen: Threshold, references: int = 1) -> Said:
        """Rates at the threshold, and how this very distance is to be read."""
        if not self._known:
            point = chosen.point if references == 1 else None
            if point is None:
                return Said()
            return Said(point.fmr, point.fmr_ci95, point.fnmr, point.fnmr_ci95)
        known, times = self._closest(references)
        exact = times == 1
        point = chosen.point if references == 1 and chosen.point and chosen.point.fmr is not None else None
        supported = self._supports(known, chosen.value)
        return Said(
            fmr=point.fmr if point else self._rate("fmr_all", known, chosen.value, times) if supported else None,
            fmr_ci95=point.fmr_ci95 if point else self._ends("fmr", known, chosen.value, times) if supported else None,
            # more references only ever bring the nearest closer, so the curve of fewer is an upper bound
            fnmr=point.fnmr if point else self._rate("fnmr_all", known, chosen.value, 1),
            fnmr_ci95=point.fnmr_ci95 if point else self._ends("fnmr", known, chosen.value, 1),
            log_likelihood_ratio=self._read("llr", known, distance) if exact and self._speaks else None,
            percentile=_percentile(self._read("calibration_fmr_all", known, distance)) if exact else None,
        )

    def _supports(self, known: int, threshold: float) -> bool:
        return threshold >= float(self._curves[f"supported_{known}"].max()) - 1e-6

    def _rate(self, name: str, known: int, threshold: float, times: int) -> float | None:
        rate = self._read(name, known, threshold)
        return None if math.isnan(rate) else min(1.0, times * rate)

    def _ends(
        self, rate: Literal["fmr", "fnmr"], known: int, threshold: float, times: int
    ) -> tuple[float, float] | None:
        low, high = (self._read(f"{rate}_{end}", known, threshold) for end in ("low", "high"))
        if math.isnan(low) or math.isnan(high):
            return None
        # of the union bound only the high end says something: the rate itself may be as low as that of one reference
        return low, min(1.0, times * high)

    def _read(self, name: str, known: int, distance: float) -> float:
        return float(np.interp(distance, self._distance, self._curves[f"{name}_{known}"]))

    def _closest(self, references: int) -> tuple[int, int]:
        """Which number of references to read the curves of, and how many such sets make up the union bound."""
        if references <= self._known[-1]:
            return self._known[bisect_left(self._known, references)], 1
        return self._known[-1], -(-references // self._known[-1])

    def single(self) -> tuple[Floats, Floats, Floats] | None:
        """Distances `[G]`, and the shares of genuine and of impostor pairs with one reference that lie within each;
        None where nothing was measured."""
        fmr_G, fnmr_G = (self._curves.get(f"{rate}_all_1", np.array([math.nan])) for rate in ("fmr", "fnmr"))
        return None if np.isnan(fmr_G).any() or np.isnan(fnmr_G).any() else (self._distance, 1 - fnmr_G, fmr_G)

    # --- searches ------------------------------------------------------------------------------------------

    def threshold_for_search(self, target_fpir: float, identities: int, references: int) -> Threshold:
        """The threshold at which a search of so many identities, with so many references each, finds somebody who is
        not among them in a share `target_fpir` of searches. Raises `NotSupported` where the calibration can't tell."""
        if not self._known:
            raise NotSupported("This checkpoint is not calibrated for `target_fpir`: `diptych calibrate` does it.")
        if not identities:
            return self._default
        known, times = self._closest(references)
        rates_G = self._fpir("calibration_", known, times, identities)
        floor = float(self._curves[f"supported_{known}"][0])
        at = int(np.searchsorted(rates_G, target_fpir * (1 + 1e-6), side="right")) - 1
        if at < 0 or not self._distance[at] >= floor - 1e-6:
            first = int(np.searchsorted(self._distance, floor - 1e-6)) if math.isfinite(floor) else len(rates_G)
            possible = [_rounded_up(float(rates_G[first]))] if first < len(rates_G) and rates_G[first] < 0.99 else []
            least = f"The smallest that it supports is {possible[0]:g}." if possible else "It supports none."
            raise NotSupported(
                f"The calibration holds too few false matches to promise target_fpir {target_fpir:g} in a gallery of "
                f"{identities} identities. {least}",
                supported_target_fpir=possible,
            )
        return Threshold(float(self._distance[at]), "calibration")

    def search_rates(self, threshold: float, identities: int, references: int) -> tuple[float | None, float | None]:
        """Expected FPIR of a search at a threshold, and expected number of false matches, as the test identities show
        them; null where they don't support it."""
        if not identities:
            return 0.0, 0.0
        if not self._known:
            return None, None
        known, times = self._closest(references)
        if not self._supports(known, threshold):
            return None, None
        rate = float(np.interp(threshold, self._distance, self._fpir("", known, times, identities)))
        matches = identities * times * self._read("probe_fmr", known, threshold)
        return rate, min(float(identities), matches)

    def _fpir_uncached(self, prefix: str, known: int, times: int, identities: int) -> Floats:
        mean, concentration = (self._curves[f"{prefix}probe_{of}_{known}"] for of in ("fmr", "concentration"))
        rates_G: Floats = np.maximum.accumulate(fpir(mean, concentration, identities * times))
        return rates_G


def probability(log_likelihood_ratio: float, prior: float) -> float:
    """Of a genuine pair, from the log-likelihood ratio and the probability before looking (Bayes).

    >>> probability(0.0, 0.2), round(probability(math.log(9), 0.5), 6)
    (0.2, 0.9)
    """
    odds = log_likelihood_ratio + math.log(prior) - math.log1p(-prior)
    return 1 / (1 + math.exp(-odds)) if odds > 0 else math.exp(odds) / (1 + math.exp(odds))


def _percentile(rate: float) -> float | None:
    return None if math.isnan(rate) else 100 * (1 - rate)


def _rounded_up(value: float) -> float:
    """To three digits that read well and are still supported."""
    if value <= 0:
        return value
    digits: float = 10.0 ** (2 - math.floor(math.log10(value)))
    return math.ceil(value * digits - 1e-9) / digits
