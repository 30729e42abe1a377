"""The curves of `calibration.npz`, read by distance and by number of references.

Each curve is measured for one number of references R, and is named by it: `fmr_all_3` is the false-match rate of claims
with three references. Measured apart, curves for 4 and 5 references may cross by chance, although the nearest of five
references is never farther away than the nearest of four of them. They are put in that order before they are used.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from app.arrays import Array, Floats
from app.checkpoint.matching import fpir

# With more references these never fall, and those never rise.
RISING = ("fmr_all", "fmr_low", "fmr_high", "calibration_fmr_all", "probe_fmr", "calibration_probe_fmr")
FALLING = ("fnmr_all", "fnmr_low", "fnmr_high", "calibration_fnmr_all")


def numbers_of_references(curves: Mapping[str, Array]) -> list[int]:
    """The numbers of references that have curves of their own, ascending.

    >>> numbers_of_references({"supported_2": np.zeros(2), "supported_1": np.zeros(2), "distance": np.zeros(3)})
    [1, 2]
    """
    return sorted(int(name.removeprefix("supported_")) for name in curves if name.startswith("supported_"))


def ordered_by_references(curves: Mapping[str, Array]) -> dict[str, Array]:
    """The same curves, with rates and their interval ends in order of the number of references.

    The running maximum (of false-match rates) or minimum (of false-non-match rates) over smaller numbers of
    references, so each curve stays a bound of what was measured.

    >>> curves = {f"fmr_all_{R}": np.array(fmr) for R, fmr in ((1, [0.0, 0.2]), (2, [0.1, 0.1]))}
    >>> curves |= {f"supported_{R}": np.zeros(2) for R in (1, 2)}
    >>> ordered_by_references(curves)["fmr_all_2"].tolist()
    [0.1, 0.2]
    """
    ordered = dict(curves)
    numbers = numbers_of_references(curves)
    for names, extreme in ((RISING, np.maximum), (FALLING, np.minimum)):
        for name in names:
            for fewer, more in itertools.pairwise(numbers):
                if f"{name}_{fewer}" in ordered and f"{name}_{more}" in ordered:
                    ordered[f"{name}_{more}"] = extreme(ordered[f"{name}_{fewer}"], ordered[f"{name}_{more}"])
    return ordered


class Curves:
    """Curves over the distances `distance_G`, in order of the number of references."""

    def __init__(self, curves: Mapping[str, Array]) -> None:
        self._curves = {name: curve.astype(np.float64) for name, curve in ordered_by_references(curves).items()}
        self.distance_G: Floats = self._curves["distance"].round(6)  # stored as float32
        # Empty for checkpoints of earlier versions, which hold a curve for one reference, without intervals.
        self.numbers = numbers_of_references(curves)
        self.fpir = lru_cache(maxsize=64)(self._fpir)  # galleries change less often than they are searched

    def closest(self, references: int) -> tuple[int, int]:
        """The number R whose curves hold for so many references, and how many sets of R references make them up.

        Beyond the largest number that was measured, R references each match by chance at most as often as R
        single ones together (the union bound).
        """
        if references <= self.numbers[-1]:
            return self.numbers[bisect_left(self.numbers, references)], 1
        return self.numbers[-1], -(-references // self.numbers[-1])

    def curve(self, name: str, number: int) -> Floats:
        """The curve `[G]` of that name, for a number of references that has curves."""
        return self._curves[f"{name}_{number}"]

    def value(self, name: str, number: int, distance: float) -> float:
        """A curve at one distance; NaN where there were no such pairs."""
        return float(np.interp(distance, self.distance_G, self.curve(name, number)))

    def largest_within(self, rate_G: Floats, target: float) -> int | None:
        """The last point of the grid at which a rising rate is at most the target; None where there is none."""
        found = int(np.searchsorted(rate_G, target * (1 + 1e-6), side="right")) - 1
        return None if found < 0 else found

    def supported_from(self, number: int, *, measured: bool = False) -> float:
        """The smallest distance at which the calibration identities hold enough false matches; with `measured`, at
        which the test identities hold enough too. Infinite where they nowhere do."""
        limits = self._curves[f"supported_{number}"]
        return float(limits.max() if measured else limits[0]) - 1e-6

    def _fpir(self, prefix: str, references: int, identities: int) -> Floats:
        """Expected FPIR `[G]` of a search among so many identities with so many references each.

        `prefix` is `calibration_` for what chose thresholds, and empty for what the test identities show.
        """
        number, times = self.closest(references)
        fewer = self.numbers[: self.numbers.index(number) + 1]
        means, spreads = ([self.curve(f"{prefix}probe_{of}", R) for R in fewer] for of in ("fmr", "concentration"))
        rates_G = [fpir(mean_G, spread_G, identities * times) for mean_G, spread_G in zip(means, spreads, strict=True)]
        rate_G: Floats = np.maximum.accumulate(np.maximum.reduce(rates_G))
        return rate_G

    def one_reference(self) -> tuple[Floats, Floats, Floats] | None:
        """Distances `[G]`, and the shares of genuine and of impostor pairs with one reference that lie within each;
        None where nothing was measured."""
        fmr_G, fnmr_G = (self._curves.get(f"{rate}_all_1", np.array([math.nan])) for rate in ("fmr", "fnmr"))
        return None if np.isnan(fmr_G).any() or np.isnan(fnmr_G).any() else (self.distance_G, 1 - fnmr_G, fmr_G)
