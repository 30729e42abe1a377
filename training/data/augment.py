"""Augmentation: each image of a batch is moved a little; a whole identity may be turned or mirrored.

Turning all images of an identity alike makes a new identity, since a turned character is another character. Moving each
image separately teaches the encoder to ignore such moves.

What happens to an image is drawn first (`draw_moves`: a function of seed and batch number, on the CPU) and done
after (`apply_moves`, on the device that holds the images): move and bend in one resampling, then colour, blur, JPEG.
"""

import io
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from app.arrays import ImageU8, Ints

# Cells of the coarse field of shifts that bends an image; it is smoothly enlarged to the image's size.
FIELD = 6
# Y'IQ of NTSC: hue turns in its I-Q plane (as in OpenCV's and TensorFlow's fast hue adjustment).
TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@dataclass(frozen=True)
class Augmentation:
    """Ranges. Angles in degrees; shift and bend as a share of the side; crop: the smallest side that is kept."""

    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    bend: float = 0.0
    crop: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur: float = 0.0
    jpeg: float = 0.0
    quarter_turns: bool = False
    mirrors: bool = False

    @property
    def symmetries(self) -> int:
        """Number of identities that turning and mirroring make of one."""
        return (4 if self.quarter_turns else 1) * (2 if self.mirrors else 1)

    def with_symmetries(self, *, quarter_turns: bool, mirrors: bool) -> "Augmentation":
        """The same ranges, and whether identities are also turned and mirrored."""
        return replace(self, quarter_turns=quarter_turns, mirrors=mirrors)

    def times(self, strength: float) -> "Augmentation":
        """All ranges multiplied by `strength`."""
        changed = {
            field.name: getattr(self, field.name) * strength
            for field in fields(self)
            if field.name not in ("crop", "quarter_turns", "mirrors")
        }
        return replace(self, **changed, crop=max(0.1, 1 - (1 - self.crop) * strength))


KINDS = {
    "lines": Augmentation(rotate=15, scale=0.2, shear=15, shift=0.08, bend=0.035),
    "photos": Augmentation(
        rotate=8,
        scale=0.1,
        shear=5,
        shift=0.05,
        crop=0.7,
        brightness=0.15,
        contrast=0.25,
        saturation=0.3,
        hue=12,
        blur=0.5,
        jpeg=0.3,
    ),
    "none": Augmentation(),
}


@dataclass(frozen=True)
class Moves:
    """What happens to each image of a batch.

    Affine maps `[B, 2, 3]`, bends `[B, 2, F, F]`, colour maps `[B, C, C + 1]`, how much of the blurred image is
    mixed in `[B]`, JPEG quality `[B]` (0: none), and which of its identity's symmetries (turned, mirrored) the
    image now shows `[B]`.
    """

    affine_B23: Tensor
    bend_B2FF: Tensor | None
    colour_BCC1: Tensor | None
    blur_B: Tensor | None
    jpeg_B: Tensor | None
    symmetry_B: Tensor

    def part(self, which: slice, device: torch.device) -> "Moves":
        """What happens to the images of one process, on its device."""
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, part in parts.items():
            parts[name] = None if part is None else part[which].to(device)
        return Moves(**parts)


def draw_moves(how: Augmentation, group_P: Ints, images: int, channels: int, rng: np.random.Generator) -> Moves:
    """What happens to a batch of P identities x `images` images; `group_P` is the group of each identity.

    The identities of a group are turned and mirrored alike: a turned alphabet is another alphabet, in which all
    characters still differ. Turned separately, a turned b and a mirrored d would be one shape
    with two names.
    """
    count = len(group_P) * images

    def uniform(limit: float) -> Tensor:
        return torch.from_numpy(rng.uniform(-limit, limit, count).astype(np.float32))

    turns = 4 if how.quarter_turns else 1
    groups, place_P = np.unique(group_P, return_inverse=True)
    symmetry_B = torch.from_numpy(np.repeat(rng.integers(how.symmetries, size=len(groups))[place_P], images))
    angle = uniform(math.radians(how.rotate)) + (symmetry_B % turns) * (math.pi / 2)
    mirror = 1 - 2 * (symmetry_B // turns).float()
    zoom = torch.exp(uniform(math.log1p(how.scale)))
    kept = 1 - torch.from_numpy(rng.uniform(0, 1 - how.crop, count).astype(np.float32))
    stretch = torch.exp(uniform(math.log1p(how.scale) / 2))
    shear = torch.tan(uniform(math.radians(how.shear)))
    # affine_grid's coordinates run from -1 to 1, so a share of the side counts twice; a crop may lie anywhere.
    shift_x, shift_y = (uniform(2 * how.shift) + uniform(1.0) * (1 - kept) for _ in range(2))
    cos, sin = torch.cos(angle), torch.sin(angle)
    # mirror @ rotation @ shear @ scale, as the map from output to input that affine_grid wants
    sx, sy = zoom * stretch * kept, zoom / stretch * kept
    affine_B23 = torch.stack(
        [
            torch.stack([mirror * cos * sx, mirror * (cos * shear - sin) * sy, shift_x], dim=1),
            torch.stack([sin * sx, (sin * shear + cos) * sy, shift_y], dim=1),
        ],
        dim=1,
    )
    bend = None
    if how.bend:
        size = rng.uniform(0, 2 * how.bend, (count, 1, 1, 1))  # from barely to twice as much
        bend = torch.from_numpy((size * 2 * rng.standard_normal((count, 2, FIELD, FIELD))).astype(np.float32))
    colour = None
    if how.brightness or how.contrast or how.saturation or how.hue:
        colour = _colours(uniform(how.contrast), uniform(how.brightness), uniform(how.saturation),
                          uniform(math.radians(how.hue)), channels)  # fmt: skip
    blur = uniform(how.blur).abs() if how.blur else None
    jpeg = None
    if how.jpeg:
        quality = rng.integers(30, 96, size=count) * (rng.random(count) < how.jpeg)
        jpeg = torch.from_numpy(quality)
    return Moves(affine_B23, bend, colour, blur, jpeg, symmetry_B)


def _colours(contrast: Tensor, brightness: Tensor, saturation: Tensor, hue: Tensor, channels: int) -> Tensor:
    """Contrast about mid-grey, brightness, saturation and hue as one affine map of the channels."""
    gain = (1 + contrast)[:, None, None]
    if channels == 1:
        matrix = gain
    else:
        cos, sin = torch.cos(hue) * (1 + saturation), torch.sin(hue) * (1 + saturation)
        zero, one = torch.zeros_like(hue), torch.ones_like(hue)
        turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).reshape(-1, 3, 3)
        matrix = gain * (torch.linalg.inv(TO_YIQ) @ turn @ TO_YIQ)
    offset = (0.5 * (1 - gain) + brightness[:, None, None]).expand(-1, channels, 1)
    return torch.cat([matrix, offset], dim=2)


