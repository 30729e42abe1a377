"""The loop: batches, loss, step; and after each epoch a look at identities that are not trained on."""

import copy
import math
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from app.arrays import Ints
from app.errors import UsageError
from training.calibration import rates
from training.calibration.pairs import count_pairs
from training.data.augment import KINDS, Augmentation, apply, draw
from training.data.batches import Balance, Batches
from training.data.dataset import Dataset
from training.export import embed
from training.network.encoder import Encoder, to_float
from training.recipe import Recipe
from training.run import health
from training.run.loss import centre_loss, contrastive_loss, supervised_loss
from training.run.processes import gather, share_norms
from training.run.resume import Progress, load_state, save_state

Row = dict[str, Any]


class Learner(nn.Module):
    """The encoder and, where the recipe asks for them, a centre of each identity in each of its symmetries."""

    def __init__(self, encoder: Encoder, centres: int, embedding_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.centres = nn.Parameter(torch.randn(centres, embedding_dim)) if centres else None

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Unit embeddings `[B, D]` of float images in [0, 1], and unit centres `[K, D]`."""
        centres = None if self.centres is None else F.normalize(self.centres.float(), dim=1)
        return self.encoder.embed(images_BCHW), centres


class Fit:
    """A run of the loop over one data set: what stays the same from step to step."""

    def __init__(self, fabric: Fabric, network: Encoder, dataset: Dataset, identities: Ints, recipe: Recipe) -> None:
        self.fabric, self.dataset, self.recipe = fabric, dataset, recipe
        self.how = augmentation(recipe)
        balance = Balance(
            _divisible(min(recipe.identities_per_batch, len(identities)), fabric.world_size),
            recipe.images_per_identity,
            recipe.near_share,
            recipe.near_groups,
        )
        self.balance = balance
        self.batches = Batches(dataset.identity_N, dataset.group_of_identity, identities, balance, recipe.seed)
        self.steps = max(1, round(len(dataset.images_of(identities)) / balance.size))  # an epoch's
        share = balance.size // fabric.world_size
        self.share = slice(share * fabric.global_rank, share * (fabric.global_rank + 1))
        # an identity's first centre, one for each symmetry; identities that are not trained on have none
        self.centre_of = np.full(len(dataset.identities), -1)
        self.centre_of[identities] = np.arange(len(identities)) * self.how.symmetries

        self.averaged = copy.deepcopy(network).to(fabric.device)
        centres = self.how.symmetries * len(identities) if recipe.centres else 0
        share_norms(network, fabric)
        self.learner = Learner(network, centres, recipe.embedding_dim).to(memory_format=torch.channels_last)
        self.twins, self.optimizer = fabric.setup(self.learner, _optimizer(self.learner, recipe))

    @property
    def key(self) -> dict[str, str]:
        """What the run is of: every choice of the recipe, the data, the processes and their build."""
        choices = {name: str(value) for name, value in self.recipe.model_dump().items()}
        return {
            **choices,
            "data": self.dataset.fingerprint,
            "number of processes": str(self.fabric.world_size),
            "number of threads": str(torch.get_num_threads()),
            "device": self.fabric.device.type,
            "precision": self.fabric.strategy.precision.precision,
            "version of PyTorch": str(torch.__version__),
            "version of Diptych": version("diptych"),
        }

    def step(self, number: int, watch: health.Watch) -> None:
        """One batch: embed, compare, step downhill. A function of the weights, the seed and `number`."""
        recipe, fabric, device = self.recipe, self.fabric, self.fabric.device
        index_B = self.batches.draw(number)
        channels = self.dataset.images_NHWC.shape[3]
        rng = np.random.default_rng((recipe.seed, number, 1))
        identity_P = self.dataset.identity_N[index_B[:: self.balance.images]]
        group_P = self.dataset.group_of_identity[identity_P]
        moves = draw(self.how, group_P, self.balance.images, channels, rng)
        pixels_BHWC = torch.from_numpy(self.dataset.images_NHWC[index_B[self.share]]).to(device)
        images_BCHW = apply(to_float(pixels_BHWC), moves.part(self.share, device))

        torch.manual_seed((recipe.seed + 1_000_003 * number + fabric.global_rank) % 2**63)  # dropout's
        embeddings_BD, centres_KD = self.twins(images_BCHW.contiguous(memory_format=torch.channels_last))
        embeddings_BD = gather(fabric, embeddings_BD)
        identity_B, margin = torch.from_numpy(self.dataset.identity_N[index_B]).to(device), recipe.fixed_margin
        genuine, impostor = contrastive_loss(embeddings_BD, identity_B, margin, recipe.impostors)
        loss = genuine + impostor
        if recipe.supervised:
            loss = loss + recipe.supervised * supervised_loss(embeddings_BD, identity_B, recipe.temperature)
        if centres_KD is not None:
            own_B = torch.from_numpy(self.centre_of[self.dataset.identity_N[index_B]]) + moves.symmetry_B
            loss = loss + recipe.centres * centre_loss(
                embeddings_BD, centres_KD, own_B.to(device), self.how.symmetries, margin
            )
        watch.see(loss.detach(), genuine.detach(), impostor.detach())

        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(number, recipe.epochs * self.steps, recipe.warm_up_share)
        self.optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        if recipe.clip:
            fabric.clip_gradients(self.twins, self.optimizer, max_norm=recipe.clip, error_if_nonfinite=False)
        self.optimizer.step()
        _follow(self.averaged, self.learner.encoder, recipe.ema, number)

    def save(self, state: Path, done: Progress, best: Encoder) -> None:
        """Write how far the run has come."""
        precision = self.fabric.strategy.precision
        save_state(state, self.key, done, self.learner, self.averaged, best, self.optimizer, precision)


def fit(
    fabric: Fabric,
    network: Encoder,
    dataset: Dataset,
    train_identities: Ints,
    validation_N: Ints,
    recipe: Recipe,
    *,
    state: Path | None = None,
    record: Callable[[Row], None] = lambda row: None,
    progress: bool = True,
    words: str = "training",
) -> tuple[Encoder, Progress]:
    """Train `network`. Returns the moving average of its weights: of the last epoch, or with patience the best.

    Validation is over all pairs of `validation_N`, images of identities that are not trained on. After each
    epoch the run's state goes to the file `state`; if there is one at the start, the run goes on from there,
    to the same result. Raises `TrainingFailed` where training is beyond repair.
    """
    run = Fit(fabric, network, dataset, train_identities, recipe)
    done, best = Progress(), run.averaged
    if state is not None and state.exists():
        done, best = load_state(state, run.key, run.learner, run.averaged, run.optimizer, fabric.strategy.precision)
        for earlier in done.history:
            record(earlier)
    elif state is not None and fabric.is_global_zero:
        run.save(state, done, best)  # so that there is something to go on from, whenever it ends
    shown = progress and fabric.is_global_zero
    total = recipe.epochs * run.steps
    with tqdm(total=total, initial=done.epoch * run.steps, unit="step", smoothing=0.05, disable=not shown) as bar:
        bar.set_description(words)
        for epoch in range(done.epoch + 1, recipe.epochs + 1):
            if recipe.patience and epoch > done.best_epoch + recipe.patience:
                break
            run.learner.train()
            started, watch = time.monotonic(), health.Watch(epoch, recipe)
            for number in range((epoch - 1) * run.steps, epoch * run.steps):
                run.step(number, watch)
                bar.update()
            row: Row = {"epoch": epoch, "steps": epoch * run.steps, **watch.row()}
            if fabric.is_global_zero:
                row |= _validate(run.averaged, dataset, validation_N, recipe.fixed_margin)
                row["seconds"] = time.monotonic() - started
            row = fabric.broadcast(row)
            done.see(row)
            health.judge(row, recipe, done.warnings)
            if recipe.patience and done.best_epoch == epoch:
                best = copy.deepcopy(run.averaged)
            record(row)
            if state is not None and fabric.is_global_zero:
                run.save(state, done, best)
            bar.set_postfix(
                loss=f"{row['train_loss']:.4f}",
                validation_loss=f"{row['validation_loss']:.4f}",
                validation_eer="-" if row["validation_eer"] is None else f"{row['validation_eer']:.2%}",
            )
    health.after(done.history[(done.best_epoch if recipe.patience else done.epoch) - 1], done.warnings)
    return best, done


def augmentation(recipe: Recipe) -> Augmentation:
    """What the recipe does to images; its kind is settled by then."""
    how = KINDS[recipe.augment].times(recipe.strength)
    return how.with_symmetries(quarter_turns=recipe.quarter_turns, mirrors=recipe.mirrors)


def schedule(step: int, total: int, warm_up_share: float) -> float:
    """Share of the peak learning rate: a linear warm-up, then half a cosine down to zero."""
    warm_up = warm_up_share * total
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1.0, total - warm_up)))


def _validate(network: Encoder, dataset: Dataset, of: Ints, margin: float) -> Row:
    embeddings_ND = embed(network, dataset.images_NHWC, of)
    if not np.isfinite(embeddings_ND).all():
        names = ("accuracy", "eer", "same_group_eer", "impostor_distance")
        return {"validation_loss": math.nan, **{f"validation_{name}": None for name in names}}
    counts = count_pairs(embeddings_ND, dataset.identity_N[of], dataset.group_N[of])
    eer, same_group_eer = rates.equal_error_rates(counts)
    return {
        "validation_loss": rates.contrastive_loss(counts, margin),
        "validation_accuracy": rates.verification_accuracy(counts),
        "validation_eer": eer,
        "validation_same_group_eer": same_group_eer,
        "validation_impostor_distance": rates.mean_impostor_distance(counts),
    }


@torch.no_grad()
def _follow(averaged: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the exponential average of weights and norms one step towards the network.

    Short-sighted at first, min(decay, (1 + step) / (10 + step)), so that a short run is not mostly its
    random start (as TensorFlow's `ExponentialMovingAverage` does with `num_updates`).
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for average, current in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if average.is_floating_point():
            average.lerp_(current, weight)


def _divisible(identities: int, processes: int) -> int:
    if identities < processes:
        raise UsageError(f"A batch of {identities} identities can't be shared by {processes} processes: start fewer.")
    return identities // processes * processes


def _optimizer(learner: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """As the recipe says; biases, norms and centres do not decay."""
    parts = dict(learner.named_parameters())
    decaying = [part for name, part in parts.items() if part.ndim > 1 and name != "centres"]
    others = [part for name, part in parts.items() if part.ndim <= 1 or name == "centres"]
    groups: Any = [
        {"params": decaying, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.learning_rate, momentum=0.9, nesterov=True)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, recipe.learning_rate)
