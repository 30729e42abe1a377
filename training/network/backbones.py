"""Backbones of torchvision by name: their feature maps, under our head."""

from typing import cast

import torch
from torch import Tensor, nn
from torchvision import models

from app.errors import UsageError
from training.network.network import Encoder


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
        whole = models.get_model(name)
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
