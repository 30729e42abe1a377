"""A survey of a sample of the images, for the choices that a recipe leaves open."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from app.image.policy import Preprocessing
from training.data.dataset import decode_files, image_files
from training.recipe import Recipe

# Images whose longer side is at most this are small: digits, characters, icons, cropped faces.
SMALL = 160
# An image with at least this share of pixels near either end of its range is line art.
LINE_ART = 0.85


@dataclass(frozen=True)
class Survey:
    """What a sample of a folder's images looks like. Sides are in pixels; `ratios` are the ends of width / height."""

    longer_side: float
    ratios: tuple[float, float]
    colour: bool
    line_art: bool


def survey_images(root: Path) -> Survey:
    """Survey about 100 images of a folder tree.

    Line art is grey, and nearly all of its pixels are close to the shade of the paper or of the ink, whichever shades
    these are. Raises `UsageError` for a folder that can't be read.
    """
    paths = image_files(root)
    to = Preprocessing(height=64, width=64, channels=3, aspect="stretch")
    sides, ratios, colour, flat = [], [], False, []
    for item in decode_files(paths[:: max(1, len(paths) // 100)], to, progress=False):
        if item.pixels_HWC is None:
            continue
        with Image.open(item.key) as image:
            width, height = image.size
            if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # stored on its side
                width, height = height, width
        sides.append(max(width, height))
        ratios.append(width / height)
        pixels = item.pixels_HWC.astype(np.float32)
        colour = colour or bool(np.ptp(pixels, axis=2).max() > 16)
        grey = pixels.mean(axis=2)
        low, high = np.percentile(grey, (1, 99))
        level = (grey - low) / max(1.0, high - low)
        flat.append(float(((level < 0.25) | (level > 0.75)).mean()))
    return Survey(
        longer_side=float(np.median(sides)) if sides else 0.0,
        ratios=(min(ratios, default=1.0), max(ratios, default=1.0)),
        colour=colour,
        line_art=not colour and bool(flat) and float(np.median(flat)) > LINE_ART,
    )


def complete_recipe(root: Path, recipe: Recipe) -> Recipe:
    """The recipe with every open choice made, by a survey of the images.

    Grey unless an image has colour. A side of 64 for small images, 128 for others (192 for torchvision's backbones,
    which were made for 224). Padded to a square, so that nothing is lost or distorted, unless all images share one
    shape: then stretched, so that no pixels are spent on padding. Line art is bent, photographs are recoloured.
    """
    seen = survey_images(root)
    small = seen.longer_side <= SMALL
    side = 64 if small else 128 if recipe.backbone == "compact" else 192
    narrowest, widest = seen.ratios
    alike = widest / narrowest < 1.03 and not 0.97 < widest < 1.03
    return recipe.but(
        channels=recipe.channels or (3 if seen.colour else 1),
        image_size=recipe.image_size or side,
        aspect=recipe.aspect or ("stretch" if alike else "pad"),
        augment=recipe.augment if recipe.augment != "auto" else "lines" if seen.line_art else "photos",
    )
