"""Intervals for error rates by the bootstrap: identities, or whole groups of them, are resampled.

Pairs that share an identity, or identities of one group, are not independent. So the *units* that are resampled are
identities, or groups where whole groups were kept out of training.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, t

from app.arrays import Floats, Ints
from training.calibration.claims import Claim
from training.calibration.pairs import STEPS, grid_index

RESAMPLES = 1000
# Fewer units have too few different resamples. Each of them is left out once instead.
FEW = 6
CONFIDENCE = 0.95


@dataclass(frozen=True)
class ResampledRates:
    """FMR and FNMR of each resample at each threshold, `[B, K]`; NaN where a resample holds no such pairs.

    The first row is the sample itself. `too_wide_K`: by how much the FMR of resamples of identities spreads too far.
    """

    fmr_BK: Floats
    fnmr_BK: Floats
    units: int
    too_wide_K: Floats | None

    @property
    def fmr_interval(self) -> tuple[Floats, Floats]:
        """Low and high ends `[K]` of the 95 % interval of the FMR.

        Resamples of identities miss the few pairs that match more easily than they repeat them, so their logarithms
        lean to the low side, and the interval is their mirror image about the sample's own (the basic bootstrap
        interval: A. Davison, D. Hinkley, "Bootstrap methods and their application", 1997, section 5.2).
        """
        if self.units < FEW:
            return left_out(self.fmr_BK, self.units)
        if self.too_wide_K is None:
            return interval(self.fmr_BK[1:], self.units)
        sample_K = self.fmr_BK[0]
        with np.errstate(invalid="ignore", divide="ignore"):
            shrunk_BK = sample_K * (self.fmr_BK[1:] / sample_K) ** (1 / self.too_wide_K)
            low_K, high_K = interval(np.where(sample_K > 0, shrunk_BK, self.fmr_BK[1:]), self.units)
            mirrored_K = low_K > 0
            return (
                np.where(mirrored_K, sample_K**2 / high_K, low_K),
                np.where(mirrored_K, np.minimum(sample_K**2 / low_K, 1), high_K),
            )

    @property
    def fnmr_interval(self) -> tuple[Floats, Floats]:
        """Low and high ends `[K]` of the 95 % interval of the FNMR."""
        if self.units < FEW:
            return left_out(self.fnmr_BK, self.units)
        return interval(self.fnmr_BK[1:], self.units)


def draw_resamples(unit_U: Ints, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """How often each identity is in each resample, `[1 + B, U]`; the first row is the sample itself.

    As many units as there are, are drawn with replacement; the identities of a unit stay together. Of fewer than `FEW`
    units, each is left out in turn.

    >>> draw_resamples(np.array([0, 1, 1])).tolist()
    [[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    """
    names, place_U = np.unique(unit_U, return_inverse=True)
    if len(names) < FEW:
        return np.concatenate([np.ones((1, len(unit_U))), (1 - np.eye(len(names)))[:, place_U]])
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return np.concatenate([np.ones((1, len(unit_U))), drawn[:, place_U]])


def resample_rates(claims: Iterable[Claim], thresholds_K: Floats, weight_BU: Floats, unit_U: Ints) -> ResampledRates:
    """Error rates of each resample. A pair of identities weighs w_i * w_j; no identity is paired with its own copy.

    The same holds for groups: a pair within a group that was drawn w times weighs w, and pairs within groups and
    between them keep their shares. With w * w, near pairs within groups, where most false matches are, would be twice
    as many in the resamples as in the sample.

    Where identities are the units, what a single pair adds to the spread counts up to three times in the resamples
    (A. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007); `too_wide_K` is the spread of the
    resamples over that of `dyadic_variance`.
    """
    bin_of_G = np.searchsorted(grid_index(thresholds_K), np.arange(STEPS + 1))
    size, identities = len(thresholds_K), weight_BU.shape[1]
    false_match, genuine_weight = np.zeros((len(weight_BU), size)), np.zeros(len(weight_BU))
    false_non_match, near_match = np.zeros_like(false_match), np.zeros_like(false_match)
    impostor_weight, near_weight = np.zeros(len(weight_BU)), np.zeros(len(weight_BU))
    row_UK, square_K = np.zeros((identities, size)), np.zeros(size)
    for claim in claims:
        weight_B = weight_BU[:, claim.position]
        if claim.genuine.size:
            within_K = np.bincount(bin_of_G[grid_index(claim.genuine)], minlength=size + 1).cumsum()[:size]
            false_non_match += weight_B[:, None] * (1 - within_K / claim.genuine.size)
            genuine_weight += weight_B
        if not claim.impostors.size:
            continue
        share_UK = shares(claim, bin_of_G, identities, size)
        near_U = unit_U == unit_U[claim.position]
        false_match += weight_B[:, None] * (weight_BU[:, ~near_U] @ share_UK[~near_U])
        impostor_weight += weight_B * weight_BU[:, ~near_U].sum(axis=1)
        near_match += weight_B[:, None] * share_UK[near_U].sum(axis=0)
        near_weight += weight_B * (near_U.sum() - 1)
        row_UK += share_UK / 2
        row_UK[claim.position] += share_UK.sum(axis=0) / 2
        square_K += np.square(share_UK).sum(axis=0) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        near_share = near_weight[0] / (near_weight[0] + impostor_weight[0])
        fmr_BK = (1 - near_share) * false_match / impostor_weight[:, None]
        if near_share:
            fmr_BK += near_share * near_match / near_weight[:, None]
        fnmr_BK = false_non_match / genuine_weight[:, None]
        too_wide_K = None
        units = len(np.unique(unit_U))
        if units == identities >= FEW:
            spread_K = np.nanvar(fmr_BK[1:], axis=0) / dyadic_variance(row_UK, square_K)
            too_wide_K = np.sqrt(np.clip(np.nan_to_num(spread_K, nan=1.0, posinf=3.0, neginf=3.0), 1, 3))
    return ResampledRates(fmr_BK, fnmr_BK, units, too_wide_K)


def dyadic_variance(row_UK: Floats, square_K: Floats) -> Floats:
    """Variance of a mean over pairs of U identities, where pairs that share an identity may be correlated.

    Sum over such pairs of pairs of the product of their deviations from the mean, over the number of pairs squared
    (P. Aronow, C. Samii, V. Assenova, "Cluster-robust variance estimation for dyadic data", Political Analysis 2015).
    `row_UK` sums each identity's pairs, `square_K` the squares of all pairs. Not positive where too few pairs have a
    false match.

    >>> float(dyadic_variance(np.array([[2.0], [1.0], [1.0], [0.0]]), np.array([2.0]))[0].round(4))  # 2 of 6 pairs
    0.0185
    """
    identities = len(row_UK)
    pairs = identities * (identities - 1) / 2
    mean_K = row_UK.sum(axis=0) / 2 / pairs
    by_identity_K = np.square(row_UK - (identities - 1) * mean_K).sum(axis=0)
    variance: Floats = (by_identity_K - (square_K - pairs * mean_K**2)) / pairs**2
    return variance


def shares(claim: Claim, bin_of_G: Ints, identities: int, size: int) -> Floats:
    """The share of each identity's images that are nearer than each threshold, `[U, K]`; zero for the claimed identity.

    `bin_of_G` is the first threshold at or beyond each point of the grid.

    >>> claim = Claim(0, np.array([]), np.array([[0.2, 0.6]]), np.array([1, 1]))
    >>> bin_of_G = np.searchsorted(grid_index(np.array([0.5, 1.0])), np.arange(STEPS + 1))
    >>> shares(claim, bin_of_G, identities=2, size=2).tolist()
    [[0.0, 0.0], [0.5, 1.0]]
    """
    of_image = np.broadcast_to(claim.position_of_impostor, claim.impostors.shape)
    flat = of_image * (size + 1) + bin_of_G[grid_index(claim.impostors)]
    count_UK = np.bincount(flat.ravel(), minlength=identities * (size + 1)).reshape(identities, size + 1)
    total_U = np.maximum(count_UK.sum(axis=1, keepdims=True), 1)
    result: Any = count_UK.cumsum(axis=1)[:, :size] / total_U
    return np.asarray(result, dtype=np.float64)


def interval(rates_BK: Floats, units: int) -> tuple[Floats, Floats]:
    """Low and high ends of the expanded percentile interval of each column.

    The plain percentiles are too narrow where units are few; their level is widened as Student's t is over the normal
    (T. Hesterberg, "What teachers should know about the bootstrap", The American Statistician 2015, section 4.2.2).
    NaN where no resample holds a pair. For fewer than `FEW` units, `left_out` is used instead.

    >>> low_K, high_K = interval(np.array([[0.1], [0.2], [0.3]]), units=6)
    >>> round(float(low_K[0]), 2), round(float(high_K[0]), 2)  # nearly all of three resamples
    (0.1, 0.3)
    """
    tail = float(norm.cdf(-np.sqrt(units / (units - 1)) * t.ppf((1 + CONFIDENCE) / 2, units - 1)))
    known_BK = rates_BK[~np.isnan(rates_BK).all(axis=1)]
    if not len(known_BK):
        nothing = np.full(rates_BK.shape[1], np.nan)
        return nothing, nothing
    low_K, high_K = np.nanquantile(known_BK, [tail, 1 - tail], axis=0)
    return low_K, high_K


def left_out(rates_BK: Floats, units: int) -> tuple[Floats, Floats]:
    """Low and high ends by the jackknife with Student's t, on a logarithmic scale where no rate is zero.

    The first row is the sample, each other leaves a unit out (B. Efron, C. Stein, "The jackknife estimate of variance",
    Annals of Statistics 1981). With three units the interval is wide; with fewer it is NaN.

    >>> low_K, high_K = left_out(np.array([[0.2], [0.19], [0.2], [0.21]]), units=3)
    >>> round(float(low_K[0]), 3), round(float(high_K[0]), 3)  # about 0.2 +- 4.3 * sqrt(2 / 3 * 0.0002)
    (0.156, 0.256)
    """
    nothing = np.full(rates_BK.shape[1], np.nan)
    if units < 3:
        return nothing, nothing
    with np.errstate(invalid="ignore", divide="ignore"):
        positive_K = (rates_BK > 0).all(axis=0)
        scaled_BK = np.where(positive_K, np.log(rates_BK), rates_BK)
        spread_K = np.sqrt((units - 1) / units * np.square(scaled_BK[1:] - scaled_BK[1:].mean(axis=0)).sum(axis=0))
        reach_K = t.ppf((1 + CONFIDENCE) / 2, units - 1) * spread_K
        ends = [np.where(positive_K, np.exp(end), end) for end in (scaled_BK[0] - reach_K, scaled_BK[0] + reach_K)]
    return np.clip(ends[0], 0, 1), np.clip(ends[1], 0, 1)
