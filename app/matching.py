"""Distance to verdict: the one rule, the one distance, and where a threshold comes from.

Distances are Euclidean, between unit embeddings: 0 (alike) to 2 (opposite).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.errors import ConflictingFields, NotSupported

Verdict = Literal["similar", "dissimilar"]
ThresholdSource = Literal["calibration", "margin", "request"]
MAX_DISTANCE = 2.0

EmbeddingsF32 = NDArray[np.float32]


def decide(distance: float, threshold: float) -> Verdict:
    """The verdict. Nothing else in Diptych compares a distance with a threshold to answer a caller.

    >>> decide(0.5, 0.5), decide(0.51, 0.5)
    ('similar', 'dissimilar')
    """
    return "similar" if distance <= threshold else "dissimilar"


def distances(probe_D: EmbeddingsF32, references_ND: EmbeddingsF32) -> NDArray[np.float64]:
    """Euclidean distance of one embedding `[D]` to each of `[N, D]`, as float64 `[N]`.

    Differences are taken in float64, which is exact for float32 embeddings; the expansion
    |a|^2 + |b|^2 - 2ab that indexes use loses half the digits where images are nearly alike.
    """
    difference_ND = references_ND.astype(np.float64) - probe_D.astype(np.float64)
    distance_N: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", difference_ND, difference_ND))
    return np.minimum(distance_N, MAX_DISTANCE)


def distance(a_D: EmbeddingsF32, b_D: EmbeddingsF32) -> float:
    """Euclidean distance of two embeddings `[D]`."""
    return float(distances(a_D, b_D[None, :])[0])


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold with the error rates measured for it.

    The threshold was chosen for `target_fmr` on calibration identities; `fmr` and `fnmr` were measured on
    `measured_on` identities, over `impostor_pairs` and `genuine_pairs`, of which `false_matches` and
    `false_non_matches` were decided wrongly. Rates weigh each pair of identities (FMR) and each identity
    (FNMR) the same, so they are not simply the quotients of the counts. Where the calibration holds too few
    false matches to promise anything, `supported` is false and the rest is null.
    """

    target_fmr: float
    supported: bool
    threshold: float | None = None
    fmr: float | None = None
    fmr_ci95: tuple[float, float] | None = None
    fnmr: float | None = None
    fnmr_ci95: tuple[float, float] | None = None
    measured_on: Literal["test", "calibration"] | None = None
    impostor_pairs: int | None = None
    false_matches: int | None = None
    genuine_pairs: int | None = None
    false_non_matches: int | None = None


@dataclass(frozen=True)
class Threshold:
    """A threshold, where it comes from, and the operating point behind it if there is one."""

    value: float
    source: ThresholdSource
    point: OperatingPoint | None = None


def choose_threshold(
    default: Threshold,
    points: Sequence[OperatingPoint],
    *,
    threshold: float | None = None,
    target_fmr: float | None = None,
) -> Threshold:
    """The threshold for one request: the caller's own, that of a calibrated target, or the default.

    Raises `ConflictingFields` for both at once and `NotSupported` for a target that was not calibrated.
    """
    if threshold is not None and target_fmr is not None:
        raise ConflictingFields("Give `threshold` or `target_fmr`, not both.")
    if threshold is not None:
        return Threshold(threshold, "request")
    if target_fmr is None:
        return default
    supported = [point for point in points if point.supported and point.threshold is not None]
    for point in supported:
        if point.threshold is not None and np.isclose(point.target_fmr, target_fmr, rtol=1e-9, atol=0.0):
            return Threshold(point.threshold, "calibration", point)
    known = ", ".join(f"{point.target_fmr:g}" for point in supported) or "none"
    raise NotSupported(
        f"This checkpoint has no threshold calibrated for target_fmr {target_fmr:g}. Calibrated: {known}.",
        supported_target_fmr=[point.target_fmr for point in supported],
    )
