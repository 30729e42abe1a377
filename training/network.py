"""The encoder's network: uint8 pixels to unit embeddings. The Siamese twins are this one, applied twice."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.checkpoint import Architecture


class Block(nn.Module):
    """Two 3 x 3 convolutions and a way around them; halves height and width where `stride` is 2."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels_out)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.around = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(channels_in, channels_out, 1, bias=False)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(x_BCHW)))
        y = self.second_norm(self.second(y))
        return torch.relu(y + self.around(x_BCHW))


class CompactEncoder(nn.Module):
    """A small residual network for small or grey images.

    `blocks` lists (channels, stride); `mean` and `std` of the training pixels, in [0, 1], travel with the
    weights, so that scaling is part of the encoder.
    """

    def __init__(
        self,
        channels: int,
        embedding_dim: int,
        stem: int,
        blocks: list[list[int]],
        dropout: float,
        mean: list[float],
        std: list[float],
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))
        self.stem = nn.Sequential(
            nn.Conv2d(channels, stem, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(stem), nn.ReLU()
        )
        widths = [stem, *(width for width, _ in blocks)]
        self.blocks = nn.Sequential(
            *(Block(before, width, stride) for before, (width, stride) in zip(widths, blocks, strict=False))
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], embedding_dim)

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Unit embeddings `[B, D]` of float images in [0, 1]."""
        x = (images_BCHW - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        x = self.blocks(self.stem(x)).mean(dim=(2, 3))
        return F.normalize(self.head(self.dropout(x)).float(), dim=1)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Unit embeddings `[B, D]` of uint8 pixels: what is exported."""
        return self.embed(to_float(images_BHWC))


def to_float(images_BHWC: Tensor) -> Tensor:
    """uint8 `[B, H, W, C]` to float `[B, C, H, W]` in [0, 1]."""
    return images_BHWC.permute(0, 3, 1, 2).to(torch.float32) / 255.0


NETWORKS = {"compact": CompactEncoder}


def build(architecture: Architecture) -> CompactEncoder:
    """The network that an architecture describes, with fresh weights."""
    options: dict[str, Any] = architecture.options
    return NETWORKS[architecture.name](**options)
