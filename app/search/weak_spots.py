"""The weak spots of a gallery: references that disagree, identities too close to tell apart, mislabelled images.

Pure functions on embeddings.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app.arrays import EmbeddingsF32, Floats32, Ints
from app.checkpoint.matching import MAX_DISTANCE, decide, distance
from app.gallery.references import Enrolled
from app.progress import track

# Distances compared at a time, and how many pairs of identities are kept at most: the nearest.
CELLS, MOST = 2**25, 10_000


@dataclass(frozen=True)
class Spot:
    """Two references that should be farther apart, or nearer, and their distance, 0 to 2."""

    collection: str
    identity_a: str
    reference_a: str
    identity_b: str
    reference_b: str
    distance: float


@dataclass(frozen=True)
class WeakSpots:
    """The weak spots of one collection.

    - `disagreeing`: identities with two references that are dissimilar; their farthest two, farthest first;
    - `too_close`: pairs of identities with references that are similar; their nearest two, nearest first; at most the
      10,000 nearest pairs;
    - `mislabelled`: references that are similar to one of another identity, and nearer to it than to any other
      reference of their own identity; nearest first.
    """

    collection: str
    identities: int
    references: int
    threshold: float
    disagreeing: list[Spot]
    too_close: list[Spot]
    mislabelled: list[Spot]

    def document(self) -> dict[str, Any]:
        """As written to JSON."""
        return asdict(self)


def find_weak_spots(enrolled: Sequence[Enrolled], threshold: float, *, progress: bool = True) -> WeakSpots:
    """Compare all references of one collection with each other, at a threshold (a distance, 0 to 2)."""
    names = sorted({reference.identity for reference in enrolled})
    place = {name: index for index, name in enumerate(names)}
    identity_N = np.array([place[reference.identity] for reference in enrolled], dtype=np.int64)
    embeddings_ND = np.stack([reference.embedding_D for reference in enrolled]).astype(np.float32)
    farthest: dict[int, tuple[float, int, int]] = {}
    nearest = _Nearest(len(names))
    strange: list[tuple[int, int]] = []
    rows_at_once = max(1, CELLS // len(enrolled))
    starts = range(0, len(enrolled), rows_at_once)
    # Distances from a float32 matrix product are off by up to 1e-3 where images are alike; hits are measured again.
    limit = threshold + 2e-3
    for start in track(starts, "comparing", "batches", enabled=progress and len(starts) > 1):
        rows_R = np.arange(start, min(start + rows_at_once, len(enrolled)))
        distance_RN = _distances(embeddings_ND[rows_R], embeddings_ND)
        same_RN = identity_N[rows_R, None] == identity_N[None, :]
        own_RN = np.where(same_RN, distance_RN, -1.0)
        own_RN[np.arange(len(rows_R)), rows_R] = -1.0
        other_RN = np.where(same_RN, np.inf, distance_RN)
        for row, column in zip(rows_R, own_RN.argmax(axis=1), strict=True):
            candidate = (float(own_RN[row - start, column]), int(row), int(column))
            farthest[int(identity_N[row])] = max(candidate, farthest.get(int(identity_N[row]), (-1.0, 0, 0)))
        row_I, column_I = np.nonzero(other_RN <= limit)
        row_I, column_I = row_I[rows_R[row_I] < column_I], column_I[rows_R[row_I] < column_I]  # each pair once
        nearest.add(identity_N[rows_R[row_I]], identity_N[column_I], other_RN[row_I, column_I], rows_R[row_I], column_I)
        own_nearest_R = np.where(own_RN < 0, np.inf, own_RN).min(axis=1)
        other_nearest_R = other_RN.min(axis=1)
        for row in np.flatnonzero((other_nearest_R < own_nearest_R) & np.isfinite(own_nearest_R)):
            strange.append((int(rows_R[row]), int(other_RN[row].argmin())))

    def spot(first: int, second: int) -> Spot:
        a, b = enrolled[first], enrolled[second]
        exact = distance(a.embedding_D, b.embedding_D)
        return Spot(a.collection, a.identity, a.reference_id, b.identity, b.reference_id, exact)

    def is_similar(pair: Spot) -> bool:
        verdict = decide(pair.distance, threshold)
        return verdict == "similar"

    disagreeing = [spot(a, b) for exact, a, b in farthest.values() if exact >= 0]
    too_close = [spot(int(a), int(b)) for a, b in zip(nearest.first_P, nearest.second_P, strict=True)]
    mislabelled = [spot(a, b) for a, b in strange]
    return WeakSpots(
        collection=enrolled[0].collection,
        identities=len(names),
        references=len(enrolled),
        threshold=threshold,
        disagreeing=sorted((s for s in disagreeing if not is_similar(s)), key=lambda s: -s.distance),
        too_close=sorted(filter(is_similar, too_close), key=lambda s: s.distance),
        mislabelled=sorted(filter(is_similar, mislabelled), key=lambda s: s.distance),
    )


class _Nearest:
    """The nearest two references of each pair of identities; at most `MOST` pairs, the nearest."""

    def __init__(self, identities: int) -> None:
        self._identities = identities
        self._pair_P = np.empty(0, dtype=np.int64)
        self._distance_P = np.empty(0, dtype=np.float32)
        self.first_P = np.empty(0, dtype=np.int64)
        self.second_P = np.empty(0, dtype=np.int64)

    def add(self, a_I: Ints, b_I: Ints, distance_I: Floats32, first_I: Ints, second_I: Ints) -> None:
        pair_I = np.minimum(a_I, b_I) * self._identities + np.maximum(a_I, b_I)
        pair, distance = np.append(self._pair_P, pair_I), np.append(self._distance_P, distance_I)
        first, second = np.append(self.first_P, first_I), np.append(self.second_P, second_I)
        order = np.lexsort((distance, pair))
        order = order[np.flatnonzero(np.diff(pair[order], prepend=-1))]  # the nearest of each pair of identities
        order = order[np.argsort(distance[order], kind="stable")[:MOST]]
        self._pair_P, self._distance_P = pair[order], distance[order]
        self.first_P, self.second_P = first[order], second[order]


def _distances(rows_RD: EmbeddingsF32, all_ND: EmbeddingsF32) -> Floats32:
    square_RN = 2 - 2 * (rows_RD @ all_ND.T)
    return np.asarray(np.sqrt(np.clip(square_RN, 0, MAX_DISTANCE**2)), dtype=np.float32)
