"""The training run, top to bottom: folder to checkpoint."""

import os
import platform
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from app import checkpoint as format_1
from app.checkpoint import Architecture, DatasetFacts, Description, Split
from app.image import Preprocessing
from training import calibration, report
from training.dataset import Dataset, guess_shape, new_directory, read_dataset, split_identities
from training.export import check_parity, embed, weights_of, write_encoder
from training.fit import fit
from training.network import build
from training.pairs import Int, count_pairs
from training.recipe import Recipe


def train(data: Path, output: Path, recipe: Recipe, *, progress: bool = True) -> format_1.Checkpoint:
    """Train an encoder on the folder tree `data` and write its checkpoint to `output`.

    Raises `UsageError` for data or an output that can't be used, `TrainingFailed` where training diverges
    or the exported encoder is not the trained one.
    """
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

    new_directory(output)  # before the long part, so that it can't fail after it
    architecture = _architecture(dataset, images["train"], recipe)
    network = build(architecture)
    averaged, history = fit(network, dataset, splits["train"], images["calibration"], recipe, progress=progress)

    write_encoder(averaged, dataset.images_NHWC, output)
    runtime = check_parity(averaged, dataset.images_NHWC[images["test"][:512]], output)

    counts, embeddings = {}, {}
    for split in ("calibration", "test"):
        of = images[split]
        embeddings[split] = embed(averaged, dataset.images_NHWC[of])
        counts[split] = count_pairs(embeddings[split], dataset.identity_N[of], dataset.group_N[of])
    verdicts = calibration.calibrate(
        counts["calibration"],
        counts["test"],
        margin=recipe.margin,
        target_fmr=recipe.target_fmr,
        fingerprint=dataset.fingerprint,
        images=len(images["test"]),
    )
    np.savez_compressed(output / format_1.CALIBRATION, **verdicts.curves)  # type: ignore[arg-type]

    weights = {name: tensor.numpy() for name, tensor in weights_of(averaged).items()}
    description = Description(
        name=format_1.printable(output.name),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        model_id=format_1.model_id(weights, architecture, preprocessing),
        architecture=architecture,
        embedding_dim=recipe.embedding_dim,
        preprocessing=preprocessing,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        margin=recipe.margin,
        **verdicts.fields,
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
    sealed = format_1.seal(output, description)
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
    return sealed


def _architecture(dataset: Dataset, train_N: Int, recipe: Recipe) -> Architecture:
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