def apply_moves(images_BCHW: Tensor, moves: Moves) -> Tensor:
    """Changed copies of float images in [0, 1]."""
    height, width = images_BCHW.shape[-2:]
    grid = _affine_grid(moves.affine_B23, height, width)
    if moves.bend_B2FF is not None:
        rows, columns = _smooth(height).to(grid), _smooth(width).to(grid)
        grid = grid + torch.einsum("hf,bcfg,wg->bhwc", rows, moves.bend_B2FF, columns)
    x = F.grid_sample(images_BCHW, grid, padding_mode="border", align_corners=False)
    if moves.colour_BCC1 is not None:
        matrix, offset = moves.colour_BCC1[:, :, :-1], moves.colour_BCC1[:, :, -1]
        x = torch.einsum("bij,bjhw->bihw", matrix, x) + offset[:, :, None, None]
    if moves.blur_B is not None:
        # halved and enlarged again: on a CPU a quarter of the time that a convolution with a 5 x 5 kernel takes
        soft = F.interpolate(F.avg_pool2d(x, 2, ceil_mode=True), size=(height, width), mode="bilinear")
        x = torch.lerp(x, soft, moves.blur_B[:, None, None, None].clamp(max=1))
    x = x.clamp_(0, 1)
    return x if moves.jpeg_B is None else _jpeg(x, moves.jpeg_B)


def _affine_grid(affine_B23: Tensor, height: int, width: int) -> Tensor:
    """`affine_grid` of torch with `align_corners=False`, as one product: half the time on a CPU."""
    y, x = ((torch.arange(side).to(affine_B23) * 2 + 1) / side - 1 for side in (height, width))
    at_P3 = torch.stack(
        [x.expand(height, width), y[:, None].expand(height, width), torch.ones_like(x).expand(height, width)], dim=-1
    ).reshape(-1, 3)
    return (at_P3 @ affine_B23.transpose(1, 2)).reshape(-1, height, width, 2)


def _smooth(side: int) -> Tensor:
    """Weights `[side, F]` by which values at F knots become a smooth curve along the side: uniform cubic B-splines."""
    at = torch.linspace(0, FIELD - 1, side)[:, None] - torch.arange(FIELD)[None, :]
    far = at.abs()
    near = 2 / 3 - far**2 + far**3 / 2
    return torch.where(far < 1, near, (2 - far).clamp(min=0) ** 3 / 6)


def _jpeg(x_BCHW: Tensor, quality_B: Tensor) -> Tensor:
    """Save and reopen the images with a quality as JPEG, on as many threads as torch has."""
    index_J = quality_B.nonzero().flatten()
    pixels_JHWC = (x_BCHW[index_J] * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()

    def pass_through(pixels_HWC: ImageU8, quality: int) -> ImageU8:
        file = io.BytesIO()
        Image.fromarray(pixels_HWC.squeeze()).save(file, format="JPEG", quality=quality)
        return np.array(Image.open(file)).reshape(pixels_HWC.shape)

    if len(index_J):
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            passed_J = list(pool.map(pass_through, pixels_JHWC, quality_B[index_J].tolist()))
        x_BCHW[index_J] = torch.from_numpy(np.stack(passed_J)).permute(0, 3, 1, 2).to(x_BCHW) / 255
    return x_BCHW
