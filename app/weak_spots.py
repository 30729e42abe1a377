"""What in a gallery will go wrong: references that disagree, identities too close to tell apart, mislabelled images.

Pure functions on embeddings. Array axes: N references, R rows of them at a time.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from app.matching import MAX_DISTANCE, EmbeddingsF32, decide, distance

ROWS = 512


@dataclass(frozen=True)
class Enrolled:
    """A reference: where it stands, and its embedding `[D]`."""

    collection: str
    identity: str
    reference_id: str
    filename: str
    embedding_D: EmbeddingsF32


@dataclass(frozen=True)
class Spot:
    """Two references that should be farther apart, or nearer, and their distance."""

    collection: str
    identity_a: str
    reference_a: str
    identity_b: str
    reference_b: str
    distance: float


@dataclass(frozen=True)
class WeakSpots:
    """Of one collection.

    - `disagreeing`: identities of whose references some two are called dissimilar, by their farthest two;
    - `too_close`: pairs of identities of which two references are called similar, by their nearest two;
    - `mislabelled`: references that are called similar to one of another identity, and lie nearer to it than to all of
      their own, which they have; nearest first.
    """

    collection: str
    identities: int
    references: int
    threshold: float
    disagreeing: list[Spot]
    too_close: list[Spot]
    mislabelled: list[Spot]

    def document(self) -> dict[str, Any]:
        """As JSON shows it."""
        return asdict(self)


def look(enrolled: Sequence[Enrolled], threshold: float, *, progress: bool = True) -> WeakSpots:
    """Compare all references of one collection with each other, at the threshold that verifies."""
    names = sorted({one.identity for one in enrolled})
    place = {name: index for index, name in enumerate(names)}
    identity_N = np.array([place[one.identity] for one in enrolled], dtype=np.int64)
    embeddings_ND = np.stack([one.embedding_D for one in enrolled]).astype(np.float32)
    farthest: dict[int, tuple[float, int, int]] = {}
    nearest: dict[tuple[int, int], tuple[float, int, int]] = {}
    strange: list[tuple[int, int]] = []
    # a float32 expansion is off by some 1e-3 where images are alike; what is reported is measured exactly
    worth_measuring = threshold + 2e-3
    starts = range(0, len(enrolled), ROWS)
    for start in tqdm(starts, desc="comparing", unit="batch", disable=not progress or len(starts) < 2):
        rows_R = np.arange(start, min(start + ROWS, len(enrolled)))
        apart_RN = _distances(embeddings_ND[rows_R], embeddings_ND)
        same_RN = identity_N[rows_R, None] == identity_N[None, :]
        own_RN = np.where(same_RN, apart_RN, -1.0)
        own_RN[np.arange(len(rows_R)), rows_R] = -1.0
        other_RN = np.where(same_RN, np.inf, apart_RN)
        for row, column in zip(rows_R, own_RN.argmax(axis=1), strict=True):
            found = (float(own_RN[row - start, column]), int(row), int(column))
            farthest[int(identity_N[row])] = max(found, farthest.get(int(identity_N[row]), (-1.0, 0, 0)))
        for row, column in np.argwhere(other_RN <= worth_measuring):
            a, b = sorted((int(identity_N[rows_R[row]]), int(identity_N[column])))
            found = (float(other_RN[row, column]), int(rows_R[row]), int(column))
            nearest[a, b] = min(found, nearest.get((a, b), (np.inf, 0, 0)))
        own_nearest_R = np.where(own_RN < 0, np.inf, own_RN).min(axis=1)
        other_nearest_R = other_RN.min(axis=1)
        for row in np.flatnonzero((other_nearest_R < own_nearest_R) & np.isfinite(own_nearest_R)):
            strange.append((int(rows_R[row]), int(other_RN[row].argmin())))

    def spot(first: int, second: int) -> Spot:
        a, b = enrolled[first], enrolled[second]
        exact = distance(a.embedding_D, b.embedding_D)
        return Spot(a.collection, a.identity, a.reference_id, b.identity, b.reference_id, exact)

    def similar(found: Spot) -> bool:
        verdict = decide(found.distance, threshold)
        return verdict == "similar"

    disagreeing = [spot(a, b) for apart, a, b in farthest.values() if apart >= 0]
    too_close = [spot(a, b) for _, a, b in nearest.values()]
    mislabelled = [spot(a, b) for a, b in strange]
    return WeakSpots(
        collection=enrolled[0].collection,
        identities=len(names),
        references=len(enrolled),
        threshold=threshold,
        disagreeing=sorted((s for s in disagreeing if not similar(s)), key=lambda s: -s.distance),
        too_close=sorted(filter(similar, too_close), key=lambda s: s.distance),
        mislabelled=sorted(filter(similar, mislabelled), key=lambda s: s.distance),
    )


def _distances(some_RD: EmbeddingsF32, all_ND: EmbeddingsF32) -> NDArray[np.float32]:
    square_RN = 2 - 2 * (some_RD @ all_ND.T)
    return np.asarray(np.sqrt(np.clip(square_RN, 0, MAX_DISTANCE**2)), dtype=np.float32)
