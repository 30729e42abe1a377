"""One step of training: batch, embeddings, loss, and the weights a little further downhill."""

import copy
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.errors import UsageError
from training.data.augment import KINDS, Augmentation, apply_moves, draw_moves
from training.data.batches import Balance, Batches
from training.network.encoder import Encoder, to_float
from training.recipe import Recipe
from training.run.experiment import Experiment
from training.run.health import EpochSums
from training.run.loss import centre_loss, contrastive_loss, supervised_loss
from training.run.processes import gather, share_norms


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


class Trainer:
    """The parts that change from step to step: learner, optimizer, and the moving average of the weights.

    Raises `UsageError` where a batch holds fewer identities than there are processes.
    """

    def __init__(self, experiment: Experiment, network: Encoder) -> None:
        fabric, dataset, recipe = experiment.fabric, experiment.dataset, experiment.recipe
        identities = experiment.splits["train"]
        self.experiment = experiment
        self.augmentation = augmentation_of(recipe)
        balance = Balance(
            _divisible(min(recipe.identities_per_batch, len(identities)), fabric.world_size),
            recipe.images_per_identity,
            recipe.near_share,
            recipe.near_groups,
        )
        self.balance = balance
        self.batches = Batches(dataset.identity_N, dataset.group_of_identity, identities, balance, recipe.seed)
        self.steps_per_epoch = max(1, round(len(dataset.images_of(identities)) / balance.size))
        share = balance.size // fabric.world_size
        self.share = slice(share * fabric.global_rank, share * (fabric.global_rank + 1))
        # An identity's first centre, one for each symmetry. Identities that are not trained on have none.
        self.centre_of_identity = np.full(len(dataset.identities), -1)
        self.centre_of_identity[identities] = np.arange(len(identities)) * self.augmentation.symmetries

        self.averaged = copy.deepcopy(network).to(fabric.device)
        centres = self.augmentation.symmetries * len(identities) if recipe.centres else 0
        share_norms(network, fabric)
        self.learner = Learner(network, centres, recipe.embedding_dim).to(memory_format=torch.channels_last)
        self.twins, self.optimizer = fabric.setup(self.learner, _optimizer(self.learner, recipe))

    def step(self, number: int, sums: EpochSums) -> None:
        """One batch: embed, compare, step downhill. A function of the weights, the seed and `number`.

        Raises `TrainingFailed` soon after the loss stops being a finite number.
        """
        experiment = self.experiment
        recipe, fabric, dataset = experiment.recipe, experiment.fabric, experiment.dataset
        index_B = self.batches.draw_batch(number)
        channels = dataset.images_NHWC.shape[3]
        rng = np.random.default_rng((recipe.seed, number, 1))
        group_P = dataset.group_of_identity[dataset.identity_N[index_B[:: self.balance.images]]]
        moves = draw_moves(self.augmentation, group_P, self.balance.images, channels, rng)
        pixels_BHWC = torch.from_numpy(dataset.images_NHWC[index_B[self.share]]).to(fabric.device)
        images_BCHW = apply_moves(to_float(pixels_BHWC), moves.part(self.share, fabric.device))

        torch.manual_seed((recipe.seed + 1_000_003 * number + fabric.global_rank) % 2**63)  # for dropout
        embeddings_BD, centres_KD = self.twins(images_BCHW.contiguous(memory_format=torch.channels_last))
        embeddings_BD = gather(fabric, embeddings_BD)
        identity_B = torch.from_numpy(dataset.identity_N[index_B]).to(fabric.device)
        genuine, impostor = contrastive_loss(embeddings_BD, identity_B, recipe.fixed_margin, recipe.impostors)
        loss = genuine + impostor
        if recipe.supervised:
            loss = loss + recipe.supervised * supervised_loss(embeddings_BD, identity_B, recipe.temperature)
        if centres_KD is not None:
            centre_B = torch.from_numpy(self.centre_of_identity[dataset.identity_N[index_B]]) + moves.symmetry_B
            loss = loss + recipe.centres * centre_loss(
                embeddings_BD,
                centres_KD,
                centre_B.to(fabric.device),
                self.augmentation.symmetries,
                recipe.fixed_margin,
            )
        sums.add_step(loss.detach(), genuine.detach(), impostor.detach())

        total = recipe.epochs * self.steps_per_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate_share(number, total, recipe.warm_up_share)
        self.optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        if recipe.clip:
            fabric.clip_gradients(self.twins, self.optimizer, max_norm=recipe.clip, error_if_nonfinite=False)
        self.optimizer.step()
        _update_average(self.averaged, self.learner.encoder, recipe.ema, number)


def augmentation_of(recipe: Recipe) -> Augmentation:
    """What the recipe does to images. Its kind must be known by now, not `auto`."""
    ranges = KINDS[recipe.augment].times(recipe.strength)
    return ranges.with_symmetries(quarter_turns=recipe.quarter_turns, mirrors=recipe.mirrors)


def learning_rate_share(step: int, total: int, warm_up_share: float) -> float:
    """Share of the peak learning rate: a linear warm-up, then half a cosine down to zero.

    >>> [round(learning_rate_share(step, 8, 0.25), 3) for step in range(8)]
    [0.333, 0.667, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067]
    """
    warm_up = warm_up_share * total
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1.0, total - warm_up)))


@torch.no_grad()
def _update_average(averaged: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the exponential average of weights and norms one step towards the network.

    The decay is min(decay, (1 + step) / (10 + step)), so that a short run is not mostly its random start (as
    TensorFlow's `ExponentialMovingAverage` does with `num_updates`).
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for average, current in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if average.is_floating_point():
            average.lerp_(current, weight)


def _divisible(identities: int, processes: int) -> int:
    if identities < processes:
        raise UsageError(
            f"A batch of {identities} identities can't be shared by {processes} processes. Start fewer processes."
        )
    return identities // processes * processes


def _optimizer(learner: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer. Biases, norms and centres do not decay."""
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
