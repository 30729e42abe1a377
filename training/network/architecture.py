"""The network that a recipe asks for: widths of its stages, and the scale of the pixels it learns from."""

from typing import Any

import numpy as np

from app.arrays import Ints
from app.checkpoint.format import Architecture
from training.data.dataset import Dataset
from training.network.weights import scaling_of
from training.recipe import Recipe

# Channels of each stage of the compact backbone. The stem halves the image, and so does each stage: most of the time
# goes into the layers at full resolution, so the early ones are narrow.
STEM, STAGES = 32, (56, 112, 176)


def architecture_of(dataset: Dataset, train_N: Ints, recipe: Recipe) -> Architecture:
    """The network that the recipe asks for. Pixels are scaled by the training images, or as the weights expect."""
    mean, std = _mean_and_std(dataset, train_N, recipe.seed)
    options: dict[str, Any] = {
        "embedding_dim": recipe.embedding_dim,
        "channels": recipe.channels,
        "dropout": recipe.dropout,
        "pooling": recipe.pooling,
        "bottleneck": recipe.bottleneck,
        "image_size": recipe.image_size,
        "mean": mean,
        "std": std,
    }
    if recipe.backbone == "compact":
        widths = [_scaled_width(channels, recipe.width) for channels in STAGES]
        blocks = [[width, 2 if n == 0 else 1] for width in widths for n in range(recipe.depth)]
        options |= {"stem": _scaled_width(STEM, recipe.width), "blocks": blocks}
    options |= scaling_of(recipe)
    return Architecture(name=recipe.backbone, options=options)


def _mean_and_std(dataset: Dataset, train_N: Ints, seed: int) -> tuple[list[float], list[float]]:
    """Of each channel, with pixels in [0, 1], over a sample of the training images."""
    sample = np.sort(np.random.default_rng(seed).permutation(train_N)[:2000])
    total, squares, count = np.zeros(dataset.images_NHWC.shape[3]), np.zeros(dataset.images_NHWC.shape[3]), 0
    for start in range(0, len(sample), 64):
        pixels = dataset.images_NHWC[sample[start : start + 64]].astype(np.float64) / 255
        total, squares = total + pixels.sum(axis=(0, 1, 2)), squares + np.square(pixels).sum(axis=(0, 1, 2))
        count += pixels[..., 0].size
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return [round(float(value), 4) for value in mean], [round(max(float(value), 0.05), 4) for value in std]


def _scaled_width(channels: int, width: float) -> int:
    """Channels scaled by `width`, in steps of eight, which suit the vector units of processors.

    >>> _scaled_width(56, 0.5), _scaled_width(56, 0.1)
    (32, 8)
    """
    return max(8, round(channels * width / 8) * 8)
