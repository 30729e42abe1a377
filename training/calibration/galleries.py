"""How often a search finds somebody although the probe's identity is not enrolled, by the size of the gallery.

FPIR at N identities is the mean over probes of 1 - (1 - FMR_probe)^N, not of the mean FMR: some probes look like many
identities, most like none, and the first saturate (P. Grother, J. Phillips, "Models of large population recognition
performance", CVPR 2004, on the spread between probes). FMR_probe is taken as beta-distributed, which gives
FPIR = 1 - B(a, b + N) / B(a, b), and its two numbers are set by what the sample shows: the mean FMR, and how many
probes match anybody among all identities that the sample has.
"""

from dataclasses import dataclass

import numpy as np

from app.arrays import Floats
from app.checkpoint.matching import fpir
from training.calibration.claims import draw_claims
from training.calibration.pairs import STEPS, Labelled, grid_index

# Limits of a + b of the beta distribution. At the low end a probe matches all or none, at the high end all probes are
# alike.
CONCENTRATIONS = (1e-4, 1e6)


@dataclass(frozen=True)
class Spread:
    """Of the false-match rate over probes, by threshold: its mean `[K]` and its concentration `[K]`."""

    mean_K: Floats
    concentration_K: Floats


def spread_over_probes(data: Labelled, references: int, thresholds_K: Floats) -> Spread:
    """Measure every probe against every other identity, with `references` of the identity's images enrolled.

    >>> from training.calibration.pairs import sort_by_identity
    >>> data = sort_by_identity(np.eye(3, dtype=np.float32), np.arange(3), np.zeros(3))  # all at right angles
    >>> spread_over_probes(data, 1, np.array([1.0, 1.5])).mean_K.tolist()
    [0.0, 1.0]
    """
    bin_of_G = np.searchsorted(grid_index(thresholds_K), np.arange(STEPS + 1))
    size, images = len(thresholds_K), len(data.embeddings_ND)
    position_N = data.position_N
    expected, nobody = np.zeros((images, size)), np.ones((images, size))
    searched = np.zeros(images)
    for claim in draw_claims(data, references):
        if not claim.impostors.size:
            continue
        other_N = position_N != claim.position
        sets = len(claim.impostors)
        flat = np.arange(claim.impostors.shape[1]) * (size + 1) + bin_of_G[grid_index(claim.impostors)]
        count = np.bincount(flat.ravel(), minlength=claim.impostors.shape[1] * (size + 1))
        share = count.reshape(-1, size + 1).cumsum(axis=1)[:, :size] / sets
        expected[other_N] += share
        nobody[other_N] *= 1 - share
        searched[other_N] += 1
    weight_N = (1 / data.sizes_U)[position_N] * (searched > 0)
    total = weight_N.sum()
    if not total:
        return Spread(np.full(size, np.nan), np.full(size, np.nan))
    mean_K = weight_N @ (expected / np.maximum(searched, 1)[:, None]) / total
    fpir_K = weight_N @ (1 - nobody) / total
    return Spread(mean_K, concentration(mean_K, fpir_K, float(searched.max())))


def concentration(mean_K: Floats, fpir_K: Floats, identities: float) -> Floats:
    """The a + b with which a beta distribution of this mean has this FPIR at so many identities.

    >>> mean = np.array([0.01])
    >>> c = concentration(mean, fpir(mean, np.array([5.0]), 50), 50)
    >>> round(float(c[0]), 3)
    5.0
    """
    low, high = (np.full(len(mean_K), np.log(limit)) for limit in CONCENTRATIONS)
    for _ in range(60):
        middle = (low + high) / 2
        short = fpir(mean_K, np.exp(middle), identities) < fpir_K
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.asarray(np.exp((low + high) / 2), dtype=np.float64)
