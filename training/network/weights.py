"""The weights that training starts from: torchvision's, a file, or a Diptych checkpoint."""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from app.checkpoint.format import Checkpoint
from app.checkpoint.store import BUNDLED, load_checkpoint
from app.errors import UsageError
from training.data.dataset import Dataset
from training.network.encoder import Encoder
from training.recipe import Recipe

PRETRAINED = "pretrained"
# The scaling that torchvision's weights were trained with.
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def check_weights(recipe: Recipe) -> None:
    """Raises `UsageError` for weights that don't exist, before the images are read."""
    source = recipe.weights
    if source == PRETRAINED and recipe.backbone == "compact":
        raise UsageError(
            "There are no pretrained weights for the compact backbone. Choose another --backbone, or no --weights."
        )
    if source is not None and source != PRETRAINED and source not in BUNDLED and not Path(source).exists():
        raise UsageError(f"There is no file or directory {source} to read --weights from.")


def scaling_of(recipe: Recipe) -> dict[str, list[float]]:
    """`mean` and `std` of the pixels that the weights expect; empty where the images decide."""
    checkpoint = _load_if_checkpoint(recipe.weights)
    if checkpoint is not None:
        options = checkpoint.description.architecture.options
        return {name: options[name] for name in ("mean", "std")}
    return {} if recipe.backbone == "compact" or recipe.weights is None else IMAGENET


def refuse_leak(recipe: Recipe, dataset: Dataset) -> None:
    """Raises `UsageError` where the weights were trained on images that this run would measure error rates with.

    A checkpoint of the same folder has seen its training identities. Only the same split keeps the others unseen.
    """
    checkpoint = _load_if_checkpoint(recipe.weights)
    if checkpoint is None or checkpoint.description.dataset.fingerprint != dataset.fingerprint:
        return
    training = checkpoint.description.training
    for name in ("seed", "calibration_share", "test_share", "split_by"):
        if training.get(name) != getattr(recipe, name):
            raise UsageError(
                f"The weights {recipe.weights} were trained on this folder with another {name} ({training.get(name)}), "
                "so identities that they have seen would count as unseen. Use the same {name}, or --despite-lint."
            )


def load_weights(network: Encoder, recipe: Recipe) -> str:
    """Put the recipe's weights into the network. Returns a sentence about what was loaded.

    A file holds the backbone with torchvision's names (.pth, opened without unpickling objects, or .safetensors); a
    checkpoint holds the whole encoder. Raises `UsageError` for weights that can't be read or don't fit.
    """
    source = recipe.weights or PRETRAINED
    if source == PRETRAINED:
        return _copy_tensors(_body(network), _as_body(recipe.backbone, _pretrained(recipe.backbone)), "torchvision")
    checkpoint = _load_if_checkpoint(source)
    if checkpoint is not None:
        _check_choices(checkpoint.description.training, recipe, source)
        return _copy_tensors(
            network, {name: value.float() for name, value in load_file(checkpoint.weights).items()}, source
        )
    state = _read_state(Path(source))
    if recipe.backbone == "compact":
        return _copy_tensors(network, state, source)
    return _copy_tensors(_body(network), _as_body(recipe.backbone, state), source)


def _check_choices(training: dict[str, Any], recipe: Recipe, source: str) -> None:
    """Raises `UsageError` where a checkpoint's run chose another network than the recipe does."""
    names = ("backbone", "channels", *(("width", "depth") if recipe.backbone == "compact" else ()))
    wanted = {
        name: training[name] for name in names if training.get(name, getattr(recipe, name)) != getattr(recipe, name)
    }
    if wanted:
        options = " ".join(f"--{name} {value}" for name, value in wanted.items())
        raise UsageError(
            f"The weights {source} belong to another network than the one that this run would train. Add {options}, or "
            "choose other --weights."
        )


def _load_if_checkpoint(source: str | None) -> Checkpoint | None:
    if source is None or not (source in BUNDLED or Path(source).is_dir()):
        return None
    return load_checkpoint(source)


def _body(network: Encoder) -> nn.Module:
    body = getattr(network, "body", None)
    if not isinstance(body, nn.Module):
        raise TypeError("only torchvision's backbones have a body")
    return body


def _pretrained(backbone: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(backbone)["DEFAULT"]
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as problem:
        raise UsageError(
            f"torchvision's weights {weights} could not be downloaded ({problem}). Fetch the file elsewhere and give "
            "it as --weights FILE."
        ) from None
    return state


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a damaged file makes PyTorch warn before it raises
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # noqa: BLE001  whatever a foreign file makes the readers raise
        raise UsageError(f"The weights {path} can't be read: {type(problem).__name__}.") from None
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"The weights {path} can't be read: the file holds no state dict (tensors by name).")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _as_body(backbone: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision state dict with the names that `body` uses: its layers, numbered."""
    from torchvision.models import get_model

    if backbone.startswith("resnet"):
        layers = [key for key, _ in get_model(backbone).named_children()][:-2]
        numbers = {layer: str(index) for index, layer in enumerate(layers)}
        parts = {key: key.split(".", 1) for key in state}
        return {f"{numbers[first]}.{rest[0]}": state[key] for key, (first, *rest) in parts.items() if first in numbers}
    return {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}


def _copy_tensors(module: nn.Module, state: dict[str, Tensor], source: str) -> str:
    """Copy tensors of the same name and shape. Those of the backbone must all be there; the head may be fresh."""
    wanted = module.state_dict()
    usable = {key: value for key, value in state.items() if key in wanted and wanted[key].shape == value.shape}
    missing = [key for key in wanted if key not in usable and not key.endswith("num_batches_tracked")]
    wrong = [key for key in missing if not key.startswith(("head.", "bottleneck.", "pool."))]
    if wrong:
        raise UsageError(
            f"The weights {source} are of another network: {len(wrong)} of {len(wanted)} tensors are missing or have "
            f"another shape, first {wrong[0]}. Choose the --backbone that they belong to."
        )
    module.load_state_dict(usable, strict=False)
    fresh = sorted({key.split(".")[0] for key in missing})
    return f"{len(usable)} tensors from {source}" + (f"; fresh: {', '.join(fresh)}" if fresh else "")
