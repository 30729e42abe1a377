"""Whether live distances still look like those of the calibration.

Live pairs are an unknown mixture of genuine and impostor pairs, so no single curve describes them. What can be measured
is the distance to the nearest mixture: if that is large, the images have changed and the error rates may not hold.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from app.arrays import Floats
from app.checkpoint.calibration import Calibration

# Comparisons in the window, and how many there must be before anything is said.
WINDOW, LEAST = 1000, 200
# Golden-section search keeps this share of its interval at each step; after 29 steps 1e-6 of it is left.
GOLDEN, STEPS = (math.sqrt(5) - 1) / 2, 29
# Kolmogorov: sqrt(n) times the distance of a sample from its own distribution stays below this in 95 % of samples.
CHANCE = 1.36


@dataclass(frozen=True)
class DriftMeasurement:
    """Figures are None until the window is full enough, and for a checkpoint without curves."""

    comparisons: int
    drift: float | None = None
    # 95th percentile of the drift that as many independent pairs show by chance alone.
    chance: float | None = None
    genuine_share: float | None = None


class DriftMonitor:
    """The last comparisons of one process with one reference each. `note` may be called by any thread."""

    def __init__(self) -> None:
        self._window: tuple[Calibration | None, deque[float]] = (None, deque(maxlen=WINDOW))

    def note(self, calibration: Calibration, distance: float) -> None:
        """Add a comparison. Another calibration (the gallery has moved to another encoder) starts an empty window."""
        if self._window[0] is not calibration:
            self._window = (calibration, deque(maxlen=WINDOW))
        self._window[1].append(distance)

    def measure(self) -> DriftMeasurement:
        """Takes about a millisecond, so it is done when somebody asks."""
        calibration, window = self._window
        distances_N = np.array(window.copy())
        curves = calibration.curves.one_reference() if calibration else None
        if curves is None or len(distances_N) < LEAST:
            return DriftMeasurement(len(distances_N))
        drift, share = mixture_distance(distances_N, *curves)
        return DriftMeasurement(len(distances_N), drift, CHANCE / math.sqrt(len(distances_N)), share)


def mixture_distance(distances_N: Floats, grid_G: Floats, genuine_G: Floats, impostor_G: Floats) -> tuple[float, float]:
    """How far a sample is from the nearest mixture of two distributions, and the share of the first in that mixture.

    min over s in [0, 1] of sup over d of |F(d) - (s * genuine(d) + (1 - s) * impostor(d))|, the Kolmogorov-Smirnov
    distance with one free parameter; F is the sample's distribution function, `genuine_G` and `impostor_G` are the
    others' at the distances `grid_G`, read as straight lines between. The supremum of functions that are convex in s
    is convex, so golden-section search finds its smallest value.

    With genuine pairs spread evenly over 0 to 1 and impostors over 1 to 2, a sample that is even on each side is near
    a mixture, one that is all in one place is not:

    >>> grid, genuine, impostor = np.array([0.0, 1, 2]), np.array([0.0, 1, 1]), np.array([0.0, 0, 1])
    >>> even = np.array([0.125, 0.375, 0.625, 0.875, 1.25, 1.75])
    >>> [round(x, 3) for x in mixture_distance(even, grid, genuine, impostor)]
    [0.083, 0.667]
    >>> [round(x, 3) for x in mixture_distance(np.full(6, 0.5), grid, genuine, impostor)]
    [0.5, 1.0]
    """
    at_N = np.sort(distances_N)
    genuine_N, impostor_N = (np.interp(at_N, grid_G, curve_G) for curve_G in (genuine_G, impostor_G))
    steps = np.arange(len(at_N) + 1) / len(at_N)
    below_N, above_N = steps[:-1], steps[1:]

    def distance_to(share: float) -> float:
        mixed_N = share * genuine_N + (1 - share) * impostor_N
        return float(max((above_N - mixed_N).max(), (mixed_N - below_N).max()))

    low, high = 0.0, 1.0
    for _ in range(STEPS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if distance_to(left) <= distance_to(right):
            high = right
        else:
            low = left
    best = min((low, (low + high) / 2, high), key=distance_to)
    return distance_to(best), best
