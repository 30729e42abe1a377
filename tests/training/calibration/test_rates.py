"""Counting pairs and reading rates off them, against plain loops and worked examples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from app.checkpoint.matching import decide
from training.calibration import rates as c
from training.calibration.calibrate import Sample
from training.calibration.pairs import GRID, STEPS, count_listed_pairs, count_pairs
from training.calibration.points import default_threshold, operating_points


def labelled(seed: int, count: int, identities: int, groups: int, spread: float = 0.7) -> tuple:
    rng = np.random.default_rng(seed)
    identity = rng.integers(0, identities, count)
    centres = rng.normal(size=(identities, 6))
    points = centres[identity] + spread * rng.normal(size=(count, 6))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return points, identity, identity % groups


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 8), st.integers(1, 3), st.floats(0, 2))
def test_rates_are_those_of_a_loop_over_all_pairs(
    seed: int, count: int, identities: int, groups: int, threshold: float
) -> None:
    """Weighted by identity and pair of identities, counted one by one, decided by the rule that serves."""
    points, identity, group = labelled(seed, count, identities, groups)
    threshold = float(GRID[int(threshold * STEPS / 2)])
    genuine: dict[int, list[bool]] = {}
    impostor: dict[tuple[int, int], list[bool]] = {}
    near: set[tuple[int, int]] = set()
    for i in range(count):
        for j in range(i):
            distance = float(np.linalg.norm(points[i].astype(float) - points[j].astype(float)))
            similar = decide(np.ceil(distance * 1e4 - 1e-7) / 1e4, threshold + 1e-12) == "similar"
            a, b = sorted((int(identity[i]), int(identity[j])))
            if a == b:
                genuine.setdefault(a, []).append(not similar)
            else:
                impostor.setdefault((a, b), []).append(similar)
                if group[i] == group[j]:
                    near.add((a, b))
    counts = count_pairs(points, identity, group)
    rates = c.rates_at(counts, threshold)
    assert rates["genuine_pairs"] == sum(map(len, genuine.values()))
    assert rates["impostor_pairs"] == sum(map(len, impostor.values()))
    assert rates["false_matches"] == sum(map(sum, impostor.values()))
    assert rates["false_non_matches"] == sum(map(sum, genuine.values()))
    if genuine:
        assert rates["fnmr"] == pytest.approx(np.mean([np.mean(wrong) for wrong in genuine.values()]), abs=1e-9)
    if impostor:
        assert rates["fmr"] == pytest.approx(np.mean([np.mean(wrong) for wrong in impostor.values()]), abs=1e-9)
    if near and len(set(group)) > 1:
        assert rates["same_group_fmr"] == pytest.approx(np.mean([np.mean(impostor[pair]) for pair in near]), abs=1e-9)
    assert len(counts.closest_P) == len(impostor)


def test_listed_pairs_give_the_rates_of_scikit_learns_roc() -> None:
    """An independent implementation agrees, at every threshold it names."""
    rng = np.random.default_rng(0)
    same = rng.random(2000) < 0.4
    distances = np.round(np.clip(rng.normal(np.where(same, 0.5, 1.0), 0.2), 0, 2), 3)
    counts = count_listed_pairs(distances, same)
    false_positive, true_positive, thresholds = roc_curve(same, -distances, drop_intermediate=False)
    for fpr, tpr, threshold in zip(false_positive[1:], true_positive[1:], -thresholds[1:], strict=True):
        rates = c.rates_at(counts, float(threshold))
        assert rates["fmr"] == pytest.approx(fpr, abs=1e-9)
        assert 1 - rates["fnmr"] == pytest.approx(tpr, abs=1e-9)


def test_many_images_of_one_identity_do_not_outweigh_the_others() -> None:
    """A hundred copies of every image of one identity leave both rates as they were, up to copies of itself."""
    points, identity, group = labelled(3, 60, 6, 1)
    others = identity != 0
    counts = count_pairs(points, identity, group)
    heavy = np.concatenate([np.flatnonzero(others), np.repeat(np.flatnonzero(~others), 100)])
    heavier = count_pairs(points[heavy], identity[heavy], group[heavy])
    assert np.allclose(heavier.fmr_G, counts.fmr_G)


def test_the_threshold_for_a_target_is_the_largest_that_keeps_it() -> None:
    """One step further would break it."""
    points, identity, group = labelled(1, 300, 30, 3)
    fmr = count_pairs(points, identity, group).fmr_G
    for target in (0.2, 0.05, 0.01):
        threshold = c.threshold_at_fmr(fmr, target)
        assert threshold is not None
        index = int(np.searchsorted(GRID, threshold))
        assert fmr[index] <= target < fmr[index + 1]


def test_no_threshold_keeps_a_target_if_different_identities_coincide() -> None:
    """Null, not zero."""
    points = np.ones((4, 2), dtype=np.float32) / np.sqrt(2, dtype=np.float32)
    counts = count_pairs(points, np.arange(4), np.zeros(4, dtype=int))
    assert c.threshold_at_fmr(counts.fmr_G, 0.01) is None


def test_few_false_matches_support_no_promise_and_the_margin_takes_over() -> None:
    """The default threshold says where it comes from, and why."""
    points, identity, group = labelled(2, 40, 8, 1, spread=0.2)
    counts = count_pairs(points, identity, group)
    few = Sample(points, identity, group)
    points_of_operation = operating_points(counts, counts, few.sorted, "identity")
    assert not points_of_operation[1].supported and points_of_operation[1].threshold is None
    threshold, source, note = default_threshold(points_of_operation, 0.01, margin=0.9, identities=8)
    assert (threshold, source) == (0.45, "margin")
    assert note is not None and "the 8 calibration identities do not give. Use more identities" in note


def test_an_operating_point_is_chosen_on_one_set_and_measured_on_the_other() -> None:
    """Its FMR is what the test identities gave, not what was wished for."""
    calibration = count_pairs(*labelled(4, 600, 60, 5))
    sample = Sample(*labelled(5, 600, 60, 5))
    test = sample.counts
    point = operating_points(calibration, test, sample.sorted, "identity")[1]
    assert point.supported and point.threshold == c.threshold_at_fmr(calibration.fmr_G, 0.01)
    assert point.fmr == c.rates_at(test, point.threshold)["fmr"] != 0.01
    for rate, ends in ((point.fmr, point.fmr_ci95), (point.fnmr, point.fnmr_ci95)):
        assert rate is not None and ends is not None and ends[0] < rate < ends[1]
    assert default_threshold([point], 0.01, 1.0, 60) == (point.threshold, "calibration", None)


def test_equal_error_rate_lies_where_the_curves_cross() -> None:
    """FMR and FNMR differ by at most what one step of the grid changes there."""
    counts = count_pairs(*labelled(6, 400, 40, 4))
    eer, near = c.equal_error_rates(counts)
    assert eer is not None and near is not None
    crossing = int(np.argmax(counts.fmr_G >= counts.fnmr_G))
    assert counts.fmr_G[crossing - 1] <= eer <= counts.fmr_G[crossing]


@pytest.mark.parametrize("identity", [[0, 0, 0], [0, 1, 2], [0]])
def test_degenerate_sets_give_null_not_nonsense(identity: list[int]) -> None:
    """One identity, no genuine pairs, one image."""
    points = labelled(7, len(identity), 3, 1)[0]
    figures = c.metrics(count_pairs(points, np.array(identity), np.zeros(len(identity), dtype=int)), 0.5)
    assert figures["eer"] is None
    assert (figures["fmr"] is None) == (len(set(identity)) < 2)
    assert (figures["fnmr"] is None) == (len(set(identity)) == len(identity))
