"""What a checkpoint's calibration says of a distance: on one from a real training run, and on made-up ones."""

import math
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.checkpoint.calibration import Calibration, probability, read_calibration
from app.checkpoint.curves import ordered_by_references
from app.checkpoint.searches import search_rates, threshold_for_search
from app.checkpoint.store import load_checkpoint
from app.checkpoint.thresholds import OperatingPoint, Threshold
from app.errors import InvalidRequest, NotSupported
from tests.files import CALIBRATED, GOLDEN


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return read_calibration(load_checkpoint(CALIBRATED))


def test_any_target_between_the_operating_points_has_a_threshold_between_theirs(calibration: Calibration) -> None:
    """And the calibration's own FMR at it is at most the target."""
    targets = np.geomspace(0.02, 0.5, 20)
    thresholds = [calibration.at_fmr(float(target)).value for target in targets]
    assert thresholds == sorted(thresholds)
    for target, threshold in zip(targets, thresholds, strict=True):
        assert calibration.curves.value("calibration_fmr_all", 1, threshold) <= target + 1e-6


def test_a_threshold_in_the_request_is_taken_as_it_is(calibration: Calibration) -> None:
    """Its source says so."""
    assert calibration.choose(threshold=0.3) == Threshold(0.3, "request")


@st.composite
def made_up(draw: st.DrawFn) -> Calibration:
    """Curves as a noisy sample gives them: each for its own number of references, crossing as they like."""
    grid = 41
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    numbers = draw(st.sampled_from([[1], [1, 2], [1, 2, 3, 4, 5], [1, 3, 10]]))
    curves: dict[str, Any] = {"distance": np.linspace(0, 2, grid)}

    def rising(steepness: float) -> Any:
        steps = rng.gamma(steepness, size=grid) * (rng.random(grid) < 0.7)
        return np.minimum(np.cumsum(steps) / max(steps.sum(), 1e-9), 1.0)

    for number in numbers:
        for prefix in ("", "calibration_"):
            curves[f"{prefix}fmr_all_{number}"] = rising(0.3)
            curves[f"{prefix}fnmr_all_{number}"] = 1 - rising(0.3)
            curves[f"{prefix}probe_fmr_{number}"] = rising(0.3)
            curves[f"{prefix}probe_concentration_{number}"] = rng.gamma(1.0, 30.0, grid) + 1e-4
        for rate in ("fmr", "fnmr"):
            own = curves[f"{rate}_all_{number}"]
            curves[f"{rate}_low_{number}"] = own * rng.random()
            curves[f"{rate}_high_{number}"] = np.minimum(1, own * (1 + rng.random()))
        curves[f"llr_{number}"] = np.sort(rng.normal(0, 3, grid))[::-1]
        curves[f"supported_{number}"] = rng.choice([0.0, 0.1, 0.5, np.inf], 2)
    curves = {name: curve.astype(np.float32) for name, curve in curves.items()}
    fine = np.sort(rng.random(3) * 2)
    points = [
        OperatingPoint(target, supported=True, threshold=float(threshold), fmr=target, fnmr=0.1)
        for target, threshold in zip((0.001, 0.01, 0.1), fine, strict=True)
    ]
    # As training chooses it: an operating point, or half the margin.
    defaults = [Threshold(point.threshold or 0.0, "calibration", point) for point in points]
    default = draw(st.sampled_from([*defaults, Threshold(0.5, "margin")]))
    return Calibration(curves, default, points, has_likelihood_ratio=True)


@given(made_up(), st.floats(1e-4, 0.9), st.lists(st.integers(1, 60), min_size=2, max_size=12))
def test_a_threshold_never_grows_with_the_number_of_references(
    calibration: Calibration, target: float, numbers: list[int]
) -> None:
    """The default, and that for any target that is supported; within what was measured and beyond it."""
    numbers = sorted(numbers)
    chosen = [calibration.choose(references).value for references in numbers]
    assert chosen == sorted(chosen, reverse=True)
    values = []
    for references in numbers:
        with suppress(NotSupported):
            values.append(calibration.at_fmr(target, references).value)
    assert values == sorted(values, reverse=True)


@given(made_up(), st.floats(0, 2), st.lists(st.integers(1, 60), min_size=2, max_size=12))
def test_more_references_match_more_often_at_the_same_threshold(
    calibration: Calibration, threshold: float, numbers: list[int]
) -> None:
    """FMR and its interval never fall, FNMR and its interval never rise, as far as they are supported."""
    found = [calibration.figures(0.5, Threshold(threshold, "request"), number) for number in sorted(numbers)]
    rates = [figures.fmr for figures in found if figures.fmr is not None]
    intervals = [figures.fmr_ci95 for figures in found if figures.fmr_ci95 is not None]
    assert rates == sorted(rates)
    assert all(list(ends) == sorted(ends) for ends in zip(*intervals, strict=True))
    misses = [figures.fnmr for figures in found if figures.fnmr is not None]
    intervals = [figures.fnmr_ci95 for figures in found if figures.fnmr_ci95 is not None]
    assert misses == sorted(misses, reverse=True)
    assert all(list(ends) == sorted(ends, reverse=True) for ends in zip(*intervals, strict=True))


