"""Distance and verdict: the arithmetic that every answer rests on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConflictingFields, NotSupported
from app.matching import OperatingPoint, Threshold, choose_threshold, decide, distance, distances

DEFAULT = Threshold(0.4, "calibration")
POINTS = [OperatingPoint(0.1, True, threshold=0.6, fmr=0.1), OperatingPoint(0.001, False)]


def unit(seed: int, count: int = 1) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(st.floats(0, 2), st.floats(0, 2))
def test_similar_means_at_or_below_the_threshold(apart: float, threshold: float) -> None:
    """The one rule, its edge included."""
    assert (decide(apart, threshold) == "similar") == (apart <= threshold)
    assert decide(threshold, threshold) == "similar"


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_distance_is_symmetric_bounded_and_zero_for_itself(a: int, b: int) -> None:
    """A metric on the unit sphere."""
    first, second = unit(a)[0], unit(b)[0]
    assert distance(first, second) == distance(second, first)
    assert 0 <= distance(first, second) <= 2
    assert distance(first, first) == 0
    assert distance(first, -first) == pytest.approx(2, abs=1e-6)


def test_tiny_distances_survive() -> None:
    """Two embeddings that differ in the last digits are a known distance apart, which the expansion
    |a|^2 + |b|^2 - 2ab in float32 would lose."""
    a = unit(0)[0]
    b = a.copy()
    b[0] += np.float32(1e-5)
    assert distance(a, b) == pytest.approx(abs(float(b[0]) - float(a[0])), rel=1e-6)


def test_distances_to_many_are_the_distances_to_each() -> None:
    """Verify and search can't disagree."""
    probe, references = unit(1)[0], unit(2, 50)
    assert distances(probe, references).tolist() == [distance(probe, reference) for reference in references]


def test_a_request_may_bring_its_own_threshold() -> None:
    """And the answer says so."""
    assert choose_threshold(DEFAULT, POINTS, threshold=0.3) == Threshold(0.3, "request")
    assert choose_threshold(DEFAULT, POINTS) is DEFAULT


def test_a_target_takes_the_calibrated_threshold_or_is_refused() -> None:
    """What was not calibrated is not guessed; the refusal lists what was."""
    assert choose_threshold(DEFAULT, POINTS, target_fmr=0.1) == Threshold(0.6, "calibration", POINTS[0])
    for target in (0.001, 0.05):
        with pytest.raises(NotSupported, match=r"Calibrated: 0\.1") as refusal:
            choose_threshold(DEFAULT, POINTS, target_fmr=target)
        assert refusal.value.extra == {"supported_target_fmr": [0.1]}


def test_threshold_and_target_exclude_each_other() -> None:
    """Which of the two would win is nobody's guess."""
    with pytest.raises(ConflictingFields):
        choose_threshold(DEFAULT, POINTS, threshold=0.3, target_fmr=0.1)
