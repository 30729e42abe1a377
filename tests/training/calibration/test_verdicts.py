"""Intervals, likelihood ratios, claims and searches, against simulations and independent implementations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lir.algorithms.bayeserror import elub
from lir.data.models import LLRData
from lir.metrics import cllr as their_cllr
from lir.metrics import cllr_min as their_cllr_min
from sklearn.linear_model import LogisticRegression

from app.checkpoint.matching import fpir
from training.calibration import bootstrap, likelihood
from training.calibration import calibrate as whole
from training.calibration.calibrate import Sample, calibrate
from training.calibration.claims import count_claims, draw_claims
from training.calibration.galleries import spread_over_probes
from training.calibration.pairs import GRID, PairCounts, count_listed_pairs, grid_index
from training.calibration.rates import rates_at, threshold_at_fmr


def sample(
    seed: int, identities: int, images: int = 5, groups: int = 1, near: float = 0.0, width: float = 0.5
) -> Sample:
    """Identities around centres, those of a group `near` each other."""
    rng = np.random.default_rng(seed)
    group_U = np.arange(identities) % groups
    centres = rng.normal(size=(identities, 8)) + near * rng.normal(size=(groups, 8))[group_U]
    identity_N = np.repeat(np.arange(identities), images)
    points = centres[identity_N] + 0.5 * rng.normal(size=(len(identity_N), 8))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return Sample(points.astype(np.float32), identity_N, group_U[identity_N])


def listed(seed: int, count: int = 4000) -> tuple[np.ndarray, np.ndarray, PairCounts]:
    """Distances of pairs, which of them are genuine, and their counts; half of each kind, on the grid."""
    rng = np.random.default_rng(seed)
    same = np.arange(count) % 2 == 0
    distance = np.clip(rng.normal(np.where(same, 0.5, 1.1), np.where(same, 0.15, 0.2)), 0, 2)
    distance = GRID[grid_index(distance)]
    return distance, same, count_listed_pairs(distance, same)


# --- intervals ---------------------------------------------------------------------------------------------


def test_the_first_resample_is_the_sample_itself() -> None:
    """Its rates are those that are counted over all pairs."""
    data = sample(0, 30)
    at = np.array([0.3, 0.6, 0.9])
    resampled = bootstrap.resample_rates(
        draw_claims(data.sorted), at, bootstrap.draw_resamples(np.arange(30), 50), np.arange(30)
    )
    for column, threshold in enumerate(at):
        counted = rates_at(data.counts, float(threshold))
        assert resampled.fmr_BK[0, column] == pytest.approx(counted["fmr"], abs=1e-9)
        assert resampled.fnmr_BK[0, column] == pytest.approx(counted["fnmr"], abs=1e-9)


def test_a_resampled_pair_weighs_the_product_and_no_copy_meets_itself() -> None:
    """Three identities, drawn twice, once and not at all: one pair of different identities is left, twice."""
    data = sample(1, 3)
    weights = np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0]])
    resampled = bootstrap.resample_rates(draw_claims(data.sorted), np.array([0.8]), weights, np.arange(3))
    alone = rates_at(data.part(np.array([0, 1])).counts, 0.8)
    assert resampled.fmr_BK[1, 0] == pytest.approx(alone["fmr"], abs=1e-9)
    own = [rates_at(data.part(np.array([identity])).counts, 0.8)["fnmr"] for identity in (0, 1)]
    assert resampled.fnmr_BK[1, 0] == pytest.approx((2 * own[0] + own[1]) / 3, abs=1e-9)


def test_intervals_cover_the_rate_of_the_population() -> None:
    """Of 40 samples of 40 identities, nearly all intervals hold the rate of 500 others, and they are not useless."""
    population = sample(99, 500, images=3)
    covered, width = [], []
    for seed in range(40):
        data = sample(seed, 40, images=3)
        resampled = bootstrap.resample_rates(
            draw_claims(data.sorted), np.array([0.7]), bootstrap.draw_resamples(np.arange(40), 300, seed), np.arange(40)
        )
        (low,), (high,) = resampled.fmr_interval
        covered.append(low <= rates_at(population.counts, 0.7)["fmr"] <= high)
        width.append(high / low)
    assert np.mean(covered) >= 0.85
    assert np.median(width) < 3


def test_where_groups_matter_only_groups_tell_the_truth() -> None:
    """Samples of six groups, judged on other groups: intervals over identities are too narrow."""
    truth = np.mean([rates_at(sample(1000 + s, 60, groups=6, near=2.0).counts, 0.6)["fmr"] for s in range(30)])
    covered: dict[str, list[bool]] = {"identity": [], "group": []}
    for seed in range(25):
        data = sample(seed, 60, groups=6, near=2.0).sorted
        for unit, unit_U in (("identity", np.arange(60)), ("group", data.group_U)):
            found = bootstrap.resample_rates(
                draw_claims(data), np.array([0.6]), bootstrap.draw_resamples(unit_U, 300, seed), unit_U
            )
            (low,), (high,) = found.fmr_interval
            covered[unit].append(bool(low <= truth <= high))
    assert np.mean(covered["group"]) >= 0.85
    assert np.mean(covered["identity"]) < np.mean(covered["group"]) - 0.1


def test_of_three_groups_the_interval_is_wide_and_of_two_there_is_none() -> None:
    """Too few to draw from: each is left out instead."""
    truth = np.mean([rates_at(sample(1000 + s, 60, groups=3, near=2.0).counts, 0.6)["fmr"] for s in range(30)])
    covered, width = [], []
    for seed in range(20):
        data = sample(seed, 60, groups=3, near=2.0).sorted
        found = bootstrap.resample_rates(
            draw_claims(data), np.array([0.6]), bootstrap.draw_resamples(data.group_U), data.group_U
        )
        (low,), (high,) = found.fmr_interval
        covered.append(bool(low <= truth <= high))
        width.append(high / low)
    assert np.mean(covered) >= 0.85
    assert np.median(width) > 3
    for groups in (1, 2):
        data = sample(0, 40, groups=groups, near=2.0).sorted
        found = bootstrap.resample_rates(
            draw_claims(data), np.array([0.6]), bootstrap.draw_resamples(data.group_U), data.group_U
        )
        assert all(np.isnan(end).all() for end in (*found.fmr_interval, *found.fnmr_interval))


def test_many_identities_are_looked_at_by_a_sample_that_all_figures_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rate rests on pairs that its support was not counted on."""
    monkeypatch.setattr(whole, "MANY_IDENTITIES", 80)
    large = sample(10, 100, images=3)
    result = calibrate(large, large, margin=1.0, target_fmr=0.01, unit="identity", fingerprint="f")
    assert result.fields["calibration"].identities == result.fields["calibration"].units == 80
    limit = float(result.curves["supported_1"][0])
    at = int(np.searchsorted(result.curves["distance"], limit + 1e-6))
    assert result.curves["calibration_probe_fmr_1"][at + 10] > 0