@given(made_up(), st.floats(1e-3, 0.9), st.integers(1, 10_000), st.lists(st.integers(1, 30), min_size=2, max_size=6))
def test_a_searchs_threshold_never_grows_with_references_or_identities(
    calibration: Calibration, target: float, identities: int, numbers: list[int]
) -> None:
    """Each of them is another chance of a false match."""
    for asked in (
        [(identities, number) for number in sorted(numbers)],
        [(identities * number, numbers[0]) for number in sorted(numbers)],
    ):
        values = []
        for size, references in asked:
            with suppress(NotSupported):
                values.append(threshold_for_search(calibration, target, size, references).value)
        assert values == sorted(values, reverse=True)


@given(made_up())
def test_ordered_curves_stay_as_they_are(calibration: Calibration) -> None:
    """What training wrote in order is read as it was written, so old and new checkpoints are read alike."""
    ordered = ordered_by_references(calibration.curves._curves)
    assert all(np.array_equal(curve, calibration.curves._curves[name]) for name, curve in ordered.items())


def test_beyond_what_was_measured_nothing_is_promised(calibration: Calibration) -> None:
    """The threshold shrinks all the same."""
    with pytest.raises(NotSupported, match="for 400 references"):
        calibration.at_fmr(0.01, 400)
    default = calibration.choose(400)
    assert default.point is None and default.value <= calibration.choose().value
    assert calibration.figures(0.1, default, 400).log_likelihood_ratio is None


def test_rates_of_the_callers_own_threshold_lie_on_the_measured_curve(calibration: Calibration) -> None:
    """With intervals around them; null below what the test identities support."""
    before = (0.0, 1.0)
    for threshold in (0.7, 0.8, 0.9, 1.0):
        figures = calibration.figures(0.5, Threshold(threshold, "request"))
        assert figures.fmr is not None and figures.fnmr is not None and figures.fmr_ci95 is not None
        assert figures.fmr_ci95[0] <= figures.fmr <= figures.fmr_ci95[1]
        assert figures.fmr >= before[0] and figures.fnmr <= before[1]
        before = (figures.fmr, figures.fnmr)
    nothing = calibration.figures(0.5, Threshold(0.01, "request"))
    assert nothing.fmr is None and nothing.fmr_ci95 is None and nothing.fnmr is not None


def test_larger_galleries_take_smaller_thresholds_for_the_same_share_of_strangers(calibration: Calibration) -> None:
    """And say how many false matches to expect; an empty one has none."""
    before = 2.0
    for size in (1, 3, 10):
        chosen = threshold_for_search(calibration, 0.6, size, 1)
        rate, matches = search_rates(calibration, chosen.value, size, 1)
        assert rate is not None and matches is not None
        assert 0.3 < rate < 0.9  # chosen on calibration identities, measured on test identities
        assert matches >= rate - 1e-6
        assert chosen.value < before
        before = chosen.value
    with pytest.raises(NotSupported) as refusal:
        threshold_for_search(calibration, 0.001, 100_000, 1)
    assert "supported_target_fpir" in refusal.value.extra
    assert search_rates(calibration, 0.5, 0, 1) == (0.0, 0.0)


def test_the_smallest_target_that_a_refusal_names_is_supported(calibration: Calibration) -> None:
    """For one reference and for several; what is no rate is no target."""
    for references in (1, 2, 4, 7):
        with pytest.raises(NotSupported) as refusal:
            calibration.at_fmr(1e-9, references)
        (smallest,) = refusal.value.extra["supported_target_fmr"]  # type: ignore[misc]
        chosen = calibration.at_fmr(float(smallest), references)
        known, _ = calibration.curves.closest(references)
        assert chosen.value >= calibration.curves.supported_from(known)
    for nonsense in (0.0, 1.0, float("nan")):
        with pytest.raises(InvalidRequest):
            calibration.at_fmr(nonsense)


def test_a_checkpoint_from_before_intervals_says_what_it_knows_and_null_for_the_rest() -> None:
    """Its operating points still hold."""
    old = read_calibration(load_checkpoint(GOLDEN))
    figures = old.figures(0.3, old.choose())
    assert figures.log_likelihood_ratio is None and figures.percentile is None and figures.fmr_ci95 is None
    with pytest.raises(NotSupported, match="diptych calibrate"):
        old.at_fmr(0.05)
    assert old.choose(3) == Threshold(old.choose().value, old.choose().source)
    with pytest.raises(NotSupported, match="target_fpir"):
        threshold_for_search(old, 0.1, 10, 1)
    assert search_rates(old, 0.5, 10, 1) == (None, None)


@given(st.floats(-30, 30), st.floats(1e-9, 1 - 1e-9))
def test_a_probability_lies_on_the_side_that_the_evidence_points_to(ratio: float, prior: float) -> None:
    """Between 0 and 1, above the prior if the ratio speaks for it."""
    found = probability(ratio, prior)
    assert 0 <= found <= 1
    assert math.isclose(probability(0.0, prior), prior, rel_tol=1e-9)
    if abs(ratio) > 1e-6:
        assert (found > prior) == (ratio > 0) or found == pytest.approx(prior, abs=1e-12)
