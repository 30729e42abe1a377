"""Numbers as they leave the service: rounded to what they mean, after everything was decided on the exact ones.

Printed numbers obey the rule that the exact ones obeyed: a similar pair's distance is at most the printed threshold, a
dissimilar pair's is above it. So distances are rounded away from the threshold that decided. No rounding says more
than was measured: low ends of intervals go down, high ends up, and nothing becomes 0 or 1 unless it is exactly that.
"""

import math
from decimal import Context, Decimal
from functools import lru_cache

import numpy as np

from app.arrays import EmbeddingsF32
from app.checkpoint.matching import Verdict
from app.checkpoint.thresholds import Threshold

DECIMALS = 4  # of distances and thresholds; training counts pairs in steps of 0.0001
DIGITS, MOST_DIGITS = 3, 17  # significant digits of rates; 17 give every float64 back
STEP = 10.0**-DECIMALS
LARGEST_PERCENTILE = 99.99
# From 7 to 11 decimals: with fewer, unit embeddings print no shorter.
SCALE_K1 = 10.0 ** np.arange(7, 12)[:, None]


def round_threshold(threshold: Threshold) -> float:
    """To 4 decimals; a caller's own threshold comes back as it was given.

    >>> round_threshold(Threshold(0.47440000000000004, "calibration")), round_threshold(Threshold(0.123456, "request"))
    (0.4744, 0.123456)
    """
    return threshold.value if threshold.source == "request" else round_calibrated(threshold.value)


def round_calibrated(threshold: float) -> float:
    """A threshold of the checkpoint to 4 decimals."""
    return round(threshold, DECIMALS)


def round_band(inconclusive_to: float | None, threshold: float) -> float | None:
    """The end of the inconclusive band to 4 decimals, beyond the printed threshold.

    >>> round_band(0.5, 0.4744), round_band(0.47442, 0.4744)
    (0.5, 0.4745)
    """
    return None if inconclusive_to is None else max(round(inconclusive_to, DECIMALS), _next_above(threshold))


def round_distance(distance: float, verdict: Verdict, threshold: float, inconclusive_to: float | None = None) -> float:
    """To 4 decimals, so that the printed threshold and band give the same verdict on the printed distance.

    >>> [round_distance(d, v, 0.4744) for d, v in ((0.47437, "similar"), (0.47440001, "dissimilar"))]
    [0.4743, 0.4745]
    """
    if verdict == "similar":
        return min(_down(distance), threshold)
    if verdict == "inconclusive" and inconclusive_to is not None:
        return min(max(_up(distance), _next_above(threshold)), inconclusive_to)
    return max(_up(distance), _next_above(threshold if inconclusive_to is None else inconclusive_to))


def _down(value: float) -> float:
    nearest = round(value, DECIMALS)
    return nearest if nearest <= value else round(nearest - STEP, DECIMALS)


def _up(value: float) -> float:
    nearest = round(value, DECIMALS)
    return nearest if nearest >= value else round(nearest + STEP, DECIMALS)


def _next_above(value: float) -> float:
    return _up(math.nextafter(value, math.inf))


def round_rate(rate: float | None) -> float | None:
    """A rate, probability or expected number to 3 significant digits; more only where 3 would say 0 or 1.

    >>> [round_rate(rate) for rate in (0.008435459, 0.99949, 0.999972, 0.0, 1.0)]
    [0.00844, 0.999, 0.99997, 0.0, 1.0]
    """
    return None if rate is None else _significant(rate, 0)


def round_rate_up(rate: float | None) -> float | None:
    """The same, but never below: for the smallest rate that is supported, or the largest error that was seen.

    >>> round_rate_up(0.0008067376)
    0.000807
    """
    return None if rate is None else _significant(rate, 1)


def round_interval(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """The low end down and the high end up, to 3 significant digits.

    >>> round_interval((0.0057153592, 0.0124501311)), round_interval((0.3, 0.99912))
    ((0.00571, 0.0125), (0.3, 0.9992))
    """
    return None if interval is None else (_significant(interval[0], -1), _significant(interval[1], 1))


@lru_cache(maxsize=1024)  # the rates of a threshold are printed again and again
def _significant(value: float, towards: int) -> float:
    """`towards` -1: not above the value, 1: not below it, 0: the nearest."""
    if value in (0, 1):
        return value
    for digits in range(DIGITS, MOST_DIGITS + 1):
        text = f"{value:.{digits - 1}e}"
        rounded = float(text)
        if towards * (value - rounded) > 0:
            context = Context(prec=digits)
            beside = Decimal(text).next_plus(context) if towards > 0 else Decimal(text).next_minus(context)
            rounded = float(beside)
        if rounded not in (0, 1):
            break
    return rounded


def round_log_ratio(ratio: float | None) -> float | None:
    """To 2 decimals, which is 1 % of the likelihood ratio.

    >>> round_log_ratio(-0.001), round_log_ratio(5.67537)
    (0.0, 5.68)
    """
    return None if ratio is None else round(ratio, 2) + 0.0  # no -0.0


def round_percentile(percentile: float | None) -> float | None:
    """Down to 2 decimals and below 100: the next impostor pair may be closer than all that were seen.

    >>> round_percentile(99.99998), round_percentile(97.126), round_percentile(0.0)
    (99.99, 97.12, 0.0)
    """
    return None if percentile is None else min(math.floor(100 * percentile + 1e-9) / 100, LARGEST_PERCENTILE)


def shortest_decimals(embedding_D: EmbeddingsF32) -> list[float]:
    """Of each number of an embedding `[D]` the shortest decimal that gives the same float32 back.

    >>> shortest_decimals(np.array([0.1, -0.0055017625], dtype=np.float32))
    [0.1, -0.0055017625]
    """
    # All numbers and decimals at once: printing the numbers one by one takes far longer.
    rounded_KD = np.rint(embedding_D.astype(np.float64) * SCALE_K1) / SCALE_K1
    same_KD = rounded_KD.astype(np.float32) == embedding_D
    shortest_D = rounded_KD[same_KD.argmax(axis=0), np.arange(len(embedding_D))]
    for at in np.flatnonzero(~same_KD.any(axis=0)):  # numbers that are nearly zero
        shortest_D[at] = float(str(embedding_D[at]))
    numbers: list[float] = shortest_D.tolist()
    return numbers
