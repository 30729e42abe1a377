"""Class imbalance: does an identity with a hundred times the images of another dominate what is learned?

    python -m benchmarks.imbalance [FOLDER]        (default: the drawings of the tests)

The same training identities, five drawings each, three ways: as they are; with 500 drawings of one of them (its ten,
slightly turned and sheared); and those again, but with batches drawn image by image instead of identity by identity.
The same number of steps each. Error rates on characters that none of them saw.
"""

import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from app.arrays import Ints
from training.calibration.pairs import count_pairs
from training.calibration.rates import equal_error_rates
from training.data.augment import KINDS, apply_moves, draw_moves
from training.data.batches import Batches
from training.data.dataset import Dataset, read_dataset
from training.network.architecture import architecture_of
from training.network.backbones import build
from training.network.encoder import Encoder, embed_with_network, to_float
from training.recipe import Recipe
from training.run import trainer
from training.run.experiment import Experiment
from training.run.health import EpochSums
from training.run.processes import open_fabric

SEEDS, MANY, FEW = 5, 500, 5
RECIPE = Recipe(image_size=32, channels=1, aspect="pad", augment="lines", width=0.5, epochs=1, identities_per_batch=16)
STEPS = 400


class ImageByImage(Batches):
    """What a plain loader does: every image as likely as any other, so most pairs are of the large identity."""

    def draw_batch(self, number: int) -> Ints:
        rng = np.random.default_rng((self.seed, number, 0))
        of_members = np.concatenate([self.images_of[int(identity)] for identity in self.members])
        return np.sort(rng.choice(of_members, self.balance.size, replace=len(of_members) < self.balance.size))


def grown(data: Dataset, identity: int) -> Dataset:
    """The data set with `MANY` images of one identity."""
    own = np.flatnonzero(data.identity_N == identity)
    rng = np.random.default_rng(0)
    index = rng.choice(own, MANY)
    images = to_float(torch.from_numpy(data.images_NHWC[index]))
    moved = apply_moves(images, draw_moves(KINDS["lines"].times(0.5), np.arange(MANY), 1, 1, rng))
    pixels = (moved * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return replace(
        data,
        images_NHWC=np.concatenate([data.images_NHWC, pixels]),
        identity_N=np.concatenate([data.identity_N, np.full(MANY, identity)]),
        paths=[*data.paths, *(f"grown/{number}" for number in range(MANY))],
    )


def eer_of(network: Encoder, data: Dataset, identities: Ints) -> float:
    index = data.images_of(identities)
    counts = count_pairs(
        embed_with_network(network, data.images_NHWC, index), data.identity_N[index], data.group_N[index]
    )
    eer, _ = equal_error_rates(counts)
    assert eer is not None
    return eer


def main(root: Path) -> None:
    recipe = RECIPE
    data = read_dataset(root, recipe.preprocessing, progress=False)
    order = np.random.default_rng(1).permutation(len(data.identities))
    train, unseen = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    few = np.concatenate([np.flatnonzero(data.identity_N == identity)[:FEW] for identity in train])
    kept = np.sort(np.concatenate([few, data.images_of(unseen)]))
    even = replace(
        data,
        images_NHWC=data.images_NHWC[kept],
        identity_N=data.identity_N[kept],
        paths=[data.paths[index] for index in kept],
    )
    uneven = grown(even, int(train[0]))
    ways = {
        f"{FEW} drawings each": (even, Batches),
        f"{MANY + FEW} of one, {FEW} of each other": (uneven, Batches),
        "the same, drawn image by image": (uneven, ImageByImage),
    }
    print(
        f"| training set ({len(train)} identities) | EER on {len(unseen)} unseen | lowest to highest of {SEEDS} seeds |"
    )
    print("| --- | --- | --- |")
    for name, (drawings, kind) in ways.items():
        trainer.Batches = kind  # type: ignore[misc]
        eers = []
        for seed in range(SEEDS):
            chosen = recipe.but(seed=seed)
            fabric = open_fabric(chosen)
            architecture = architecture_of(drawings, drawings.images_of(train), chosen)
            experiment = Experiment(fabric, drawings, {"train": train}, chosen, architecture)
            run, sums = trainer.Trainer(experiment, build(architecture)), EpochSums(1, chosen)
            run.steps_per_epoch = STEPS  # one epoch of this many steps
            run.learner.train()
            for number in range(STEPS):
                run.step(number, sums)
            eers.append(eer_of(run.averaged, even, unseen))
        print(f"| {name} | {mean(eers):.1%} | {min(eers):.1%} to {max(eers):.1%} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "tests/data/omniglot/background")
