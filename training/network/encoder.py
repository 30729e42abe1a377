"""The encoder's network: uint8 pixels to unit embeddings. The Siamese twins are this one, applied twice.

pixels -> scaled -> features (a backbone) -> bottleneck -> pooled -> head -> unit length
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.arrays import EmbeddingsF32, ImageU8, Ints


class Encoder(nn.Module):
    """What all encoders share: scaling before the backbone, and the head behind it.

    `mean` and `std` of the pixels, in [0, 1], travel with the weights, so that scaling is part of the encoder.
    A subclass gives `features` and calls `_finish` with their number of channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Feature maps `[B, C, h, w]` of scaled images."""
        raise NotImplementedError

    def _finish(
        self,
        channels: int,
        embedding_dim: int,
        dropout: float,
        pooling: str,
        bottleneck: int,
        cells: int,
    ) -> None:
        """Make bottleneck, pooling and head. `cells`: feature cells of an image, which `grid` needs."""
        self.bottleneck: nn.Module = nn.Identity()
        if bottleneck:
            self.bottleneck = nn.Sequential(
                nn.Conv2d(channels, bottleneck, 1, bias=False), nn.BatchNorm2d(bottleneck), nn.ReLU()
            )
            channels = bottleneck
        self.pool: nn.Module = POOLINGS[pooling]()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels * cells if pooling == "grid" else channels, embedding_dim)

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Unit embeddings `[B, D]` of float images in [0, 1]."""
        x = self.features((images_BCHW - self.mean) / self.std)
        x = self.head(self.dropout(self.pool(self.bottleneck(x))))
        return F.normalize(x.float(), dim=1)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        """Unit embeddings `[B, D]` of uint8 pixels: what is exported."""
        return self.embed(to_float(images_BHWC))


class Mean(nn.Module):
    """The mean of each channel."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.mean(dim=(2, 3))


class GeneralisedMean(nn.Module):
    """(mean of x^p)^(1/p), with p learned: between mean (1) and maximum (infinity).

    F. Radenovic, G. Tolias, O. Chum, "Fine-tuning CNN image retrieval with no human annotation", TPAMI 2019.
    """

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.float().clamp(min=1e-6).pow(self.p).mean(dim=(2, 3)).pow(1 / self.p)


class Grid(nn.Module):
    """Every cell by itself: the head then knows where a feature stood."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.contiguous().flatten(1)


POOLINGS: dict[str, type[nn.Module]] = {"mean": Mean, "gem": GeneralisedMean, "grid": Grid}


def to_float(images_BHWC: Tensor) -> Tensor:
    """uint8 `[B, H, W, C]` to float `[B, C, H, W]` in [0, 1]."""
    return images_BHWC.permute(0, 3, 1, 2).to(torch.float32) / 255.0


def embed_with_network(
    network: Encoder, images_NHWC: ImageU8, index_N: Ints | None = None, batch: int = 256
) -> EmbeddingsF32:
    """Unit embeddings `[N, D]` of all images, or of those at `index_N`, by the network itself in float32."""
    network.eval()
    index_N = np.arange(len(images_NHWC)) if index_N is None else index_N
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(images_NHWC[index_N[start : start + batch]]).to(network.mean.device))
            for start in range(0, len(index_N), batch)
        ]
    return torch.cat(parts).cpu().numpy()
