"""Backbones under one head: our own, and those of torchvision by name."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from app.checkpoint.format import Architecture
from app.errors import UsageError
from training.network.encoder import Encoder


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


class CompactEncoder(Encoder):
    """A small residual network for small or grey images. `blocks` lists (channels, stride)."""

    def __init__(
        self,
        channels: int,
        embedding_dim: int,
        stem: int,
        blocks: list[list[int]],
        dropout: float,
        mean: list[float],
        std: list[float],
        pooling: str = "mean",
        bottleneck: int = 0,
        image_size: int = 0,
    ) -> None:
        super().__init__(mean, std)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, stem, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(stem), nn.ReLU()
        )
        widths = [stem, *(width for width, _ in blocks)]
        self.blocks = nn.Sequential(
            *(Block(before, width, stride) for before, (width, stride) in zip(widths, blocks, strict=False))
        )
        side = -(-image_size // 2)
        for _, stride in blocks:
            side = -(-side // stride)
        self._finish(widths[-1], embedding_dim, dropout, pooling, bottleneck, cells=side**2)

    def features(self, x_BCHW: Tensor) -> Tensor:
        return cast(Tensor, self.blocks(self.stem(x_BCHW)))


class TorchvisionEncoder(Encoder):
    """A classification network of torchvision without its classifier, and our head.

    A grey image is repeated into the three channels that the backbone expects.
    """

    def __init__(
        self,
        name: str,
        channels: int,
        embedding_dim: int,
        dropout: float,
        mean: list[float],
        std: list[float],
        pooling: str = "mean",
        bottleneck: int = 0,
        image_size: int = 0,
    ) -> None:
        super().__init__(mean, std)
        self.channels = channels
        from torchvision.models import get_model  # takes a second, which the compact backbone need not wait for

        whole = get_model(name)
        # of a residual network all but pooling and classifier
        layers = nn.Sequential(*list(whole.children())[:-2]) if name.startswith("resnet") else whole.features
        self.body = cast(nn.Sequential, layers)
        side = image_size or 64
        try:
            with torch.no_grad():
                shape = self.body.eval()(torch.zeros(1, 3, side, side)).shape
        except RuntimeError:
            raise UsageError(
                f"Images of {side} x {side} are too small for {name}: give a larger --image-size."
            ) from None
        self.body.train()
        self._finish(shape[1], embedding_dim, dropout, pooling, bottleneck, cells=shape[2] * shape[3])

    def features(self, x_BCHW: Tensor) -> Tensor:
        x = x_BCHW.expand(-1, 3, -1, -1) if self.channels == 1 else x_BCHW
        return cast(Tensor, self.body(x))


def build(architecture: Architecture) -> Encoder:
    """The network that an architecture describes, with fresh weights."""
    options: dict[str, Any] = architecture.options
    if architecture.name == "compact":
        return CompactEncoder(**options)
    return TorchvisionEncoder(architecture.name, **options)
