"""Distance and verdict: the arithmetic that every answer rests on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.checkpoint.matching import decide, distance, distances, fpir


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


@given(st.floats(0, 2), st.floats(0, 1), st.floats(0, 1))
def test_between_two_thresholds_nothing_is_decided(apart: float, threshold: float, band: float) -> None:
    """And outside of the band it is as without it."""
    verdict = decide(apart, threshold, threshold + band)
    assert (verdict == "inconclusive") == (threshold < apart <= threshold + band)
    if verdict != "inconclusive":
        assert verdict == decide(apart, threshold)


@given(st.floats(1e-6, 0.5), st.floats(0.01, 1e5), st.integers(1, 10_000))
def test_a_larger_gallery_finds_strangers_more_often(mean: float, concentration: float, identities: int) -> None:
    """At least as often as one identity does, at most as often as if all probes were alike."""
    rate = float(fpir(np.array(mean), np.array(concentration), identities))
    assert mean - 1e-6 <= rate <= 1 - (1 - mean) ** identities + 1e-6
    assert rate <= float(fpir(np.array(mean), np.array(concentration), identities + 1)) + 1e-9


def test_the_rate_of_a_gallery_is_the_mean_over_probes() -> None:
    """Against drawing the probes' rates from a beta distribution."""
    drawn = np.random.default_rng(0).beta(0.02 * 3, 0.98 * 3, 400_000)
    for identities in (1, 10, 200):
        expected = float(np.mean(1 - (1 - drawn) ** identities))
        assert float(fpir(np.array(0.02), np.array(3.0), identities)) == pytest.approx(expected, rel=0.02)
