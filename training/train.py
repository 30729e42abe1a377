"""The training run, top to bottom: folder to checkpoint."""

import copy
import math
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from app import checkpoint as format_1
from app.checkpoint import Architecture, CalibrationFacts, DatasetFacts, Description, Split
from app.errors import TrainingFailed, UsageError
from app.image import Aspect, Preprocessing
from training import calibration, report
from training.augment import Augmentation, augment
from training.batches import Balance, identity_batches
from training.dataset import Dataset, guess_shape, read_dataset, split_identities
from training.export import check_parity, embed, weights_of, write_encoder
from training.loss import Average, contrastive_loss
from training.network import CompactEncoder, build, to_float


@dataclass(frozen=True)
class Recipe:
    """Every choice of a training run; it is recorded in the checkpoint. None means: read off the data."""

    image_size: int | None = None
    channels: Literal[1, 3] | None = None
    aspect: Aspect = "pad"
    embedding_dim: int = 128
    width: float = 1.0
    dropout: float = 0.0
    margin: float = 1.0
    impostors: Average = "active"
    epochs: int = 40
    identities_per_batch: int = 48
    images_per_identity: int = 4
    near_share: float = 0.5
    near_groups: int = 3
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warm_up_share: float = 0.05
    ema: float = 0.998
    quarter_turns: bool = False
    calibration_share: float = 0.15
    test_share: float = 0.15
    split_by: Literal["identity", "group"] = "identity"
    target_fmr: float = 0.01
    seed: int = 0
    threads: int = 0


