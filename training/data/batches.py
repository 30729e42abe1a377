"""Identity-balanced batches: P identities x K images, whatever the sizes of the folders.

However many images an identity has, it is drawn as often as any other of its group, so an identity with a hundred times
the images does not dominate. Each image has K - 1 genuine and (P - 1) K impostor partners, so there are always pairs of
both kinds.

A batch is a function of the seed and its number. So an interrupted run can continue to the same result, and several
processes draw the same batch and each take their share of it.
"""

from dataclasses import dataclass

import numpy as np

from app.arrays import Ints


@dataclass(frozen=True)
class Balance:
    """Shape of a batch. `near_share` of the identities come from `near_groups` groups, if there are groups,
    so that some impostors are near neighbours (other characters of the same alphabet)."""

    identities: int
    images: int
    near_share: float
    near_groups: int

    @property
    def size(self) -> int:
        return self.identities * self.images


class Batches:
    """Batches drawn from the identities `members` only; the same for the same seed and number."""

    def __init__(self, identity_N: Ints, group_of_identity: Ints, members: Ints, balance: Balance, seed: int) -> None:
        self.members = members
        self.balance = balance
        self.seed = seed
        order = np.argsort(identity_N, kind="stable")
        names, starts = np.unique(identity_N[order], return_index=True)
        images = np.split(order, starts[1:])
        self.images_of = dict(zip(names.tolist(), images, strict=True))
        groups = group_of_identity[members]
        self.members_of = [members[groups == group] for group in np.unique(groups)]

    def draw_batch(self, number: int) -> Ints:
        """Image indices `[P * K]` of one batch, identity after identity.

        If an identity has fewer than K images, some are repeated and differ only by augmentation. With fewer than P
        identities the batch is smaller.
        """
        rng = np.random.default_rng((self.seed, number, 0))
        balance, members = self.balance, self.members
        count = min(balance.identities, len(members))
        near = round(count * balance.near_share) if len(self.members_of) > balance.near_groups else 0
        groups = rng.choice(len(self.members_of), size=min(balance.near_groups, len(self.members_of)), replace=False)
        neighbours = np.concatenate([self.members_of[group] for group in groups])
        close = rng.permutation(neighbours)[:near]
        others = rng.permutation(np.setdiff1d(members, close, assume_unique=True))[: count - len(close)]
        identities = (*close, *others)
        return np.concatenate(
            [_draw_images(self.images_of[int(identity)], balance.images, rng) for identity in identities]
        )


def _draw_images(images: Ints, count: int, rng: np.random.Generator) -> Ints:
    if len(images) >= count:
        return rng.choice(images, size=count, replace=False)
    return np.concatenate([images, rng.choice(images, size=count - len(images), replace=True)])
