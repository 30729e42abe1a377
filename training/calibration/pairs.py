"""Embeddings to counts of pairs: how many genuine and impostor pairs lie at each distance.

Pairs are counted over a grid of distances (`GRID`, steps of 0.0001), so that memory does not grow with their
number.

FMR and FNMR are per comparison (ISO/IEC 19795-1). Every pair of identities weighs the same in FMR and every
identity the same in FNMR, however many images each has.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from app.arrays import Bools, EmbeddingsF32, Floats, Ints
from app.checkpoint.matching import MAX_DISTANCE

STEPS = 20_000
GRID: Floats = np.linspace(0.0, MAX_DISTANCE, STEPS + 1)

# Images compared with all that follow at a time.
ROWS = 512


@dataclass(frozen=True)
class PairCounts:
    """How many pairs lie at each distance; bin k holds distances in (GRID[k - 1], GRID[k]].

    `*_weight_G` sum to one (or to zero where there are no such pairs), `*_count_G` are plain counts.
    `closest_P` is the distance of the closest two images of each pair of identities, ascending;
    `genuine_identities` are those with two images at least.
    """

    genuine_weight_G: Floats
    impostor_weight_G: Floats
    same_group_weight_G: Floats
    genuine_count_G: Ints
    impostor_count_G: Ints
    same_group_count_G: Ints
    closest_P: Floats
    identities: int
    genuine_identities: int

    @property
    def fmr_G(self) -> Floats:
        """Share of impostor pairs called similar at each threshold of the grid."""
        return np.cumsum(self.impostor_weight_G)

    @property
    def same_group_fmr_G(self) -> Floats:
        """Share of impostor pairs within a group, the near neighbours, called similar at each threshold of the grid."""
        return np.cumsum(self.same_group_weight_G)

    @property
    def fnmr_G(self) -> Floats:
        """Share of genuine pairs called dissimilar at each threshold of the grid."""
        # summed from the far end, so that it is exactly zero where no error is left
        beyond_G: Floats = np.cumsum(self.genuine_weight_G[::-1])[::-1]
        return np.append(beyond_G[1:], 0.0)


def grid_index(distances: Floats) -> Ints:
    """The first point of the grid at which a pair of this distance is called similar.

    >>> grid_index(np.array([0.0, 0.00005, 0.0001, 2.0])).tolist()
    [0, 1, 1, 20000]
    """
    scaled = np.asarray(distances, dtype=np.float64) * (STEPS / MAX_DISTANCE)
    # 1e-7 of a step of slack, so that a distance that stands on the grid does not fall behind it.
    return np.clip(np.ceil(scaled - 1e-7), 0, STEPS).astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """Distances of some images of one identity: to others of the same identity, and `[R, M]` to all of later ones."""

    identity: int
    genuine: Floats
    impostors: Floats


@dataclass(frozen=True)
class Labelled:
    """Embeddings `[N, D]` sorted by identity, and where each of the U identities starts, how many images it has, its
    name `identity_U` and its group `group_U`."""

    embeddings_ND: Floats
    starts_U: Ints
    sizes_U: Ints
    identity_U: Ints
    group_U: Ints

    @property
    def position_N(self) -> Ints:
        """The position of each image's identity among the U identities."""
        return np.repeat(np.arange(len(self.sizes_U)), self.sizes_U)

    def of(self, position: int) -> slice:
        """Where the images of one identity are."""
        return slice(int(self.starts_U[position]), int(self.starts_U[position] + self.sizes_U[position]))

    def rows(self) -> Iterator[Rows]:
        """Distances of all pairs, ROWS images at a time; the rows of an identity follow one another."""
        # float64 throughout: the expansion |a|^2 + |b|^2 - 2ab is then exact to 1e-8, far below a step of the grid.
        x_ND = self.embeddings_ND
        square_N = np.einsum("nd,nd->n", x_ND, x_ND)
        for position in range(len(self.sizes_U)):
            span = self.of(position)
            for first in range(span.start, span.stop, ROWS):
                block = slice(first, min(first + ROWS, span.stop))
                square = square_N[block, None] + square_N[None, first:] - 2 * x_ND[block] @ x_ND[first:].T
                distance = np.sqrt(np.maximum(square, 0))
                within = distance[:, : span.stop - first]
                genuine = within[np.triu_indices(len(within), 1, within.shape[1])]
                yield Rows(position, genuine, distance[:, span.stop - first :])