def train(data: Path, output: Path, recipe: Recipe, *, progress: bool = True) -> format_1.Checkpoint:
    """Train an encoder on the folder tree `data` and write its checkpoint to `output`.

    Raises `UsageError` for data or an output that can't be used, `TrainingFailed` where training diverges
    or the exported encoder is not the trained one.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and is not empty. Give a new directory, so that nothing is lost.")
    torch.set_num_threads(recipe.threads or os.cpu_count() or 1)
    torch.manual_seed(recipe.seed)
    started = time.monotonic()

    size, channels = guess_shape(data, recipe.image_size, recipe.channels)
    recipe = replace(recipe, image_size=size, channels=channels)
    preprocessing = Preprocessing(height=size, width=size, channels=channels, aspect=recipe.aspect)
    dataset = read_dataset(data, preprocessing, progress=progress)
    splits = split_identities(
        dataset,
        calibration=recipe.calibration_share,
        test=recipe.test_share,
        by=recipe.split_by,
        seed=recipe.seed,
    )
    images = {name: dataset.images_of(identities) for name, identities in splits.items()}

    architecture = _architecture(dataset, images["train"], recipe)
    network = build(architecture)
    averaged, history = fit(network, dataset, splits["train"], images["calibration"], recipe, progress=progress)

    output.mkdir(parents=True, exist_ok=True)
    write_encoder(averaged, dataset.images_NHWC, output)
    runtime = check_parity(averaged, dataset.images_NHWC[images["test"][:512]], output)

    counts, embeddings = {}, {}
    for split in ("calibration", "test"):
        of = images[split]
        embeddings[split] = embed(averaged, dataset.images_NHWC[of])
        counts[split] = calibration.count_pairs(embeddings[split], dataset.identity_N[of], dataset.group_N[of])
    targets = sorted({*calibration.TARGETS, recipe.target_fmr}, reverse=True)
    points = calibration.operating_points(counts["calibration"], counts["test"], targets)
    threshold, source, note = calibration.default_threshold(points, recipe.target_fmr, recipe.margin)
    curves = calibration.curves(counts["calibration"], counts["test"])
    np.savez_compressed(output / format_1.CALIBRATION, **curves)  # type: ignore[arg-type]

    weights = {name: tensor.numpy() for name, tensor in weights_of(averaged).items()}
    eer, same_group_eer = calibration.equal_error_rates(counts["test"])
    description = Description(
        name=output.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model_id=format_1.model_id(weights, architecture, preprocessing),
        calibration_id=format_1.calibration_id(recipe.margin, threshold, points, curves),
        architecture=architecture,
        embedding_dim=recipe.embedding_dim,
        preprocessing=preprocessing,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        margin=recipe.margin,
        target_fmr=recipe.target_fmr,
        threshold=threshold,
        threshold_source=source,
        operating_points=points,
        calibration=CalibrationFacts(
            fingerprint=dataset.fingerprint,
            measured_on="test",
            identities=len(splits["test"]),
            images=len(images["test"]),
            genuine_pairs=int(counts["test"].genuine_count_G.sum()),
            impostor_pairs=int(counts["test"].impostor_count_G.sum()),
            eer=eer,
            same_group_eer=same_group_eer,
            note=note,
        ),
        dataset=DatasetFacts(
            fingerprint=dataset.fingerprint,
            identities=len(dataset.identities),
            images=len(dataset),
            skipped=dataset.skipped,
            split_seed=recipe.seed,
            splits={name: Split(identities=len(splits[name]), images=len(images[name])) for name in splits},
        ),
        training={**asdict(recipe), "minutes": round((time.monotonic() - started) / 60, 1)},
        runtime=runtime,
        versions={
            "diptych": version("diptych"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pillow": version("pillow"),
        },
    )
    report.write(
        output / "report",
        description,
        history=history,
        counts=counts["test"],
        embeddings_ND=embeddings["test"],
        identity_N=dataset.identity_N[images["test"]],
        images_NHWC=dataset.images_NHWC[images["test"]],
        splits={name: [dataset.identities[i] for i in splits[name]] for name in splits},
    )
    return format_1.seal(output, description)


def fit(
    network: CompactEncoder,
    dataset: Dataset,
    train_identities: calibration.Int,
    validation_N: calibration.Int,
    recipe: Recipe,
    *,
    progress: bool = True,
) -> tuple[CompactEncoder, list[dict[str, float]]]:
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

    history: list[dict[str, float]] = []
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
            validation_eer=f"{row['validation_eer']:.2%}",
        )
    bar.close()
    return averaged, history


def _validate(network: CompactEncoder, dataset: Dataset, of: calibration.Int, margin: float) -> dict[str, float]:
    embeddings_ND = embed(network, dataset.images_NHWC[of])
    counts = calibration.count_pairs(embeddings_ND, dataset.identity_N[of], dataset.group_N[of])
    eer, _ = calibration.equal_error_rates(counts)
    return {
        "validation_loss": calibration.contrastive_loss(counts, margin),
        "validation_accuracy": calibration.verification_accuracy(counts),
        "validation_eer": float("nan") if eer is None else eer,
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


def _architecture(dataset: Dataset, train_N: calibration.Int, recipe: Recipe) -> Architecture:
    """The compact network, scaled to the pixels of (a sample of) the training images."""
    sample = np.sort(np.random.default_rng(recipe.seed).permutation(train_N)[:2000])
    pixels = dataset.images_NHWC[sample].astype(np.float64) / 255
    return Architecture(
        name="compact",
        options={
            "embedding_dim": recipe.embedding_dim,
            "channels": recipe.channels,
            "stem": _wide(32, recipe.width),
            "blocks": [[_wide(c, recipe.width), stride] for c, stride in ((32, 1), (64, 2), (128, 2), (176, 2))],
            "dropout": recipe.dropout,
            "mean": [round(float(value), 4) for value in pixels.mean(axis=(0, 1, 2))],
            "std": [round(max(float(value), 0.05), 4) for value in pixels.std(axis=(0, 1, 2))],
        },
    )


def _wide(channels: int, width: float) -> int:
    """Channels scaled by `width`, in steps of eight, which processors like."""
    return max(8, round(channels * width / 8) * 8)
