"""What a checkpoint's calibration says of a distance, on one from a real training run."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.checkpoint import format as format_1
from app.checkpoint.calibration import Calibration, probability
from app.checkpoint.matching import Threshold
from app.errors import ConflictingFields, InvalidRequest, NotSupported
from tests.files import GOLDEN


@pytest.fixture(scope="module")
def calibration(trained: Path) -> Calibration:
    return Calibration(format_1.load(trained))


def test_any_target_between_the_operating_points_has_a_threshold_between_theirs(calibration: Calibration) -> None:
    """And the calibration's own FMR at it is at most the target."""
    targets = np.geomspace(0.02, 0.5, 20)
    thresholds = [calibration.at_fmr(float(target)).value for target in targets]
    assert thresholds == sorted(thresholds)
    for target, threshold in zip(targets, thresholds, strict=True):
        assert calibration._read("calibration_fmr_all", 1, threshold) <= target + 1e-6


def test_threshold_and_target_exclude_each_other(calibration: Calibration) -> None:
    """Which of the two would win is nobody's guess."""
    with pytest.raises(ConflictingFields):
        calibration.choose(threshold=0.3, target_fmr=0.1)
    assert calibration.choose(threshold=0.3) == Threshold(0.3, "request")


def test_more_references_take_a_smaller_threshold_for_the_same_rate(calibration: Calibration) -> None:
    """As far as measured and beyond; and where nothing can be promised, the default promises nothing."""
    thresholds = [calibration.at_fmr(0.2, references).value for references in (1, 2, 3, 5)]
    assert thresholds == sorted(thresholds, reverse=True)
    bound = calibration.at_fmr(0.5, 12)
    assert bound.value <= calibration.at_fmr(0.5, 5).value
    with pytest.raises(NotSupported, match="for 400 references"):
        calibration.at_fmr(0.01, 400)
    default = calibration.choose(400)
    assert default.point is None
    chosen = [calibration.choose(references).value for references in (*range(1, 14), 20, 50, 400)]
    assert chosen == sorted(chosen, reverse=True)
    assert calibration.said(0.1, default, 400).log_likelihood_ratio is None


def test_rates_of_the_callers_own_threshold_lie_on_the_measured_curve(calibration: Calibration) -> None:
    """With intervals around them; null below what the test identities support."""
    before = (0.0, 1.0)
    for threshold in (0.7, 0.8, 0.9, 1.0):
        said = calibration.said(0.5, Threshold(threshold, "request"))
        assert said.fmr is not None and said.fnmr is not None and said.fmr_ci95 is not None
        assert said.fmr_ci95[0] <= said.fmr <= said.fmr_ci95[1]
        assert said.fmr >= before[0] and said.fnmr <= before[1]
        before = (said.fmr, said.fnmr)
    nothing = calibration.said(0.5, Threshold(0.01, "request"))
    assert nothing.fmr is None and nothing.fmr_ci95 is None and nothing.fnmr is not None


def test_larger_galleries_take_smaller_thresholds_for_the_same_share_of_strangers(calibration: Calibration) -> None:
    """And say how many false matches to expect; an empty one has none."""
    before = 2.0
    for size in (1, 3, 10):
        chosen = calibration.threshold_for_search(0.6, size, 1)
        rate, matches = calibration.search_rates(chosen.value, size, 1)
        assert rate is not None and matches is not None
        assert 0.3 < rate < 0.9  # chosen on calibration identities, measured on test identities
        assert matches >= rate - 1e-6
        assert chosen.value < before
        before = chosen.value
    with pytest.raises(NotSupported) as refusal:
        calibration.threshold_for_search(0.001, 100_000, 1)
    assert "supported_target_fpir" in refusal.value.extra
    assert calibration.search_rates(0.5, 0, 1) == (0.0, 0.0)


def test_the_smallest_target_that_a_refusal_names_is_supported(calibration: Calibration) -> None:
    """For one reference and for several; what is no rate is no target."""
    for references in (1, 2, 4, 7):
        with pytest.raises(NotSupported) as refusal:
            calibration.at_fmr(1e-9, references)
        (smallest,) = refusal.value.extra["supported_target_fmr"]  # type: ignore[misc]
        chosen = calibration.at_fmr(float(smallest), references)
        known, _ = calibration._closest(references)
        assert chosen.value >= calibration._curves[f"supported_{known}"][0] - 1e-6
    for nonsense in (0.0, 1.0, float("nan")):
        with pytest.raises(InvalidRequest):
            calibration.at_fmr(nonsense)


def test_a_checkpoint_from_before_intervals_says_what_it_knows_and_null_for_the_rest() -> None:
    """Its operating points still hold."""
    old = Calibration(format_1.load(GOLDEN))
    said = old.said(0.3, old.choose())
    assert said.log_likelihood_ratio is None and said.percentile is None and said.fmr_ci95 is None
    with pytest.raises(NotSupported, match="diptych calibrate"):
        old.at_fmr(0.05)
    assert old.choose(3) == Threshold(old.choose().value, old.choose().source)
    with pytest.raises(NotSupported, match="target_fpir"):
        old.threshold_for_search(0.1, 10, 1)
    assert old.search_rates(0.5, 10, 1) == (None, None)


@given(st.floats(-30, 30), st.floats(1e-9, 1 - 1e-9))
def test_a_probability_lies_on_the_side_that_the_evidence_points_to(ratio: float, prior: float) -> None:
    """Between 0 and 1, above the prior if the ratio speaks for it."""
    found = probability(ratio, prior)
    assert 0 <= found <= 1
    assert math.isclose(probability(0.0, prior), prior, rel_tol=1e-9)
    if abs(ratio) > 1e-6:
        assert (found > prior) == (ratio > 0) or found == pytest.approx(prior, abs=1e-12)