def sort_by_identity(embeddings_ND: EmbeddingsF32, identity_N: Ints, group_N: Ints) -> Labelled:
    """Sort a labelled set by identity. Each identity belongs to one group.

    >>> found = sort_by_identity(np.eye(3, dtype=np.float32), np.array([7, 4, 7]), np.array([0, 1, 0]))
    >>> found.identity_U.tolist(), found.sizes_U.tolist(), found.starts_U.tolist(), found.group_U.tolist()
    ([4, 7], [1, 2], [0, 1], [1, 0])
    """
    order = np.argsort(identity_N, kind="stable")
    names, starts, sizes = np.unique(identity_N[order], return_index=True, return_counts=True)
    return Labelled(embeddings_ND[order].astype(np.float64), starts, sizes, names, group_N[order][starts])


def count_pairs(embeddings_ND: EmbeddingsF32, identity_N: Ints, group_N: Ints) -> PairCounts:
    """Count all genuine and all impostor pairs of a labelled set, one identity at a time.

    Where there is only one group, `same_group` stays empty.

    >>> right_angles = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    >>> counts = count_pairs(right_angles, np.array([0, 0, 1]), np.zeros(3, dtype=int))
    >>> int(counts.genuine_count_G.sum()), int(counts.impostor_count_G.sum()), counts.closest_P.round(4).tolist()
    (1, 2, [1.4142])
    """
    sorted_set = sort_by_identity(embeddings_ND, identity_N, group_N)
    starts, sizes, group_U = sorted_set.starts_U, sorted_set.sizes_U, sorted_set.group_U
    grouped = len(np.unique(group_U)) > 1
    share_N, group_of_N = 1.0 / np.repeat(sizes, sizes), np.repeat(group_U, sizes)

    size = STEPS + 1
    genuine_weight, impostor_weight, near_weight = np.zeros(size), np.zeros(size), np.zeros(size)
    genuine, impostor, near = (np.zeros(size, dtype=np.int64) for _ in range(3))
    closest = {position: np.full(len(sizes) - position - 1, np.inf) for position in range(len(sizes) - 1)}
    for rows in sorted_set.rows():
        position, count, end = rows.identity, sizes[rows.identity], sorted_set.of(rows.identity).stop
        counted = np.bincount(grid_index(rows.genuine), minlength=size)
        genuine += counted
        genuine_weight += counted / max(1, count * (count - 1) // 2)
        if not rows.impostors.size:
            continue
        index = grid_index(rows.impostors)
        weight = np.broadcast_to(share_N[end:] / count, index.shape)
        impostor += np.bincount(index.ravel(), minlength=size)
        impostor_weight += np.bincount(index.ravel(), weights=weight.ravel(), minlength=size)
        columns = group_of_N[end:] == group_U[position]
        if grouped and columns.any():
            near += np.bincount(index[:, columns].ravel(), minlength=size)
            near_weight += np.bincount(index[:, columns].ravel(), weights=weight[:, columns].ravel(), minlength=size)
        nearest = np.minimum.reduceat(rows.impostors.min(axis=0), starts[position + 1 :] - end)
        closest[position] = np.minimum(closest[position], nearest)
    return PairCounts(
        genuine_weight_G=normalised(genuine_weight),
        impostor_weight_G=normalised(impostor_weight),
        same_group_weight_G=normalised(near_weight),
        genuine_count_G=genuine,
        impostor_count_G=impostor,
        same_group_count_G=near,
        closest_P=np.sort(np.concatenate(list(closest.values()))) if closest else np.zeros(0),
        identities=len(sizes),
        genuine_identities=int((sizes > 1).sum()),
    )


def count_listed_pairs(distances: Floats, same: Bools) -> PairCounts:
    """Count the pairs of a list. Every pair weighs the same, and counts as a pair of identities of its own.

    >>> counts = count_listed_pairs(np.array([0.2, 0.8, 0.6, 1.0]), np.array([True, True, False, False]))
    >>> counts.fmr_G[[0, 6000, 10000]].tolist(), counts.fnmr_G[[0, 2000, 8000]].tolist()
    ([0.0, 0.5, 1.0], [1.0, 0.5, 0.0])
    """
    size = STEPS + 1
    genuine = np.bincount(grid_index(distances[same]), minlength=size)
    impostor = np.bincount(grid_index(distances[~same]), minlength=size)
    return PairCounts(
        genuine_weight_G=normalised(genuine.astype(np.float64)),
        impostor_weight_G=normalised(impostor.astype(np.float64)),
        same_group_weight_G=np.zeros(size),
        genuine_count_G=genuine,
        impostor_count_G=impostor,
        same_group_count_G=np.zeros(size, dtype=np.int64),
        closest_P=np.sort(distances[~same]),
        identities=0,
        genuine_identities=int(genuine.sum()),
    )


def normalised(weight_G: Floats) -> Floats:
    """Weights that sum to one, or zeros where there are none.

    >>> normalised(np.array([1.0, 3.0])).tolist(), normalised(np.zeros(2)).tolist()
    ([0.25, 0.75], [0.0, 0.0])
    """
    total = weight_G.sum()
    return weight_G / total if total else weight_G
