"""Distance, calibration and wish to a verdict: worked examples on the bundled checkpoint, and what holds for any."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.checkpoint.calibration import Calibration, probability, read_calibration
from app.checkpoint.matching import decide
from app.checkpoint.store import load_checkpoint
from app.checkpoint.thresholds import Threshold
from app.checkpoint.verdict import SearchWish, Wish, judge, judge_search
from app.errors import ConflictingFields, NotSupported
from tests.files import GOLDEN

OMNIGLOT = read_calibration(load_checkpoint("omniglot"))
OLD = read_calibration(load_checkpoint(GOLDEN))  # of format version 1: operating points, but no curves

distances = st.floats(0, 2)
rates = st.one_of(st.none(), st.floats(0.001, 0.5))
calibrations = st.sampled_from([OMNIGLOT, OLD])


@st.composite
def wishes(draw: st.DrawFn) -> Wish:
    """A threshold, a target, or neither."""
    chosen = draw(st.sampled_from(["threshold", "target_fmr", "neither"]))
    return Wish(
        threshold=draw(distances) if chosen == "threshold" else None,
        target_fmr=draw(st.floats(0.001, 0.5)) if chosen == "target_fmr" else None,
        inconclusive_fmr=draw(rates),
        usual_inconclusive_fmr=draw(rates),
        prior=draw(st.floats(1e-6, 1 - 1e-6)),
    )


# --- worked examples -----------------------------------------------------------------------------------------


def test_the_default_is_the_operating_point_of_the_checkpoint() -> None:
    """At 0.4744, chosen for 1 %, 0.84 % of impostor pairs were called similar."""
    judgement = judge(0.4, OMNIGLOT, Wish())
    assert judgement.verdict == "similar" and judgement.inconclusive_to is None
    assert judgement.threshold.value == pytest.approx(0.4744) and judgement.threshold.source == "calibration"
    assert judgement.target_fmr == 0.01
    assert judgement.fmr == pytest.approx(0.008435, abs=1e-6) and judgement.fnmr == pytest.approx(0.034544, abs=1e-6)
    assert judgement.fmr_ci95 == pytest.approx((0.005715, 0.012450), abs=1e-6)
    assert judgement.prior == 0.5 and judgement.references == 1


def test_the_verdict_turns_at_the_threshold_and_the_band_begins_there() -> None:
    """The threshold itself is similar, the end of the band is inconclusive."""
    sharp, banded = Wish(threshold=0.5), Wish(target_fmr=0.01, inconclusive_fmr=0.1)
    assert judge(0.5, OMNIGLOT, sharp).verdict == "similar"
    assert judge(math.nextafter(0.5, 1), OMNIGLOT, sharp).verdict == "dissimilar"
    end = judge(0.5, OMNIGLOT, banded).inconclusive_to
    assert end == pytest.approx(0.6674)
    assert judge(end, OMNIGLOT, banded).verdict == "inconclusive"
    assert judge(math.nextafter(end, 1), OMNIGLOT, banded).verdict == "dissimilar"


def test_the_request_s_own_band_comes_before_the_services() -> None:
    """The service's is for requests that name none, and leaves out what does not fit."""
    both = Wish(target_fmr=0.01, inconclusive_fmr=0.1, usual_inconclusive_fmr=0.02)
    assert judge(0.5, OMNIGLOT, both).inconclusive_to == pytest.approx(0.6674)
    usual = Wish(target_fmr=0.2, usual_inconclusive_fmr=0.1)
    assert judge(0.5, OMNIGLOT, usual).inconclusive_to is None
    with pytest.raises(ConflictingFields, match="must be larger"):
        judge(0.5, OMNIGLOT, Wish(target_fmr=0.2, inconclusive_fmr=0.1))


def test_a_checkpoint_without_curves_answers_none_for_what_it_cannot_know() -> None:
    """Format version 1 knows its operating points alone."""
    judgement = judge(0.3, OLD, Wish(threshold=0.5))
    assert judgement.verdict == "similar" and judgement.threshold == Threshold(0.5, "request")
    assert (judgement.fmr, judgement.fnmr, judgement.log_likelihood_ratio, judgement.probability) == (None,) * 4
    assert judgement.target_fmr is None and judgement.percentile is None


