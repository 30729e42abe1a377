"""Distance to verdict: the one rule, and the one distance.

Distances are Euclidean, between unit embeddings: 0 (alike) to 2 (opposite).
"""

import math
from typing import Literal

import numpy as np

from app.arrays import EmbeddingsF32, Floats

Verdict = Literal["similar", "inconclusive", "dissimilar"]
MAX_DISTANCE = 2.0


def decide(distance: float, threshold: float, inconclusive_to: float | None = None) -> Verdict:
    """The verdict. Nothing else in Diptych compares a distance with a threshold to answer a caller.

    Between `threshold` and `inconclusive_to`, where one is given, lies the band of distances that decide nothing.

    >>> decide(0.5, 0.5), decide(0.51, 0.5), decide(0.51, 0.5, 0.6)
    ('similar', 'dissimilar', 'inconclusive')
    """
    if distance <= threshold:
        return "similar"
    return "inconclusive" if inconclusive_to is not None and distance <= inconclusive_to else "dissimilar"


def distances(probe_D: EmbeddingsF32, references_ND: EmbeddingsF32) -> Floats:
    """Euclidean distance of one embedding `[D]` to each of `[N, D]`, as float64 `[N]`.

    Differences are taken in float64, which is exact for float32 embeddings; the expansion
    |a|^2 + |b|^2 - 2ab that indexes use loses half the digits where images are nearly alike.
    """
    difference_ND = references_ND.astype(np.float64) - probe_D.astype(np.float64)
    distance_N: Floats = np.sqrt(np.einsum("nd,nd->n", difference_ND, difference_ND))
    return np.minimum(distance_N, MAX_DISTANCE)


def distance(a_D: EmbeddingsF32, b_D: EmbeddingsF32) -> float:
    """Euclidean distance of two embeddings `[D]`."""
    return float(distances(a_D, b_D[None, :])[0])


def fpir(mean: Floats, concentration: Floats, identities: float) -> Floats:
    """How often a search of a gallery of so many identities finds an identity for something that is not in it (FPIR).

    1 - B(a, b + N) / B(a, b): the mean over probes of 1 - (1 - FMR)^N where the FMR of a probe is beta-distributed with
    mean a / (a + b) = `mean` and a + b = `concentration`.

    >>> [round(float(fpir(np.array(0.01), np.array(c), 100)), 3) for c in (1e6, 10.0)]
    [0.634, 0.217]
    """
    mean = np.clip(mean, 1e-12, 1 - 1e-12)
    a, b = mean * concentration, (1 - mean) * concentration
    log_nobody = _lgamma(b + identities) - _lgamma(b) - _lgamma(a + b + identities) + _lgamma(a + b)
    return np.clip(-np.expm1(np.asarray(log_nobody, dtype=np.float64)), 0, 1)


_lgamma = np.frompyfunc(math.lgamma, 1, 1)
