"""Training speed beside what bounds it, and beside pytorch-metric-learning.

    python -m benchmarks.training DRAWINGS PHOTOS        (Omniglot's images_background, grocery_store/train)

The bound is a loop that only does forward, backward and step on one resident batch, with the same network, batch,
precision and optimizer. The three loops take turns, a few steps each, so that a busy machine slows all alike; ratios
are medians over the turns. `from disk` keeps the decoded pixels in a file, as data sets beyond memory do, and its last
column counts the decoding of the JPEGs in, spread over the epochs of a default run.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from lightning_fabric import Fabric
from pytorch_metric_learning.losses import ContrastiveLoss
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from training.data import dataset as folders
from training.data.dataset import Dataset, read_dataset
from training.data.survey import complete_recipe
from training.network.architecture import architecture_of
from training.network.backbones import build
from training.network.encoder import to_float
from training.recipe import Recipe, read_recipe
from training.run.experiment import Experiment
from training.run.health import EpochSums
from training.run.loss import contrastive_loss
from training.run.processes import open_fabric
from training.run.trainer import Trainer

TURNS, STEPS = 7, 5


def loops(fabric: Fabric, recipe: Recipe, data: Dataset) -> dict[str, Callable[[int], None]]:
    """The loops to compare; each does so many steps."""
    everyone = np.arange(len(data.identities))
    description = architecture_of(data, np.arange(len(data)), recipe)

    ours = Trainer(Experiment(fabric, data, {"train": everyone}, recipe, description), build(description))
    ours.learner.train()
    sums, done = EpochSums(1, recipe), [0]

    def run_ours(steps: int) -> None:
        for _ in range(steps):
            ours.step(done[0], sums)
            done[0] += 1

    def network() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        fresh = build(description).to(memory_format=torch.channels_last)
        fresh.train()
        return fresh, torch.optim.AdamW(fresh.parameters(), recipe.learning_rate)

    bare, bare_optimizer = network()
    index = ours.batches.draw_batch(0)
    identity_B = torch.from_numpy(data.identity_N[index])
    resident = to_float(torch.from_numpy(data.images_NHWC[index])).contiguous(memory_format=torch.channels_last)

    def step(
        encoder: torch.nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> None:
        with fabric.autocast():
            embeddings = encoder.embed(images)  # type: ignore[operator]
        optimizer.zero_grad(set_to_none=True)
        loss(embeddings).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def run_bare(steps: int) -> None:
        for _ in range(steps):
            step(bare, bare_optimizer, resident, lambda e: sum(contrastive_loss(e, identity_B, 1.0)))  # type: ignore[arg-type,return-value]

    theirs, their_optimizer = network()
    labels = torch.from_numpy(data.identity_N)
    pixels = torch.from_numpy(np.ascontiguousarray(data.images_NHWC))
    sampler = MPerClassSampler(labels, recipe.images_per_identity, ours.balance.size, 10**6)
    loader = iter(DataLoader(TensorDataset(pixels, labels), batch_size=ours.balance.size, sampler=sampler))
    their_loss = ContrastiveLoss(pos_margin=0, neg_margin=1)

    def run_theirs(steps: int) -> None:
        for _ in range(steps):
            images, own = next(loader)
            step(theirs, their_optimizer, to_float(images).contiguous(memory_format=torch.channels_last),
                 lambda e, own=own: their_loss(e, own))  # type: ignore[misc]  # fmt: skip

    return {"bare": run_bare, "ours": run_ours, "theirs": run_theirs}


def compare(recipe: Recipe, root: Path, *, on_disk: bool) -> str:
    fabric = open_fabric(recipe)
    recipe = complete_recipe(root, recipe)
    folders.IN_MEMORY_BYTES = 0 if on_disk else 2**40
    started = time.perf_counter()
    data = read_dataset(root, recipe.preprocessing, progress=False)
    decoding = time.perf_counter() - started
    run = loops(fabric, recipe, data)
    size = recipe.identities_per_batch * recipe.images_per_identity
    for warm_up in run.values():
        warm_up(2)
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(TURNS):
        for name, go in run.items():
            started = time.perf_counter()
            go(STEPS)
            seconds[name].append(time.perf_counter() - started)
    speed = {name: size * STEPS / median(each) for name, each in seconds.items()}

    def over(other: str) -> float:
        return median(b / a for a, b in zip(seconds["ours"], seconds[other], strict=True))

    trained = recipe.epochs * len(data)
    with_decoding = trained / (trained / speed["ours"] + decoding) / speed["bare"]
    return (
        f"| {root.name}, {recipe.image_size} px, {recipe.backbone}, {'from disk' if on_disk else 'in memory'} "
        f"| {speed['bare']:.0f} | {speed['ours']:.0f} | {speed['theirs']:.0f} | {over('bare'):.2f} "
        f"| {over('theirs'):.2f} | {with_decoding:.2f} |"
    )


def main(drawings: Path, photos: Path) -> None:
    print(
        "| data | bare loop, img/s | Diptych | pytorch-metric-learning | of the bare loop | over p-m-l | decoding too |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(compare(read_recipe("omniglot", {}), drawings, on_disk=False), flush=True)
    print(compare(Recipe(), photos, on_disk=True), flush=True)
    print(compare(Recipe(backbone="mobilenet_v3_large", identities_per_batch=8), photos, on_disk=True), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.training DRAWINGS PHOTOS")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
