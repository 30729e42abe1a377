"""The pairs that an encoder finds hardest: what a reader should look at first."""

from dataclasses import dataclass

import numpy as np

from app.matching import EmbeddingsF32
from training.pairs import Float, Int


@dataclass(frozen=True)
class Pair:
    """Two images, by their indices, and their distance."""

    first: int
    second: int
    distance: float


def hardest_pairs(embeddings_ND: EmbeddingsF32, identity_N: Int, count: int) -> tuple[list[Pair], list[Pair]]:
    """The farthest genuine and the nearest impostor pairs, hardest first.

    At most one genuine pair of an identity and one impostor pair of two identities, so that one odd image does
    not fill the page. Memory grows with the number of images, not of pairs.
    """
    wide_ND = embeddings_ND.astype(np.float64)
    genuine: list[Pair] = []
    impostor: dict[tuple[int, int], Pair] = {}
    for identity in np.unique(identity_N):
        own = np.flatnonzero(identity_N == identity)
        others = np.flatnonzero(identity_N > identity)
        within = _apart(wide_ND[own], wide_ND[own])
        if len(own) > 1:
            genuine.append(_pair(own, own, within, int(within.argmax())))
        if len(others):
            across = _apart(wide_ND[own], wide_ND[others])
            nearest = across.min(axis=0)
            for column in np.argsort(nearest)[: 4 * count]:
                found = Pair(int(own[across[:, column].argmin()]), int(others[column]), float(nearest[column]))
                key = (int(identity), int(identity_N[others[column]]))
                if key not in impostor or found.distance < impostor[key].distance:
                    impostor[key] = found
    genuine.sort(key=lambda pair: -pair.distance)
    return genuine[:count], sorted(impostor.values(), key=lambda pair: pair.distance)[:count]


def _apart(a_ND: Float, b_ND: Float) -> Float:
    apart: Float = np.sqrt(np.maximum(2 - 2 * a_ND @ b_ND.T, 0))
    return apart


def _pair(rows: Int, columns: Int, apart: Float, flat: int) -> Pair:
    row, column = divmod(flat, apart.shape[1])
    return Pair(int(rows[row]), int(columns[column]), float(apart[row, column]))