# --- likelihood ratios -------------------------------------------------------------------------------------


def test_the_straight_fit_is_scikit_learns_logistic_regression() -> None:
    """On every pair by itself, to its own precision."""
    distance, same, counts = listed(0)
    model = LogisticRegression(C=1e6, tol=1e-10, max_iter=1000).fit(distance[:, None], same)
    expected = model.coef_[0, 0] * GRID + model.intercept_[0]
    within = np.abs(expected) < 10
    assert np.allclose(likelihood.logistic(counts)[within], expected[within], atol=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_costs_and_bounds_are_those_of_lir(seed: int) -> None:
    """The Netherlands Forensic Institute's library, on the same pairs."""
    distance, same, counts = listed(seed)
    llr_G = likelihood.logistic(counts)
    theirs = LLRData(features=llr_G[grid_index(distance)] / np.log(10), labels=same.astype(int))
    assert likelihood.cllr(counts, llr_G) == pytest.approx(their_cllr(theirs), abs=1e-9)
    assert likelihood.cllr_min(counts) == pytest.approx(their_cllr_min(theirs), abs=1e-6)
    low, high = elub(theirs.llrs.copy(), same.astype(int))
    ours = likelihood.llr_bounds(counts, llr_G)
    assert ours == pytest.approx((low * np.log(10), high * np.log(10)), abs=0.1)


def test_the_bent_fit_is_kept_where_it_costs_less() -> None:
    """Genuine pairs of two kinds make a straight line wrong; where a line is right it stays."""
    rng = np.random.default_rng(0)

    def counts(seed: int, second: float) -> PairCounts:
        rng = np.random.default_rng(seed)
        genuine = rng.normal(np.where(rng.random(3000) < 0.5, 0.3, second), 0.08)
        impostor = rng.normal(1.1, 0.08, 3000)
        distance = np.clip(np.concatenate([genuine, impostor]), 0, 2)
        return count_listed_pairs(GRID[grid_index(distance)], np.arange(6000) < 3000)

    two = [(counts(int(rng.integers(1e6)), 1.1), counts(int(rng.integers(1e6)), 1.1)) for _ in range(3)]
    assert likelihood.choose_fit(two) == "bent"
    learn, judge = two[0]
    bent, line = (likelihood.cllr(judge, fit(learn)) for fit in (likelihood.bent, likelihood.logistic))
    assert bent is not None and line is not None and bent < line


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(likelihood.FITS)))
def test_a_larger_distance_never_speaks_more_for_the_same_thing(seed: int, name: str) -> None:
    """And nothing is claimed beyond what the sample supports."""
    _, _, counts = listed(seed, 400)
    llr_G = likelihood.FITS[name](counts)
    assert (np.diff(llr_G) <= 1e-9).all()
    low, high = likelihood.llr_bounds(counts, llr_G)
    assert low <= 0 <= high < np.log(len(counts.closest_P) + 2)


