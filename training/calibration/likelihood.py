"""Distance to log-likelihood ratio: how many times likelier a distance is in a genuine than in an impostor pair.

A caller's prior turns it into a probability: log-odds = log-likelihood ratio + log prior-odds (N. Bruemmer,
J. du Preez, "Application-independent evaluation of speaker detection", Computer Speech and Language 2006). Logarithms
are natural.
All fits are on counted pairs (`pairs.PairCounts`), genuine and impostor pairs weighing half each, so that the fitted
log-odds are the log-likelihood ratio.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from app.arrays import Floats
from training.calibration.pairs import GRID, PairCounts

Fit = Callable[[PairCounts], Floats]

# The bent fit may bend at these quantiles of the distances of both kinds of pairs.
BENDS = (0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999)
# Keeps the bent fit near a straight line where there are hardly any pairs. Chosen on held-out alphabets of Omniglot's
# background set: 1e-3 to 1e-7 cost alike (Cllr 0.0737 to 0.0742), and the probabilities of this one come truest.
SMOOTHNESS = 1e-6
MIN_IDENTITIES = 50
# Log-likelihood ratios are limited to this before the bounds of the sample (`llr_bounds`) apply.
LIMIT = 30.0


def has_both(counts: PairCounts) -> bool:
    """Whether there are genuine and impostor pairs, and not all at one distance.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> one_place = count_listed_pairs(np.array([0.5, 0.5]), np.array([True, False]))
    >>> has_both(one_place), has_both(count_listed_pairs(np.array([0.5, 0.6]), np.array([True, False])))
    (False, True)
    """
    if not counts.genuine_count_G.any() or not counts.impostor_count_G.any():
        return False
    return int(((counts.genuine_count_G + counts.impostor_count_G) > 0).sum()) > 1


def logistic(counts: PairCounts) -> Floats:
    """Log-likelihood ratio `[G]`, a straight line in the distance (J. Platt, "Probabilistic outputs", 1999).

    Zero, which says nothing, without pairs of both kinds, or where the line would rise with distance.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> counts = count_listed_pairs(np.array([0.2, 0.8, 0.6, 1.2]), np.array([True, True, False, False]))
    >>> round(abs(float(logistic(counts)[7000])), 3)  # in the middle, at 0.7, it says nothing
    0.0
    """
    if not has_both(counts):
        return np.zeros(len(GRID))
    weights = np.concatenate([counts.genuine_weight_G, counts.impostor_weight_G])
    used = weights > 0
    distance = np.concatenate([GRID, GRID])[used, None]
    genuine = np.repeat([1, 0], len(GRID))[used]
    # scikit-learn's regularisation counts pairs, and the weights sum to two: as if of many, it has hardly an effect
    model = LogisticRegression(C=1e6, tol=1e-8, max_iter=1000).fit(distance, genuine, sample_weight=1e4 * weights[used])
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope >= 0:
        return np.zeros(len(GRID))
    return np.asarray(np.clip(slope * GRID + intercept, -LIMIT, LIMIT), dtype=np.float64)


def bent(counts: PairCounts) -> Floats:
    """Log-likelihood ratio `[G]`, piecewise linear and never rising with distance.

    Logistic regression on hinges max(0, x - d), each of which may only make it fall more. Where the distances are not
    normally distributed with one width for both kinds, a straight line is wrong in the tails.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> counts = count_listed_pairs(np.array([0.2, 0.8, 0.6, 1.2]), np.array([True, True, False, False]))
    >>> bool((np.diff(bent(counts)) <= 1e-9).all())
    True
    """
    if not has_both(counts):
        return np.zeros(len(GRID))
    step = 20  # bins of 0.002: finer than any bend
    genuine, impostor = (
        np.add.reduceat(weight_G, np.arange(0, len(GRID), step))
        for weight_G in (counts.genuine_weight_G, counts.impostor_weight_G)
    )
    at = GRID[::step]
    knots = np.unique([
        float(GRID[min(int(np.searchsorted(np.cumsum(weight_G), share)), len(GRID) - 1)])
        for weight_G in (counts.genuine_weight_G, counts.impostor_weight_G)
        for share in BENDS
    ])  # fmt: skip
    edges = np.concatenate([[0.0], knots[(knots > 0) & (knots < GRID[-1])], [GRID[-1]]])

    def basis(distance: Floats) -> Floats:
        """How much of each segment between two edges lies below a distance."""
        part: Floats = np.clip(distance[:, None] - edges[None, :-1], 0, np.diff(edges)[None, :])
        return part

    used = genuine + impostor > 0
    features, genuine, impostor = basis(at[used]), genuine[used], impostor[used]

    def objective(parameters: Floats) -> tuple[float, Floats]:
        intercept, falls = parameters[0], parameters[1:]
        score = intercept - features @ falls
        loss = genuine @ np.logaddexp(0, -score) + impostor @ np.logaddexp(0, score)
        by_score = impostor / (1 + np.exp(-score)) - genuine / (1 + np.exp(score))
        change = np.diff(falls)
        gradient = np.concatenate([[by_score.sum()], -(features.T @ by_score)])
        gradient[1:-1] -= 2 * SMOOTHNESS * change
        gradient[2:] += 2 * SMOOTHNESS * change
        return float(loss + SMOOTHNESS * (change @ change)), gradient

    line = logistic(counts)
    fall = max(0.0, float(line[0] - line[-1]) / GRID[-1])
    start = np.concatenate([[float(line[0])], np.full(len(edges) - 1, fall)])
    bounds = [(None, None), *[(0.0, None)] * (len(edges) - 1)]
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 2000})
    return np.asarray(np.clip(found.x[0] - basis(GRID) @ found.x[1:], -LIMIT, LIMIT), dtype=np.float64)


def pool_adjacent_violators(counts: PairCounts) -> Floats:
    """The log-likelihood ratio `[G]` that fits these very pairs best, of all that never rise with distance.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> counts = count_listed_pairs(np.array([0.2, 0.8, 0.6, 1.0]), np.array([True, True, False, False]))
    >>> pool_adjacent_violators(counts)[[2000, 7000, 10000]].tolist()  # one of each kind from 0.6 to 0.8
    [inf, 0.0, -inf]
    """
    if not has_both(counts):
        return np.zeros(len(GRID))
    both = counts.genuine_weight_G + counts.impostor_weight_G
    used = both > 0
    model = IsotonicRegression(increasing=False, y_min=0, y_max=1, out_of_bounds="clip")
    model.fit(GRID[used], counts.genuine_weight_G[used] / both[used], sample_weight=both[used])
    probability = model.predict(GRID)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(probability) - np.log1p(-probability), dtype=np.float64)


def cllr(counts: PairCounts, llr_G: Floats) -> float | None:
    """What the log-likelihood ratios cost, in bits: 0 is perfect, 1 says nothing (Bruemmer and du Preez 2006, eq. 26).

    None without pairs of both kinds.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> counts = count_listed_pairs(np.array([0.2, 0.4, 0.6, 1.0]), np.array([True, True, False, False]))
    >>> cllr(counts, np.zeros(len(GRID)))
    1.0
    """
    if not has_both(counts):
        return None
    genuine, impostor = counts.genuine_weight_G, counts.impostor_weight_G
    g, i = genuine > 0, impostor > 0
    cost = genuine[g] @ np.logaddexp(0, -llr_G[g]) + impostor[i] @ np.logaddexp(0, llr_G[i])
    return float(cost / (2 * np.log(2)))


def cllr_min(counts: PairCounts) -> float | None:
    """The lowest Cllr that a calibration of these distances can have.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> counts = count_listed_pairs(np.array([0.2, 0.4, 0.6, 1.0]), np.array([True, True, False, False]))
    >>> cllr_min(counts)  # a threshold of 0.5 tells them apart
    0.0
    """
    return cllr(counts, pool_adjacent_violators(counts))


def choose_fit(folds: Sequence[tuple[PairCounts, PairCounts]]) -> str:
    """`logistic`, unless `bent` costs less on held-out identities: each fold is what to fit on and what to judge by.

    With few identities it is always the straight line, since single identities would bend it.

    >>> choose_fit([])
    'logistic'
    """
    if sum(judge.identities or MIN_IDENTITIES for _, judge in folds) < MIN_IDENTITIES:
        return "logistic"
    costs = {name: [cllr(judge, fit(learn)) for learn, judge in folds] for name, fit in FITS.items()}
    means = {
        name: np.mean([cost for cost in of_folds if cost is not None] or [1.0]) for name, of_folds in costs.items()
    }
    return "bent" if means["bent"] < means["logistic"] else "logistic"


FITS: dict[str, Fit] = {"logistic": logistic, "bent": bent}


def llr_bounds(counts: PairCounts, llr_G: Floats) -> tuple[float, float]:
    """The lowest and highest log-likelihood ratio that the sample supports.

    Beyond them, with one more misleading pair of each kind in the sample, the ratios would decide worse than none:
    accepting above ratio T costs FNMR + T * FMR, rejecting all costs 1, accepting all T (ELUB: P. Vergeer et al.,
    "Numerical likelihood ratios outputted by LR systems are often based on extrapolation: when to stop
    extrapolating?", Science and Justice 2016). The misleading pair weighs as a pair of identities does, or as an
    identity among the genuine ones.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> counts = count_listed_pairs(np.array([0.2, 0.4, 0.6, 1.0]), np.array([True, True, False, False]))
    >>> llr_bounds(counts, np.zeros(len(GRID)))
    (0.0, 0.0)
    """
    if not has_both(counts):
        return 0.0, 0.0
    pairs, identities = max(1, len(counts.closest_P)), max(1, counts.genuine_identities)
    fmr_G = (counts.fmr_G * pairs + 1) / (pairs + 1)
    fnmr_G = (counts.fnmr_G * identities + 1) / (identities + 1)
    cost_G = fnmr_G + np.exp(llr_G) * fmr_G
    above = (llr_G > 0) & (cost_G > 1)
    below = (llr_G < 0) & (cost_G > np.exp(llr_G))
    high = float(llr_G[above].min()) if above.any() else float(llr_G.max())
    low = float(llr_G[below].max()) if below.any() else float(llr_G.min())
    return min(low, 0.0), max(high, 0.0)


def reliability(counts: PairCounts, llr_G: Floats, edges: Sequence[float] | Floats) -> tuple[Floats, Floats, Floats]:
    """How often probabilities at prior 0.5 come true. For each bin between two edges that holds pairs: the mean
    probability given, the share of the pairs that are genuine, and the share of all pairs.

    >>> from training.calibration.pairs import count_listed_pairs
    >>> counts = count_listed_pairs(np.array([0.2, 0.4, 0.6, 1.0]), np.array([True, True, False, False]))
    >>> [bins.tolist() for bins in reliability(counts, np.zeros(len(GRID)), [0, 1])]  # 0.5 for all, half are genuine
    [[0.5], [0.5], [1.0]]
    """
    probability_G = 1 / (1 + np.exp(-llr_G))
    bins = len(edges) - 1
    bin_G = np.clip(np.searchsorted(np.asarray(edges), probability_G, side="right") - 1, 0, bins - 1)
    genuine = np.bincount(bin_G, counts.genuine_weight_G / 2, bins)
    both_G = (counts.genuine_weight_G + counts.impostor_weight_G) / 2
    both = np.bincount(bin_G, both_G, bins).astype(np.float64)
    given = np.bincount(bin_G, both_G * probability_G, bins)
    used = both > 0
    return given[used] / both[used], genuine[used] / both[used], both[used]
