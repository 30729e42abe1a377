"""The pairs that an encoder finds hardest, for the report."""

from dataclasses import dataclass

import numpy as np

from app.arrays import EmbeddingsF32, Floats, Ints

# Images compared with all others at a time.
ROWS = 512


@dataclass(frozen=True)
class Pair:
    """Two images, by their indices, and their distance."""

    first: int
    second: int
    distance: float


def hardest_pairs(embeddings_ND: EmbeddingsF32, identity_N: Ints, count: int) -> tuple[list[Pair], list[Pair]]:
    """The farthest genuine and the nearest impostor pairs, hardest first.

    At most one genuine pair of each identity and one impostor pair of each two identities, so that one odd image does
    not fill the page. Memory grows with the number of images, not of pairs.

    >>> points = np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
    >>> (genuine,), (impostor,) = hardest_pairs(points, np.array([0, 0, 1]), 12)
    >>> (genuine.first, genuine.second), (impostor.first, impostor.second, round(impostor.distance, 3))
    ((0, 1), (1, 2, 0.632))
    """
    wide_ND = embeddings_ND.astype(np.float64)
    farthest: dict[int, Pair] = {}
    nearest: dict[tuple[int, int], Pair] = {}
    for identity in np.unique(identity_N).tolist():
        members, others = np.flatnonzero(identity_N == identity), np.flatnonzero(identity_N > identity)
        for start in range(0, len(members), ROWS):
            rows = members[start : start + ROWS]
            within = _distances(wide_ND[rows], wide_ND[members])
            row, column = divmod(int(within.argmax()), len(members))
            far = Pair(int(rows[row]), int(members[column]), float(within[row, column]))
            if len(members) > 1 and (identity not in farthest or far.distance > farthest[identity].distance):
                farthest[identity] = far
            if not len(others):
                continue
            across = _distances(wide_ND[rows], wide_ND[others])
            closest = across.min(axis=0)
            for column in np.argsort(closest)[: 4 * count].tolist():
                near = Pair(int(rows[across[:, column].argmin()]), int(others[column]), float(closest[column]))
                key = (identity, int(identity_N[others[column]]))
                if key not in nearest or near.distance < nearest[key].distance:
                    nearest[key] = near
    genuine = sorted(farthest.values(), key=lambda pair: -pair.distance)
    return genuine[:count], sorted(nearest.values(), key=lambda pair: pair.distance)[:count]


def _distances(a_ND: Floats, b_ND: Floats) -> Floats:
    distances: Floats = np.sqrt(np.maximum(2 - 2 * a_ND @ b_ND.T, 0))
    return distances
