"""Numbers as they leave: rounded, and still obeying the rule by which they were decided."""

import itertools
import math

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from app.checkpoint.matching import decide
from app.checkpoint.thresholds import Threshold
from app.http.rounding import (
    round_band,
    round_distance,
    round_interval,
    round_log_ratio,
    round_percentile,
    round_rate,
    round_rate_up,
    round_threshold,
    shortest_decimals,
)

thresholds = st.builds(Threshold, st.floats(0, 2), st.sampled_from(["calibration", "margin", "request"]))
# Distances at and beside a threshold by a hair's breadth, and any others.
offsets = st.one_of(st.sampled_from([0.0, 1e-17, 1e-9, 4e-5, 5e-5, 6e-5, 1e-4]), st.floats(0, 0.001), st.floats(0, 2))
rates = st.floats(0, 1)


def decimals(value: float) -> int:
    """Digits behind the point of the shortest decimal that gives the number back."""
    return len(np.format_float_positional(value, unique=True, trim="-").partition(".")[2])


@given(thresholds, offsets, st.sampled_from([-1, 1]), st.one_of(st.none(), offsets))
@example(Threshold(0.30006, "margin"), 1e-5, 1, None)  # the threshold rounds up past the distance
@example(Threshold(0.30006, "margin"), 0.0, 1, 2e-5)  # a band within one step of 0.0001
@example(Threshold(0.3, "request"), 1e-17, 1, None)
@example(Threshold(0.47440000000000004, "calibration"), 0.0, 1, None)
def test_printed_numbers_give_the_verdict_that_was_decided(
    threshold: Threshold, offset: float, side: int, width: float | None
) -> None:
    """However close the distance is to the threshold or to the end of the band; and they are close to the true ones."""
    band = None if width is None or threshold.value + width <= threshold.value else threshold.value + width
    for start in {threshold.value, band or threshold.value}:
        for distance in (start, math.nextafter(start, 3), math.nextafter(start, 0), start + side * offset):
            distance = min(max(distance, 0.0), 2.0)
            verdict = decide(distance, threshold.value, band)
            printed_threshold = round_threshold(threshold)
            printed_band = round_band(band, printed_threshold)
            printed = round_distance(distance, verdict, printed_threshold, printed_band)
            assert decide(printed, printed_threshold, printed_band) == verdict
            assert abs(printed - distance) <= 2.501e-4 and abs(printed_threshold - threshold.value) <= 0.501e-4
            assert printed_band is None or abs(printed_band - (band or 0)) <= 1.501e-4
            if threshold.source == "request":
                assert printed_threshold == threshold.value
            else:
                assert decimals(printed_threshold) <= 4 and decimals(printed) <= 4


@given(thresholds, st.lists(st.floats(0, 2), max_size=30))
def test_matches_stay_in_order(threshold: Threshold, distances: list[float]) -> None:
    """Nearest first, as they were found: rounding may join two, and swaps none."""
    printed_threshold = round_threshold(threshold)
    printed = [
        round_distance(distance, decide(distance, threshold.value), printed_threshold) for distance in sorted(distances)
    ]
    assert all(first <= second for first, second in itertools.pairwise(printed))


@given(thresholds, st.floats(0, 1))
def test_a_distance_is_rounded_away_from_the_threshold(threshold: Threshold, distance: float) -> None:
    """Similar down, dissimilar up, unless the threshold itself was rounded past it."""
    printed_threshold = round_threshold(threshold)
    verdict = decide(distance, threshold.value)
    printed = round_distance(distance, verdict, printed_threshold)
    assert printed <= distance if verdict == "similar" else printed >= distance


def digits(value: float) -> int:
    """Significant digits of the shortest decimal that gives the number back."""
    return len(f"{value!r}".partition("e")[0].replace(".", "").lstrip("0").rstrip("0"))


@given(rates)
@example(0.9995)
@example(0.99999999)
@example(5e-324)
@example(1 - 2**-53)
def test_a_rate_has_three_digits_and_is_never_rounded_to_certainty(rate: float) -> None:
    """More digits where three would say 1; 0 and 1 are left for what is exactly that."""
    printed = round_rate(rate)
    assert printed is not None and (printed == 0) == (rate == 0) and (printed == 1) == (rate == 1)
    assert abs(printed - rate) <= 0.00501 * max(rate, 5e-322)
    assert digits(printed) <= 3 or rate >= 0.9995
    assert round_rate(printed) == printed
    up = round_rate_up(rate)
    assert up is not None and up >= rate and (up == 1) == (rate == 1)


@given(rates, rates)
def test_rounding_keeps_the_order_of_rates(first: float, second: float) -> None:
    """A larger rate is never printed as a smaller one."""
    low, high = (round_rate(rate) for rate in sorted((first, second)))
    assert low is not None and high is not None and low <= high


@given(rates, rates, rates)
@example(0.9991, 0.9991, 0.9991)
@example(0.3, 0.3, 0.3)
@example(0.1, 0.1000001, 0.1000002)
def test_an_interval_only_ever_widens(first: float, second: float, third: float) -> None:
    """And holds the printed rate."""
    low, rate, high = sorted((first, second, third))
    printed, printed_rate = round_interval((low, high)), round_rate(rate)
    assert printed is not None and printed_rate is not None
    assert printed[0] <= low and high <= printed[1]
    assert (printed[0] == 0) == (low == 0) and (printed[1] == 1) == (high == 1)
    assert printed[0] <= printed_rate <= printed[1]
    assert digits(printed[0]) <= 3 or low > 0.999
    assert digits(printed[1]) <= 3 or high > 0.999
    assert printed[0] >= low * 0.98999 and printed[1] <= max(high * 1.01001, 5e-322)


@given(st.floats(0, 100))
def test_a_percentile_stays_below_a_hundred(percentile: float) -> None:
    """Nothing is closer than every pair that there could be."""
    printed = round_percentile(percentile)
    assert printed is not None and 0 <= printed <= 99.99 and decimals(printed) <= 2
    assert printed <= percentile + 1e-9 and printed >= min(percentile, 99.99) - 0.01


@given(st.floats(-50, 50))
def test_a_log_likelihood_ratio_keeps_its_sign_and_two_decimals(ratio: float) -> None:
    """No minus before a zero."""
    printed = round_log_ratio(ratio)
    assert printed is not None and abs(printed - ratio) <= 0.00501 and decimals(printed) <= 2
    assert not (printed == 0 and math.copysign(1, printed) < 0)


def test_what_is_not_known_stays_so() -> None:
    """None in, None out."""
    assert [f(None) for f in (round_rate, round_rate_up, round_interval, round_log_ratio, round_percentile)] == [
        None
    ] * 5
    assert round_band(None, 0.5) is None


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40))
@example([1e-30, 0.1, -0.0, 1.0, 2**-40, 1 / 3])
def test_an_embedding_comes_back_bit_by_bit(numbers: list[float]) -> None:
    """And is never longer than the shortest decimals that NumPy finds, but for numbers that are nearly zero."""
    embedding_D = np.array(numbers, dtype=np.float32)
    printed = shortest_decimals(embedding_D)
    assert np.array(printed, dtype=np.float32).tobytes() == embedding_D.tobytes()
    for number, exact in zip(printed, embedding_D, strict=True):
        assert abs(exact) < 1e-8 or len(f"{number!r}") <= len(f"{float(str(exact))!r}")
