"""The contrastive loss on Euclidean distances over all pairs of a batch, and against learned centres."""

from typing import Literal

import torch
from torch import Tensor

# Added under the square root in `centre_loss`. Where two embeddings coincide, the slope of the root is infinite and the
# gradient NaN; with this it is zero, and a distance is at most 1e-6 too long.
EPSILON = 1e-12

Mining = Literal["all", "active", "semi-hard", "hardest"]


def pair_distances(embeddings_BD: Tensor) -> Tensor:
    """Euclidean distances `[B, B]` between all embeddings `[B, D]`, differentiable also at zero (there by zero)."""
    return torch.cdist(embeddings_BD, embeddings_BD, compute_mode="donot_use_mm_for_euclid_dist")


def contrastive_loss(
    embeddings_BD: Tensor, identity_B: Tensor, margin: float, impostors: Mining = "active"
) -> tuple[Tensor, Tensor]:
    """The genuine and the impostor term of the loss; their sum is the loss.

    L = (1 - Y) D^2 / 2 + Y max(0, m - D)^2 / 2, with Y = 0 for a genuine and Y = 1 for an impostor pair
    (R. Hadsell, S. Chopra, Y. LeCun, "Dimensionality reduction by learning an invariant mapping", CVPR 2006,
    equation 4). The terms are averaged separately, so that the many impostor pairs do not outweigh the few genuine
    ones. `impostors` says which impostor pairs the second average is over (see `mine_impostors`). A term without pairs
    is zero.
    """
    distance_BB = pair_distances(embeddings_BD)
    same_BB = identity_B[:, None] == identity_B[None, :]
    genuine_BB = same_BB & ~torch.eye(len(same_BB), dtype=torch.bool, device=same_BB.device)
    chosen_BB = mine_impostors(distance_BB.detach(), genuine_BB, ~same_BB, margin, impostors)
    genuine = distance_BB[genuine_BB]
    shortfall = (margin - distance_BB[chosen_BB]).clamp(min=0)
    return (
        genuine.square().sum() / (2 * max(1, len(genuine))),
        shortfall.square().sum() / (2 * max(1, len(shortfall))),
    )


def mine_impostors(distance_BB: Tensor, genuine_BB: Tensor, impostor_BB: Tensor, margin: float, how: Mining) -> Tensor:
    """Which impostor pairs `[B, B]` the loss looks at, row by row (each image is an anchor once).

    - `all`: all of them.
    - `active`: those inside the margin. Their push does not fade as more and more pairs are solved.
    - `semi-hard`: of those, the ones farther than the anchor's nearest genuine partner; an impostor nearer than
      every genuine partner may be a mislabelled image, and pushing at nothing else can collapse the embedding
      (F. Schroff, D. Kalenichenko, J. Philbin, "FaceNet", CVPR 2015, section 3.2).
    - `hardest`: each anchor's nearest (A. Hermans, L. Beyer, B. Leibe, "In defense of the triplet loss", 2017).
    """
    if how == "all":
        return impostor_BB
    active_BB = impostor_BB & (distance_BB < margin)
    if how == "active":
        return active_BB
    far = torch.full_like(distance_BB, torch.inf)
    if how == "semi-hard":
        nearest_B1 = torch.where(genuine_BB, distance_BB, far).amin(dim=1, keepdim=True)
        return active_BB & (distance_BB > torch.where(nearest_B1.isinf(), 0.0, nearest_B1))
    nearest_B1 = torch.where(impostor_BB, distance_BB, far).argmin(dim=1, keepdim=True)
    return active_BB & torch.zeros_like(active_BB).scatter(1, nearest_B1, True)


def supervised_loss(embeddings_BD: Tensor, identity_B: Tensor, temperature: float) -> Tensor:
    """The supervised contrastive loss: each genuine partner should be nearer than all other images of the batch.

    The mean over all ordered genuine pairs (i, p) of -log(exp(s_ip / t) / sum over j != i of exp(s_ij / t)), with
    s the cosine, 1 - D^2 / 2 (P. Khosla et al., "Supervised contrastive learning", NeurIPS 2020, equation 2, each pair
    weighing the same). It has no margin: it compares distances with each other, and the nearest impostors count
    most. Zero without genuine pairs.
    """
    cosine_BB = embeddings_BD @ embeddings_BD.T / temperature
    self_BB = torch.eye(len(cosine_BB), dtype=torch.bool, device=cosine_BB.device)
    genuine_BB = (identity_B[:, None] == identity_B[None, :]) & ~self_BB
    others_B1 = cosine_BB.masked_fill(self_BB, -torch.inf).logsumexp(dim=1, keepdim=True)
    return (others_B1 - cosine_BB)[genuine_BB].sum() / genuine_BB.sum().clamp(min=1)


def centre_loss(embeddings_BD: Tensor, centres_KD: Tensor, centre_B: Tensor, symmetries: int, margin: float) -> Tensor:
    """The same loss between each embedding and a learned unit centre of every training identity.

    So each image is compared with all identities in each step, not only with those of its batch. The idea is that of
    proxies (Y. Movshovitz-Attias et al., "No fuss distance metric learning using proxies", ICCV 2017), but the loss is
    the contrastive one. `centre_B` is the index of each image's centre. Each identity has one centre for each of its
    `symmetries`, in a row. Its other centres are not impostors, since a turned O is an O. The impostor term is averaged
    over the pairs inside the margin.
    """
    cosine_BK = embeddings_BD @ centres_KD.T
    distance_BK = torch.sqrt((2 - 2 * cosine_BK).clamp(min=EPSILON))
    identity_K = torch.arange(len(centres_KD), device=centre_B.device) // symmetries
    impostor_BK = (centre_B // symmetries)[:, None] != identity_K[None, :]
    genuine = distance_BK.gather(1, centre_B[:, None])
    shortfall = (margin - distance_BK).clamp(min=0) * impostor_BK
    active = (shortfall > 0).sum().clamp(min=1)
    return genuine.square().mean() / 2 + shortfall.square().sum() / (2 * active)