@pytest.mark.parametrize(
    "wish", [lambda: Wish(threshold=0.5, target_fmr=0.01), lambda: SearchWish(threshold=0.5, target_fpir=0.1)]
)
def test_a_threshold_and_a_target_exclude_each_other(wish: object) -> None:
    """Before any image is decoded: the wish itself is refused."""
    with pytest.raises(ConflictingFields, match="not both"):
        wish()  # type: ignore[operator]


def test_an_empty_gallery_matches_nobody() -> None:
    """Its rates are exactly zero."""
    judgement = judge_search([], OMNIGLOT, SearchWish(), 0, 0)
    assert (judgement.verdicts, judgement.fpir, judgement.expected_false_matches) == ((), 0.0, 0.0)


# --- whatever is asked ---------------------------------------------------------------------------------------


@given(distances, calibrations, wishes(), st.integers(1, 40))
def test_a_judgement_obeys_the_rule_and_its_figures_agree(
    distance: float, calibration: Calibration, wish: Wish, references: int
) -> None:
    """Verdict by threshold and band; rates inside their intervals; the probability from the ratio and the prior."""
    try:
        judgement = judge(distance, calibration, wish, references)
    except (NotSupported, ConflictingFields):
        assert wish.target_fmr is not None or wish.inconclusive_fmr is not None
        return
    threshold, band = judgement.threshold.value, judgement.inconclusive_to
    assert judgement.verdict == decide(distance, threshold, band)
    assert band is None or band > threshold
    assert (judgement.distance, judgement.references, judgement.prior) == (distance, references, wish.prior)
    if wish.threshold is not None:
        assert judgement.threshold == Threshold(wish.threshold, "request")
    if wish.target_fmr is not None:
        assert judgement.target_fmr == wish.target_fmr
    for rate, interval in ((judgement.fmr, judgement.fmr_ci95), (judgement.fnmr, judgement.fnmr_ci95)):
        assert rate is None or 0 <= rate <= 1
        assert interval is None or 0 <= interval[0] <= interval[1] <= 1
    ratio = judgement.log_likelihood_ratio
    assert judgement.probability == (None if ratio is None else probability(ratio, wish.prior))


@given(distances, distances, wishes())
def test_a_nearer_pair_is_never_judged_less_alike(first: float, second: float, wish: Wish) -> None:
    """By verdict, likelihood ratio, probability and percentile."""
    try:
        near, far = (judge(distance, OMNIGLOT, wish) for distance in sorted((first, second)))
    except (NotSupported, ConflictingFields):
        return
    order = ("similar", "inconclusive", "dissimilar")
    assert order.index(near.verdict) <= order.index(far.verdict)
    for one, other in (
        (near.log_likelihood_ratio, far.log_likelihood_ratio),
        (near.probability, far.probability),
        (near.percentile, far.percentile),
    ):
        assert one is not None and other is not None and one >= other


@given(st.lists(distances, max_size=20), distances, st.integers(1, 1000), st.integers(1, 12))
def test_a_search_judges_each_distance_as_a_comparison_would(
    found: list[float], threshold: float, gallery_size: int, each: int
) -> None:
    """At the same threshold, in the same order."""
    wish = SearchWish(threshold=threshold)
    judgement = judge_search(found, OMNIGLOT, wish, gallery_size, gallery_size * each)
    alone = [judge(distance, OMNIGLOT, Wish(threshold=threshold), each).verdict for distance in found]
    assert list(judgement.verdicts) == alone
    default = judge_search(found, OMNIGLOT, SearchWish(), gallery_size, gallery_size * each)
    assert default.threshold == judge(0.0, OMNIGLOT, Wish(), each).threshold


@given(st.floats(0.01, 0.9), st.integers(1, 2000))
def test_a_larger_gallery_takes_no_larger_threshold_for_the_same_target(target: float, gallery_size: int) -> None:
    """Or the target is refused."""
    try:
        small, large = (
            judge_search([], OMNIGLOT, SearchWish(target_fpir=target), size, size)
            for size in (gallery_size, 2 * gallery_size)
        )
    except NotSupported:
        return
    assert large.threshold.value <= small.threshold.value and small.target_fpir == target
