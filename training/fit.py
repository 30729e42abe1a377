"""The loop: batches, loss, step; and after each epoch a look at identities that are not trained on."""

import copy
import math
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from app.errors import TrainingFailed
from training import calibration
from training.augment import Augmentation, augment
from training.batches import Balance, identity_batches
from training.dataset import Dataset
from training.export import embed
from training.loss import contrastive_loss
from training.network import CompactEncoder, to_float
from training.pairs import Int, count_pairs
from training.recipe import Recipe


def fit(
    network: CompactEncoder,
    dataset: Dataset,
    train_identities: Int,
    validation_N: Int,
    recipe: Recipe,
    *,
    progress: bool = True,
) -> tuple[CompactEncoder, list[dict[str, Any]]]:
    """The loop: batches, loss, step. Returns the moving average of the weights, and one row per epoch.

    Validation is over all pairs of `validation_N`, images of identities that are not trained on.
    """
    network = network.to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(network)
    balance = Balance(
        min(recipe.identities_per_batch, len(train_identities)),
        recipe.images_per_identity,
        recipe.near_share,
        recipe.near_groups,
    )
    images = len(dataset.images_of(train_identities))
    steps = max(1, round(images / balance.size))
    optimizer = _optimizer(network, recipe)
    total_steps = recipe.epochs * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _schedule(step, total_steps, recipe.warm_up_share)
    )
    how = Augmentation(
        quarter_turns=recipe.quarter_turns,
        brightness=0.1 if recipe.channels == 3 else 0.0,
        contrast=0.2 if recipe.channels == 3 else 0.0,
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    batches = identity_batches(
        dataset.identity_N,
        dataset.group_of_identity,
        train_identities,
        balance,
        np.random.default_rng(recipe.seed),
    )
    identity_B = torch.arange(balance.identities).repeat_interleave(balance.images)

    history: list[dict[str, Any]] = []
    bar = tqdm(total=total_steps, unit="step", disable=not progress, smoothing=0.05)
    bar.set_description("training")
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        started, total, genuine_total = time.monotonic(), 0.0, 0.0
        for _ in range(steps):
            pixels = torch.from_numpy(dataset.images_NHWC[next(batches)])
            images_BCHW = augment(to_float(pixels), balance.identities, how, generator)
            embeddings_BD = network.embed(images_BCHW.contiguous(memory_format=torch.channels_last))
            genuine, impostor = contrastive_loss(embeddings_BD, identity_B, recipe.margin, recipe.impostors)
            loss = genuine + impostor
            if not torch.isfinite(loss):
                raise TrainingFailed(
                    f"The loss became {loss.item()} in epoch {epoch}. A smaller --learning-rate than "
                    f"{recipe.learning_rate:g} usually mends it."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            _follow(averaged, network, recipe.ema, schedule.last_epoch)
            total, genuine_total = total + loss.item(), genuine_total + genuine.item()
            bar.update()
        row = {
            "epoch": epoch,
            "train_loss": total / steps,
            "train_genuine_term": genuine_total / steps,
            **_validate(averaged, dataset, validation_N, recipe.margin),
            "seconds": time.monotonic() - started,
        }
        history.append(row)
        bar.set_postfix(
            loss=f"{row['train_loss']:.4f}",
            validation_loss=f"{row['validation_loss']:.4f}",
            validation_eer="-" if row["validation_eer"] is None else f"{row['validation_eer']:.2%}",
        )
    bar.close()
    return averaged, history


def _validate(network: CompactEncoder, dataset: Dataset, of: Int, margin: float) -> dict[str, Any]:
    embeddings_ND = embed(network, dataset.images_NHWC[of])
    counts = count_pairs(embeddings_ND, dataset.identity_N[of], dataset.group_N[of])
    eer, _ = calibration.equal_error_rates(counts)
    return {
        "validation_loss": calibration.contrastive_loss(counts, margin),
        "validation_accuracy": calibration.verification_accuracy(counts),
        "validation_eer": eer,
    }


def _schedule(step: int, total: int, warm_up_share: float) -> float:
    """Share of the peak learning rate: a linear warm-up, then half a cosine down to zero."""
    warm_up = warm_up_share * total
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1.0, total - warm_up)))


@torch.no_grad()
def _follow(averaged: CompactEncoder, network: CompactEncoder, decay: float, step: int) -> None:
    """Move the exponential average of weights and norms one step towards the network.

    Short-sighted at first, min(decay, (1 + step) / (10 + step)), so that a short run is not mostly its
    random start (as TensorFlow's `ExponentialMovingAverage` does with `num_updates`).
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for average, current in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if average.is_floating_point():
            average.lerp_(current, weight)


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters: Any = network.parameters()
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
        )
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)