def test_probabilities_come_true() -> None:
    """Of unseen pairs given 90 to 95 %, about as many are genuine."""
    _, _, learn = listed(1, 20_000)
    _, _, unseen = listed(2, 20_000)
    given_, true, _ = likelihood.reliability(unseen, likelihood.bent(learn), [0, 0.1, 0.5, 0.9, 0.95, 1])
    assert np.abs(given_ - true).max() < 0.06


@pytest.mark.parametrize(
    ("identity", "words"),
    [([0, 0, 0], "one identity"), ([0, 1, 2], "has two images"), ([0, 0, 1, 1], "distances are equal")],
)
def test_degenerate_sets_say_nothing_and_are_named(identity: list[int], words: str) -> None:
    """One identity, no genuine pair, all distances equal: null and zero, no number that looks like one."""
    points = np.ones((len(identity), 2), dtype=np.float32) / np.sqrt(2, dtype=np.float32)
    one = Sample(points, np.array(identity), np.zeros(len(identity), dtype=int))
    result = calibrate(one, one, margin=1.0, target_fmr=0.01, unit="identity", fingerprint="f")
    assert result.fields["threshold_source"] == "margin"
    assert result.fields["calibration"].likelihood_ratio is None
    assert result.fields["calibration"].cllr is None
    assert words in result.fields["calibration"].note
    assert not result.curves["llr_1"].any()


# --- several references, and searches ----------------------------------------------------------------------


def test_the_same_image_twice_is_spoken_of() -> None:
    """It is a genuine pair that nobody could miss."""
    data = sample(9, 30, images=4)
    data.embeddings_ND[1::4] = data.embeddings_ND[0::4]
    note = (
        calibrate(data, data, margin=1.0, target_fmr=0.1, unit="identity", fingerprint="f").fields["calibration"].note
    )
    assert "17% of the genuine test pairs are the same image twice" in note


def test_claims_with_one_reference_are_pairs() -> None:
    """The same rates, counted the other way round."""
    data = sample(3, 12, images=4)
    pairs, claimed = data.counts, count_claims(data.sorted, 1)
    assert np.allclose(pairs.fmr_G, claimed.fmr_G)
    assert np.allclose(pairs.fnmr_G, claimed.fnmr_G)
    assert np.allclose(pairs.closest_P, claimed.closest_P, atol=1e-7)


def test_the_nearest_of_several_is_closer_by_chance_and_by_right() -> None:
    """FMR rises with references, at most as their number does, and FNMR falls."""
    data = sample(4, 40, images=12)
    one = count_claims(data.sorted, 1)
    before = one
    for references in (2, 3, 5):
        counts = count_claims(data.sorted, references)
        assert (counts.fmr_G >= before.fmr_G - 0.01).all()
        assert (counts.fmr_G <= references * one.fmr_G * 1.15 + 1e-3).all()  # other images are left out
        assert counts.fnmr_G.sum() < before.fnmr_G.sum()
        before = counts


def test_the_spread_over_probes_gives_the_rate_of_other_galleries() -> None:
    """Learned on 60 identities, met by galleries of 10, 50 and 200 others within a factor of 1.5."""
    learned, others = sample(5, 60), sample(6, 260)
    grid = GRID[::100]
    probes = spread_over_probes(learned.sorted, 1, grid)
    rng = np.random.default_rng(0)
    for size in (10, 50, 200):
        expected_K = fpir(probes.mean_K, probes.concentration_K, size)
        at = int(np.searchsorted(expected_K, 0.2))
        references = [int(rng.choice(np.flatnonzero(others.identity_N == identity))) for identity in range(size)]
        strangers = others.embeddings_ND[others.identity_N >= 200]
        nearest = np.linalg.norm(strangers[:, None] - others.embeddings_ND[references][None], axis=2).min(axis=1)
        measured = float((nearest <= grid[at]).mean())
        assert expected_K[at] / 1.5 <= measured <= expected_K[at] * 1.5


def test_a_calibration_holds_curves_for_as_many_references_as_the_data_has() -> None:
    """Each with its rates, its intervals, its likelihood ratio and its spread over probes."""
    choose, measure = sample(7, 40, images=6), sample(8, 40, images=6)
    result = calibrate(choose, measure, margin=1.0, target_fmr=0.05, unit="identity", fingerprint="f")
    for references in range(1, 6):
        for name in ("calibration_fmr_all", "fmr_all", "fnmr_all", "fmr_low", "fmr_high", "llr", "probe_fmr"):
            curve = result.curves[f"{name}_{references}"]
            assert curve.shape == result.curves["distance"].shape and np.isfinite(curve).all()
        at = threshold_at_fmr(count_claims(choose.sorted, references).fmr_G, 0.05)
        column = int(np.searchsorted(result.curves["distance"], at))
        low, rate, high = (result.curves[f"{name}_{references}"][column] for name in ("fmr_low", "fmr_all", "fmr_high"))
        assert low <= rate <= high
    assert "llr_6" not in result.curves
