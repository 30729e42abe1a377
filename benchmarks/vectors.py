"""Embeddings for measuring galleries of any size: real ones of ours, mixed and jittered by real amounts.

`diptych embed omniglot .../omniglot --output FILE.npz` gives the real ones. A made identity lies between two real
characters; each of its references is off its centre as some real drawing is off its character's. So neighbourhoods
are as crowded as real ones, which random directions are not.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REFERENCES_EACH = 5


@dataclass(frozen=True)
class Real:
    """Mean embeddings of characters `[C, D]`, and how far each drawing is off its own `[N, D]`."""

    centres_CD: NDArray[np.float32]
    offsets_ND: NDArray[np.float32]


def read(file: Path) -> Real:
    """What `diptych embed` wrote; the folder of an image is its character."""
    with np.load(file) as arrays:
        embeddings_ND, paths = arrays["embeddings"], arrays["paths"]
    _, character_N = np.unique([path.rpartition("/")[0] for path in paths], return_inverse=True)
    centres_CD = np.stack([embeddings_ND[character_N == c].mean(axis=0) for c in range(character_N.max() + 1)])
    return Real(centres_CD, embeddings_ND - centres_CD[character_N])


class Made:
    """`count` references of identities with five each, and probes; the same for the same seed."""

    def __init__(self, real: Real, count: int, seed: int = 0) -> None:
        self._real = real
        self._rng = np.random.default_rng(seed)
        self._centres_ID = self._mixed(count // REFERENCES_EACH)
        self.identity_N = np.repeat(np.arange(len(self._centres_ID)), REFERENCES_EACH)
        self.references_ND = np.concatenate(
            [self._jittered(self._centres_ID[part]) for part in np.array_split(self.identity_N, 100)]
        )

    def probes(self, count: int) -> NDArray[np.float32]:
        """Half show an identity that is enrolled, by another image; half show strangers."""
        known = self._centres_ID[self._rng.integers(len(self._centres_ID), size=count // 2)]
        probes_ND = self._jittered(np.concatenate([known, self._mixed(count - count // 2)]))
        return probes_ND[self._rng.permutation(count)]

    def _mixed(self, count: int) -> NDArray[np.float32]:
        a, b = self._rng.integers(len(self._real.centres_CD), size=(2, count))
        share = self._rng.uniform(0.2, 0.8, size=(count, 1)).astype(np.float32)
        return unit(share * self._real.centres_CD[a] + (1 - share) * self._real.centres_CD[b])

    def _jittered(self, centres_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        offsets = self._real.offsets_ND
        return unit(centres_ND + offsets[self._rng.integers(len(offsets), size=len(centres_ND))])


def unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return scaled
