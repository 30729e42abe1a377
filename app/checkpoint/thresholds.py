"""Thresholds: where each comes from, and the operating point behind it.

`Calibration.choose` picks the threshold of a request; training decides between the other sources.
"""

from dataclasses import dataclass
from typing import Literal

ThresholdSource = Literal["calibration", "margin", "request"]


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold with the error rates measured for it.

    The threshold was chosen for `target_fmr` on calibration identities; `fmr` and `fnmr` were measured on
    `measured_on` identities, over `impostor_pairs` and `genuine_pairs`, of which `false_matches` and
    `false_non_matches` were decided wrongly. Rates weigh each pair of identities (FMR) and each identity
    (FNMR) the same, so they are not simply the quotients of the counts. Where the calibration holds too few
    false matches to promise anything, `supported` is false and the rest is null.
    """

    target_fmr: float
    supported: bool
    threshold: float | None = None
    fmr: float | None = None
    fmr_ci95: tuple[float, float] | None = None
    fnmr: float | None = None
    fnmr_ci95: tuple[float, float] | None = None
    measured_on: Literal["test", "calibration"] | None = None
    impostor_pairs: int | None = None
    false_matches: int | None = None
    genuine_pairs: int | None = None
    false_non_matches: int | None = None


@dataclass(frozen=True)
class Threshold:
    """A threshold, where it comes from, and the operating point behind it if there is one."""

    value: float
    source: ThresholdSource
    point: OperatingPoint | None = None
