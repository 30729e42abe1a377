"""Backbones of torchvision by name, from scratch or from weights that know photographs."""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from app import checkpoint as format_1
from app.errors import UsageError
from training.network import Encoder

# What torchvision's weights were trained with (its documentation, "ImageNet statistics").
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


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
        if name.startswith("resnet"):
            self.body = nn.Sequential(*list(whole.children())[:-2])  # all but pooling and classifier
        else:
            self.body = cast(nn.Sequential, whole.features)
        with torch.no_grad():
            self.body.eval()
            shape = self.body(torch.zeros(1, 3, max(image_size, 32), max(image_size, 32))).shape
            self.body.train()
        self._finish(shape[1], embedding_dim, dropout, pooling, bottleneck, cells=shape[2] * shape[3])

    def features(self, x_BCHW: Tensor) -> Tensor:
        x = x_BCHW.expand(-1, 3, -1, -1) if self.channels == 1 else x_BCHW
        return cast(Tensor, self.body(x))


def load_weights(network: Encoder, name: str, source: str) -> str:
    """Put weights into the backbone, or into the whole encoder from a checkpoint of Diptych.

    `source` is `pretrained`, a file of torchvision's state dict (.pth, opened without unpickling objects, or
    .safetensors), or a checkpoint. Returns what was loaded, in words. Raises `UsageError` for what doesn't fit.
    """
    if source == "pretrained":
        return _load_pretrained(network, name)
    path = Path(source)
    if path.is_dir() or source in format_1.BUNDLED:
        state = load_file(format_1.load(source).weights)
        return _fit(network, {key: value.float() for key, value in state.items()}, source)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what a damaged file looks like
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # noqa: BLE001  whatever a foreign file makes the readers raise
        raise UsageError(f"The weights {source} can't be read: {type(problem).__name__}.") from None
    if not isinstance(network, TorchvisionEncoder):
        return _fit(network, state, source)
    return _fit(network.body, _as_body(name, state), source)


def _load_pretrained(network: Encoder, name: str) -> str:
    if not isinstance(network, TorchvisionEncoder):
        raise UsageError("The compact backbone has no pretrained weights: give a checkpoint, or no --weights.")
    weights = models.get_model_weights(name)["DEFAULT"]
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as problem:
        raise UsageError(
            f"torchvision's weights {weights} could not be downloaded ({problem}). "
            "Fetch the file elsewhere and give it as --weights FILE."
        ) from None
    return _fit(network.body, _as_body(name, state), str(weights))


def _as_body(name: str, state: dict[str, Any]) -> dict[str, Any]:
    """A torchvision state dict under the names that `body` has: its layers, numbered."""
    if name.startswith("resnet"):
        layers = [key for key, _ in models.get_model(name).named_children()][:-2]
        numbers = {layer: str(index) for index, layer in enumerate(layers)}
        parts = {key: key.split(".", 1) for key in state}
        return {f"{numbers[first]}.{rest[0]}": state[key] for key, (first, *rest) in parts.items() if first in numbers}
    return {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}


def _fit(module: nn.Module, state: dict[str, Any], source: str) -> str:
    """Copy what has the same name and shape; all of the backbone must."""
    own = module.state_dict()
    usable = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    optional = ("head.", "bottleneck.", "pool.", "mean", "std")
    missing = [key for key in own if key not in usable and not key.endswith("num_batches_tracked")]
    wrong = [key for key in missing if not key.startswith(optional)]
    if wrong:
        raise UsageError(
            f"The weights {source} are of another network: {len(wrong)} of {len(own)} tensors are missing or have "
            f"another shape, first {wrong[0]}."
        )
    module.load_state_dict(usable, strict=False)
    fresh = sorted({key.split(".")[0] for key in missing})
    return f"{len(usable)} tensors from {source}" + (f"; fresh: {', '.join(fresh)}" if fresh else "")
