"""Claims: a probe against the references of one identity, as `/verify` judges them.

With one reference a claim is a pair. With several, the nearest one decides. More references mean more chances of a
lucky match, so error rates depend on their number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from app.arrays import Floats, Ints
from app.checkpoint.matching import MAX_DISTANCE
from training.calibration.pairs import STEPS, Labelled, PairCounts, grid_index, normalised

# At most this many sets of references are drawn from an identity: more add little, and cost memory.
SETS = 64
Rule = Literal["nearest", "mean"]
RULES: tuple[Rule, ...] = ("nearest", "mean")  # the rule that serves, and one that it was compared with


@dataclass(frozen=True)
class Claim:
    """All probes against some sets of references of the identity at `position`.

    `genuine`: distances of its other images. `impostors` `[S, M]`: those of all images of other identities, of which
    `position_of_impostor` `[M]` names the identity.
    """

    position: int
    genuine: Floats
    impostors: Floats
    position_of_impostor: Ints


def draw_claims(data: Labelled, references: int = 1, rule: Rule = "nearest", seed: int = 0) -> Iterator[Claim]:
    """Every identity is claimed by every probe, `references` of its images being enrolled.

    References are drawn at random, each image for at most one set. Identities with too few images are not claimed, but
    their images are probes.

    >>> from training.calibration.pairs import sort_by_identity
    >>> points = np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
    >>> data = sort_by_identity(points, np.array([0, 0, 1]), np.zeros(3))
    >>> [(claim.position, claim.genuine.round(3).tolist(), claim.impostors.shape) for claim in draw_claims(data)]
    [(0, [0.894, 0.894], (2, 1)), (1, [], (1, 2))]
    """
    rng = np.random.default_rng(seed)
    position_N = data.position_N
    for position, size in enumerate(data.sizes_U):
        span = data.of(position)
        if size < references:
            continue
        sets = min(SETS, size // references)
        chosen_SR = rng.permutation(size)[: sets * references].reshape(sets, references)
        distance_SN = _distances(data.embeddings_ND, span.start + chosen_SR, rule)
        left = np.ones((sets, size), dtype=bool)
        left[np.arange(sets)[:, None], chosen_SR] = False
        other_N = position_N != position
        yield Claim(position, distance_SN[:, span][left], distance_SN[:, other_N], position_N[other_N])


def _distances(embeddings_ND: Floats, references_SR: Ints, rule: Rule) -> Floats:
    """Distances `[S, N]` of all images to sets of references, by the rule."""
    references_SRD = embeddings_ND[references_SR]
    if rule == "mean":
        mean_SD = references_SRD.mean(axis=1)
        mean_SD /= np.linalg.norm(mean_SD, axis=1, keepdims=True)
        references_SRD = mean_SD[:, None, :]
    square_N = np.einsum("nd,nd->n", embeddings_ND, embeddings_ND)
    square_SR = np.einsum("srd,srd->sr", references_SRD, references_SRD)
    square = square_SR[:, :, None] + square_N - 2 * references_SRD @ embeddings_ND.T
    nearest_SN = np.sqrt(np.maximum(square.min(axis=1), 0))
    return np.asarray(np.minimum(nearest_SN, MAX_DISTANCE), dtype=np.float64)


def count_claims(data: Labelled, references: int, rule: Rule = "nearest", seed: int = 0) -> PairCounts:
    """Count claims in the way of pairs: every pair of a probe's and a claimed identity weighs the same.

    >>> from training.calibration.pairs import sort_by_identity
    >>> points = np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
    >>> data = sort_by_identity(points, np.array([0, 0, 1]), np.zeros(3))
    >>> counts = count_claims(data, references=1)  # each pair is claimed in both directions
    >>> int(counts.genuine_count_G.sum()), int(counts.impostor_count_G.sum()), counts.closest_P.round(3).tolist()
    (2, 4, [0.632])
    """
    size = STEPS + 1
    genuine_weight, impostor_weight = np.zeros(size), np.zeros(size)
    genuine, impostor = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    closest_UU = np.full((len(data.sizes_U), len(data.sizes_U)), np.inf)
    for claim in draw_claims(data, references, rule, seed):
        counted = np.bincount(grid_index(claim.genuine), minlength=size)
        genuine += counted
        genuine_weight += counted / max(1, claim.genuine.size)
        if not claim.impostors.size:
            continue
        index = grid_index(claim.impostors)
        weight = np.broadcast_to(1 / (data.sizes_U[claim.position_of_impostor] * len(claim.impostors)), index.shape)
        impostor += np.bincount(index.ravel(), minlength=size)
        impostor_weight += np.bincount(index.ravel(), weights=weight.ravel(), minlength=size)
        first = np.flatnonzero(np.diff(claim.position_of_impostor, prepend=-1))
        nearest = np.minimum.reduceat(claim.impostors.min(axis=0), first)
        closest_UU[claim.position, claim.position_of_impostor[first]] = nearest
    # either may have claimed to be the other; it stays one pair of identities
    closest_P = np.minimum(closest_UU, closest_UU.T)[np.triu_indices(len(closest_UU), 1)]
    return PairCounts(
        genuine_weight_G=normalised(genuine_weight),
        impostor_weight_G=normalised(impostor_weight),
        same_group_weight_G=np.zeros(size),
        genuine_count_G=genuine,
        impostor_count_G=impostor,
        same_group_count_G=np.zeros(size, dtype=np.int64),
        closest_P=np.sort(closest_P[np.isfinite(closest_P)]),
        identities=len(data.sizes_U),
        genuine_identities=int((data.sizes_U > references).sum()),
    )
