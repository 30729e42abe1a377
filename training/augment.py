"""Augmentation: each image of a batch is moved a little; a whole identity may be turned a quarter.

Turning all images of an identity alike makes another identity of it (a turned character is another
character); moving each image on its own teaches what does not matter.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random affine map; angles in degrees, shift as a share of the side."""

    rotate: float = 15.0
    scale: float = 0.2
    shear: float = 15.0
    shift: float = 0.08
    quarter_turns: bool = False
    brightness: float = 0.0
    contrast: float = 0.0


def augment(images_BCHW: Tensor, identities: int, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Moved copies of float images in [0, 1], in which every `B / identities` in a row are one identity."""
    count = len(images_BCHW)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle = uniform(math.radians(how.rotate))
    if how.quarter_turns:
        turns = torch.randint(0, 4, (identities,), generator=generator)
        angle = angle + turns.repeat_interleave(count // identities) * (math.pi / 2)
    zoom = torch.exp(uniform(math.log1p(how.scale)))
    stretch = torch.exp(uniform(math.log1p(how.scale) / 2))
    shear = torch.tan(uniform(math.radians(how.shear)))
    cos, sin = torch.cos(angle), torch.sin(angle)
    # rotation @ shear @ scale, as the map from output to input that affine_grid wants
    sx, sy = zoom * stretch, zoom / stretch
    theta_B23 = torch.stack(
        [
            torch.stack([cos * sx, (cos * shear - sin) * sy, uniform(2 * how.shift)], dim=1),
            torch.stack([sin * sx, (sin * shear + cos) * sy, uniform(2 * how.shift)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta_B23, list(images_BCHW.shape), align_corners=False)
    moved = F.grid_sample(images_BCHW, grid, padding_mode="border", align_corners=False)
    if how.brightness or how.contrast:
        gain = (1 + uniform(how.contrast))[:, None, None, None]
        moved = (moved - 0.5) * gain + 0.5 + uniform(how.brightness)[:, None, None, None]
    return moved.clamp(0, 1)
