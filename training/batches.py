"""Identity-balanced batches: P identities x K images, whatever the sizes of the folders.

Every identity is as likely as any other, so one with a hundred times the images does not dominate; and each
image meets K - 1 genuine and (P - 1) K impostor partners, so neither kind of pair runs dry.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


def identity_batches(
    identity_N: NDArray[np.int64],
    group_of_identity: NDArray[np.int64],
    members: NDArray[np.int64],
    balance: Balance,
    rng: np.random.Generator,
) -> Iterator[NDArray[np.int64]]:
    """Endless batches of image indices `[P * K]`, identity after identity, drawn from `members` only.

    An identity with fewer than K images repeats some: its copies differ by augmentation alone. With
    fewer than P identities the batch is smaller.
    """
    images_of = {int(identity): np.flatnonzero(identity_N == identity) for identity in members}
    members_of = [members[group_of_identity[members] == group] for group in np.unique(group_of_identity[members])]
    count = min(balance.identities, len(members))
    near = round(count * balance.near_share) if len(members_of) > balance.near_groups else 0
    while True:
        groups = rng.choice(len(members_of), size=min(balance.near_groups, len(members_of)), replace=False)
        neighbours = np.concatenate([members_of[group] for group in groups])
        close = rng.permutation(neighbours)[:near]
        others = rng.permutation(np.setdiff1d(members, close, assume_unique=True))[: count - len(close)]
        yield np.concatenate([_draw(images_of[int(identity)], balance.images, rng) for identity in (*close, *others)])


def _draw(images: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    if len(images) >= count:
        return rng.choice(images, size=count, replace=False)
    return np.concatenate([images, rng.choice(images, size=count - len(images), replace=True)])
