"""Distances of pairs to error rates, thresholds and operating points: pure functions on arrays.

Pairs are counted over a grid of distances (`GRID`, steps of 0.0001), so that memory does not grow with the
number of pairs. Array axes: N images, G points of the grid, P pairs of identities.

FMR and FNMR are per comparison (ISO/IEC 19795-1). Every pair of identities weighs the same in FMR and every
identity the same in FNMR, however many images each has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.matching import MAX_DISTANCE, EmbeddingsF32, OperatingPoint

STEPS = 20_000
GRID: NDArray[np.float64] = np.linspace(0.0, MAX_DISTANCE, STEPS + 1)
TARGETS = (0.1, 0.01, 0.001, 0.0001)
# A rate is promised only if at least so many false matches, from so many pairs of identities, carry it.
MIN_FALSE_MATCHES = 10
MIN_IDENTITY_PAIRS = 10

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class PairCounts:
    """How many pairs lie at each distance; bin k holds distances in (GRID[k - 1], GRID[k]].

    `*_weight_G` sum to one (or to zero where there are no such pairs), `*_count_G` are plain counts.
    `closest_P` is the distance of the closest two images of each pair of identities, ascending.
    """

    genuine_weight_G: Float
    impostor_weight_G: Float
    same_group_weight_G: Float
    genuine_count_G: Int
    impostor_count_G: Int
    same_group_count_G: Int
    closest_P: Float
    identities: int

    @property
    def fmr_G(self) -> Float:
        """Share of impostor pairs called similar at each threshold of the grid."""
        return np.cumsum(self.impostor_weight_G)

    @property
    def same_group_fmr_G(self) -> Float:
        """The same over impostor pairs of one group, the near neighbours."""
        return np.cumsum(self.same_group_weight_G)

    @property
    def fnmr_G(self) -> Float:
        """Share of genuine pairs called dissimilar at each threshold of the grid."""
        missed_G: Float = self.genuine_weight_G.sum() - np.cumsum(self.genuine_weight_G)
        return np.clip(missed_G, 0, 1)


def grid_index(distances: Float) -> Int:
    """The first point of the grid at which a pair of this distance is called similar.

    >>> grid_index(np.array([0.0, 0.00005, 0.0001, 2.0])).tolist()
    [0, 1, 1, 20000]
    """
    scaled = np.asarray(distances, dtype=np.float64) * (STEPS / MAX_DISTANCE)
    # 1e-7 of a step of slack, so that a distance that stands on the grid does not fall behind it.
    return np.clip(np.ceil(scaled - 1e-7), 0, STEPS).astype(np.int64)


def count_pairs(embeddings_ND: EmbeddingsF32, identity_N: Int, group_N: Int) -> PairCounts:
    """Count all genuine and all impostor pairs of a labelled set, one identity at a time.

    Groups matter only if there are several; `same_group` stays empty otherwise.
    """
    order = np.argsort(identity_N, kind="stable")
    embeddings_ND, identity_N, group_N = (
        embeddings_ND[order].astype(np.float64),
        identity_N[order],
        group_N[order],
    )
    square_N = np.einsum("nd,nd->n", embeddings_ND, embeddings_ND)
    names, starts, sizes = np.unique(identity_N, return_index=True, return_counts=True)
    grouped = len(np.unique(group_N)) > 1
    share_N = 1.0 / np.repeat(sizes, sizes)

    size = STEPS + 1
    genuine_weight, impostor_weight, near_weight = np.zeros(size), np.zeros(size), np.zeros(size)
    genuine, impostor, near = (np.zeros(size, dtype=np.int64) for _ in range(3))
    closest: list[Float] = []
    for start, count in zip(starts, sizes, strict=True):
        mine, later = slice(start, start + count), slice(start + count, None)
        # float64 throughout: the expansion |a|^2 + |b|^2 - 2ab is then exact to 1e-8, far below a step.
        square = square_N[mine, None] + square_N[None, start:] - 2 * embeddings_ND[mine] @ embeddings_ND[start:].T
        distance = np.sqrt(np.maximum(square, 0))
        pairs = distance[:, :count][np.triu_indices(count, 1)]
        if len(pairs):
            bins = np.bincount(grid_index(pairs), minlength=size)
            genuine += bins
            genuine_weight += bins / len(pairs)
        others = distance[:, count:]
        if not others.size:
            continue
        index = grid_index(others)
        weight = np.broadcast_to(share_N[later] / count, others.shape)
        impostor += np.bincount(index.ravel(), minlength=size)
        impostor_weight += np.bincount(index.ravel(), weights=weight.ravel(), minlength=size)
        if grouped:
            columns = group_N[later] == group_N[start]
            near += np.bincount(index[:, columns].ravel(), minlength=size)
            near_weight += np.bincount(index[:, columns].ravel(), weights=weight[:, columns].ravel(), minlength=size)
        closest.append(np.minimum.reduceat(others.min(axis=0), starts[starts >= start + count] - start - count))
    return PairCounts(
        genuine_weight_G=_normalised(genuine_weight),
        impostor_weight_G=_normalised(impostor_weight),
        same_group_weight_G=_normalised(near_weight),
        genuine_count_G=genuine,
        impostor_count_G=impostor,
        same_group_count_G=near,
        closest_P=np.sort(np.concatenate(closest)) if closest else np.zeros(0),
        identities=len(names),
    )


def count_listed_pairs(distances: Float, same: NDArray[np.bool_]) -> PairCounts:
    """Count a given list of pairs; every pair weighs the same, and counts as a pair of identities."""
    size = STEPS + 1
    genuine = np.bincount(grid_index(distances[same]), minlength=size)
    impostor = np.bincount(grid_index(distances[~same]), minlength=size)
    return PairCounts(
        genuine_weight_G=_normalised(genuine.astype(np.float64)),
        impostor_weight_G=_normalised(impostor.astype(np.float64)),
        same_group_weight_G=np.zeros(size),
        genuine_count_G=genuine,
        impostor_count_G=impostor,
        same_group_count_G=np.zeros(size, dtype=np.int64),
        closest_P=np.sort(distances[~same]),
        identities=0,
    )


def _normalised(weight_G: Float) -> Float:
    total = weight_G.sum()
    return weight_G / total if total else weight_G


def threshold_at_fmr(fmr_G: Float, target: float) -> float | None:
    """The largest threshold of the grid whose FMR is at most `target`; None if even 0 has a larger one.

    >>> fmr_G = np.zeros(STEPS + 1); fmr_G[5000:] = 0.02
    >>> threshold_at_fmr(fmr_G, 0.01)
    0.4999
    """
    index = int(np.searchsorted(fmr_G, target + 1e-12, side="right")) - 1
    return float(GRID[index]) if index >= 0 else None


def equal_error_rate(fmr_G: Float, fnmr_G: Float) -> float:
    """The rate where FMR = FNMR, linear between two points of the grid.

    >>> equal_error_rate(np.linspace(0, 1, STEPS + 1), np.linspace(1, 0, STEPS + 1))
    0.5
    """
    above = int(np.argmax(fmr_G >= fnmr_G))
    if above == 0:
        return float((fmr_G[0] + fnmr_G[0]) / 2)
    gap_before, gap_after = fnmr_G[above - 1] - fmr_G[above - 1], fmr_G[above] - fnmr_G[above]
    share = gap_before / (gap_before + gap_after) if gap_before + gap_after else 0.0
    return float(fmr_G[above - 1] + share * (fmr_G[above] - fmr_G[above - 1]))


def equal_error_rates(counts: PairCounts) -> tuple[float | None, float | None]:
    """EER with all impostors and with those of the same group; null without pairs of both kinds."""
    if not counts.genuine_count_G.any() or not counts.impostor_count_G.any():
        return None, None
    near = counts.same_group_count_G.any()
    return (
        equal_error_rate(counts.fmr_G, counts.fnmr_G),
        equal_error_rate(counts.same_group_fmr_G, counts.fnmr_G) if near else None,
    )


def verification_accuracy(counts: PairCounts) -> float:
    """Share of right verdicts at the best threshold where genuine and impostor pairs are equally many."""
    return float(1 - ((counts.fmr_G + counts.fnmr_G) / 2).min())


def contrastive_loss(counts: PairCounts, margin: float) -> float:
    """The loss of `training.loss` over all pairs counted, impostor term averaged over all impostor pairs."""
    genuine = (counts.genuine_weight_G * GRID**2).sum() / 2
    impostor = (counts.impostor_weight_G * np.maximum(0, margin - GRID) ** 2).sum() / 2
    return float(genuine + impostor)


def rates_at(counts: PairCounts, threshold: float) -> dict[str, Any]:
    """FMR and FNMR at one threshold, with pair counts; null where there are no such pairs."""
    index = int(np.floor(threshold * (STEPS / MAX_DISTANCE) + 1e-7))
    index = min(max(index, 0), STEPS)
    impostors, genuine, near = (
        int(bins.sum()) for bins in (counts.impostor_count_G, counts.genuine_count_G, counts.same_group_count_G)
    )
    return {
        "fmr": float(counts.fmr_G[index]) if impostors else None,
        "fnmr": float(counts.fnmr_G[index]) if genuine else None,
        "same_group_fmr": float(counts.same_group_fmr_G[index]) if near else None,
        "impostor_pairs": impostors,
        "false_matches": int(counts.impostor_count_G[: index + 1].sum()),
        "genuine_pairs": genuine,
        "false_non_matches": int(counts.genuine_count_G[index + 1 :].sum()),
        "same_group_impostor_pairs": near,
    }


def is_supported(counts: PairCounts, threshold: float) -> bool:
    """Whether the sample holds enough false matches at this threshold to promise its FMR."""
    false_matches = rates_at(counts, threshold)["false_matches"]
    identity_pairs = int(np.searchsorted(counts.closest_P, threshold, side="right"))
    return bool(false_matches >= MIN_FALSE_MATCHES and identity_pairs >= MIN_IDENTITY_PAIRS)


def operating_points(
    calibration: PairCounts, test: PairCounts, targets: Sequence[float] = TARGETS
) -> list[OperatingPoint]:
    """For each target FMR, the threshold chosen on calibration and the rates measured on test identities.

    A target that the calibration identities do not support gets a point without a threshold.
    """
    points = []
    for target in targets:
        threshold = threshold_at_fmr(calibration.fmr_G, target)
        if threshold is None or not is_supported(calibration, threshold):
            points.append(OperatingPoint(target_fmr=target, supported=False))
            continue
        rates = rates_at(test, threshold)
        points.append(
            OperatingPoint(
                target_fmr=target,
                supported=True,
                threshold=threshold,
                measured_on="test",
                **{name: rates[name] for name in _MEASURED},
            )
        )
    return points


_MEASURED = ("fmr", "fnmr", "impostor_pairs", "false_matches", "genuine_pairs", "false_non_matches")


def default_threshold(
    points: Sequence[OperatingPoint], target_fmr: float, margin: float
) -> tuple[float, Literal["calibration", "margin"], str | None]:
    """Threshold, its source and a note: that of `target_fmr`, or margin / 2 where it is not supported.

    At margin / 2 the loss's pull on a genuine pair (D) equals its push on an impostor pair (m - D).
    """
    for point in points:
        if point.target_fmr == target_fmr and point.supported and point.threshold is not None:
            return point.threshold, "calibration", None
    note = (
        f"The calibration identities hold too few false matches at FMR {target_fmr:g} (fewer than "
        f"{MIN_FALSE_MATCHES}, or from fewer than {MIN_IDENTITY_PAIRS} pairs of identities), so the threshold "
        "is margin / 2 and no error rate is promised. More identities would mend it."
    )
    return margin / 2, "margin", note


def curves(calibration: PairCounts, test: PairCounts) -> Mapping[str, NDArray[Any]]:
    """What `calibration.npz` holds: curves over `distance`, named by rate, population and references.

    `calibration_*` chose the thresholds, the others were measured on test identities. `_1`: one reference.
    """
    named = {
        "distance": GRID,
        "fmr_all_1": test.fmr_G,
        "fnmr_all_1": test.fnmr_G,
        "calibration_fmr_all_1": calibration.fmr_G,
        "calibration_fnmr_all_1": calibration.fnmr_G,
    }
    if test.same_group_count_G.any():
        named["fmr_same_group_1"] = test.same_group_fmr_G
    return {name: curve.astype(np.float32) for name, curve in named.items()}


def metrics(counts: PairCounts, threshold: float) -> dict[str, Any]:
    """The figures of one evaluation, as `metrics.json` holds them."""
    eer, same_group_eer = equal_error_rates(counts)
    return {
        "threshold": threshold,
        **rates_at(counts, threshold),
        "eer": eer,
        "same_group_eer": same_group_eer,
        "identities": counts.identities,
    }
