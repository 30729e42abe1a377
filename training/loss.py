"""The contrastive loss on Euclidean distances over all pairs of a batch."""

from typing import Literal

import torch
from torch import Tensor

# Under the root. Where two embeddings coincide the root's slope is infinite and the gradient NaN; with this
# it is zero, and a distance is at most 1e-6 too long.
EPSILON = 1e-12

Average = Literal["active", "all"]


def pair_distances(embeddings_BD: Tensor) -> Tensor:
    """Euclidean distances `[B, B]` between all embeddings `[B, D]`, differentiable also at zero."""
    difference_BBD = embeddings_BD[:, None, :] - embeddings_BD[None, :, :]
    return torch.sqrt(difference_BBD.square().sum(dim=2) + EPSILON)


def contrastive_loss(
    embeddings_BD: Tensor, identity_B: Tensor, margin: float, impostors: Average = "active"
) -> tuple[Tensor, Tensor]:
    """The genuine and the impostor term of the loss; their sum is the loss.

    L = (1 - Y) D^2 / 2 + Y max(0, m - D)^2 / 2, with Y = 0 for a genuine and Y = 1 for an impostor pair
    (R. Hadsell, S. Chopra, Y. LeCun, "Dimensionality reduction by learning an invariant mapping", CVPR 2006,
    equation 4). The terms are averaged separately, so that the many impostor pairs do not drown the few
    genuine ones. `impostors` says over which pairs the impostor term is averaged: all of them, or only the
    `active` ones inside the margin, whose push then does not fade as more and more pairs are solved.
    A batch without pairs of a kind contributes zero for it.
    """
    distance_BB = pair_distances(embeddings_BD)
    upper = torch.ones_like(distance_BB, dtype=torch.bool).triu(diagonal=1)
    same = identity_B[:, None] == identity_B[None, :]
    genuine = distance_BB[same & upper]
    impostor = distance_BB[~same & upper]
    shortfall = (margin - impostor).clamp(min=0)
    weight = int((shortfall > 0).sum()) if impostors == "active" else len(impostor)
    return (
        genuine.square().sum() / (2 * max(1, len(genuine))),
        shortfall.square().sum() / (2 * max(1, weight)),
    )
