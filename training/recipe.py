"""Every choice of a training run, in one record: its file, its options, its limits.

A recipe file is TOML with the names below. The command line takes the same names as options, and they win.
"""

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import UsageError
from app.image.policy import Aspect, Preprocessing

Backbone = Literal[
    "compact",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "resnet18",
    "resnet50",
    "convnext_tiny",
]
Pooling = Literal["mean", "gem", "grid"]
Mining = Literal["all", "active", "semi-hard", "hardest"]
Kind = Literal["auto", "lines", "photos", "none"]
Precision = Literal["auto", "32", "bf16", "16"]
Search = Literal["search"]


def _of(section: str, default: Any, words: str, **limits: Any) -> Any:
    return Field(default, description=words, json_schema_extra={"section": section}, **limits)


class Recipe(BaseModel):
    """Every choice of a training run; it is recorded in the checkpoint. None means: read off the data."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image_size: int | None = _of("Images", None, "Side of the encoder's input.", ge=16, le=512)
    channels: Literal[1, 3] | None = _of("Images", None, "1: grey, 3: colour.")
    aspect: Aspect | None = _of("Images", None, "How an image that is no square becomes one.")

    backbone: Backbone = _of("Encoder", "compact", "`compact` is our own, for small or grey images.")
    weights: str | None = _of(
        "Encoder",
        None,
        "Weights to start from: `pretrained` (torchvision downloads them), a file of the backbone's weights "
        "(.pth, .safetensors), or a checkpoint of Diptych.",
    )
    width: float = _of("Encoder", 1.0, "Channels of `compact`, as a multiple.", ge=0.1, le=4)
    depth: int = _of("Encoder", 2, "Residual blocks of `compact` at each resolution.", ge=1, le=8)
    pooling: Pooling = _of(
        "Encoder",
        "mean",
        "`mean` and `gem` (generalised mean) forget where on the image a feature stood; `grid` keeps it.",
    )
    bottleneck: int = _of("Encoder", 0, "Channels before pooling; 0: as the backbone gives them.", ge=0, le=4096)
    embedding_dim: int = _of("Encoder", 128, "Numbers of an embedding.", ge=2, le=2048)
    dropout: float = _of("Encoder", 0.0, "Share of pooled features left out at random.", ge=0, le=0.9)

    margin: Annotated[float, Field(gt=0, le=2)] | Search = _of(
        "Loss",
        1.0,
        "Distance that impostor pairs are pushed to, below 1.41 (where unit vectors at right angles stand); "
        "`search` tries several for a few epochs.",
    )
    impostors: Mining = _of(
        "Loss",
        "active",
        "Which impostor pairs the loss averages over: all; those inside the margin; of these the ones farther "
        "than the anchor's nearest genuine partner; each anchor's nearest.",
    )
    supervised: float = _of(
        "Loss",
        0.0,
        "Weight of the supervised contrastive loss, which compares distances with each other, not with the margin.",
        ge=0,
        le=1000,
    )
    temperature: float = _of("Loss", 0.1, "Of that loss: the lower, the more the nearest impostors count.", gt=0, le=1)
    centres: float = _of(
        "Loss",
        0.0,
        "Weight of the loss against a learned centre of every training identity, so that each image meets all "
        "identities at each step; 0: images of the batch only.",
        ge=0,
        le=10,
    )

    identities_per_batch: int = _of("Batches", 48, "Identities in a batch.", ge=2)
    images_per_identity: int = _of("Batches", 4, "Images of each.", ge=2)
    near_share: float = _of("Batches", 0.5, "Share of the identities that come from few groups.", ge=0, le=1)
    near_groups: int = _of("Batches", 3, "How few: groups are parent folders.", ge=1)

    augment: Kind = _of(
        "Augmentation",
        "auto",
        "`lines`: moved and bent; `photos`: moved, cropped, colour, blur, JPEG; `auto` looks at the images.",
    )
    strength: float = _of("Augmentation", 1.0, "All ranges of the augmentation, as a multiple.", ge=0, le=4)
    quarter_turns: bool = _of("Augmentation", False, "A turned identity is another identity (characters, symbols).")
    mirrors: bool = _of("Augmentation", False, "A mirrored identity is another identity.")

    epochs: int = _of("Optimisation", 40, "Passes over the images.", ge=1)
    optimizer: Literal["adamw", "adam", "sgd"] = _of("Optimisation", "adamw", "Which.")
    learning_rate: float = _of(
        "Optimisation", 2e-3, "Its peak, after a warm-up; from there half a cosine down to zero.", gt=0
    )
    weight_decay: float = _of("Optimisation", 0.02, "Pull of the weights towards zero.", ge=0)
    warm_up_share: float = _of("Optimisation", 0.05, "Share of the steps that warm up.", ge=0, le=0.9)
    clip: float = _of("Optimisation", 5.0, "Longest gradient; 0: no limit.", ge=0)
    ema: float = _of("Optimisation", 0.998, "Decay of the moving average of the weights; 0: none.", ge=0, lt=1)
    patience: int = _of(
        "Optimisation",
        0,
        "Stop after so many epochs without a better EER on the calibration identities, and keep the best; 0: never.",
        ge=0,
    )
    precision: Precision = _of("Optimisation", "auto", "Of the arithmetic; `auto` takes what is faster here.")
    seed: int = _of("Optimisation", 0, "Of all that is random.", ge=0, le=2**63 - 1)
    threads: int = _of("Optimisation", 0, "CPU threads; 0: all cores.", ge=0)

    calibration_share: float = _of(
        "Splits", 0.15, "Share of identities kept from training to choose the threshold.", ge=0, le=0.8
    )
    test_share: float = _of(
        "Splits", 0.15, "Share of identities kept from both to measure its error rates.", ge=0, le=0.8
    )
    split_by: Literal["identity", "group"] = _of("Splits", "identity", "Keep out single identities, or whole groups.")
    target_fmr: float = _of("Splits", 0.01, "False-match rate of the default threshold.", gt=0, lt=1)

    @property
    def fixed_margin(self) -> float:
        """The margin as a number, once a search has found it."""
        if isinstance(self.margin, str):
            raise TypeError("the margin is still to be searched")
        return self.margin

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become pixels, once `training.look` has settled what was left open."""
        if self.image_size is None or self.channels is None or self.aspect is None:
            raise TypeError("the images have not been looked at")
        return Preprocessing(height=self.image_size, width=self.image_size, channels=self.channels, aspect=self.aspect)

    def but(self, **changes: Any) -> "Recipe":
        """The same recipe with some choices changed, and checked."""
        return type(self).model_validate({**self.model_dump(), **changes})


def read_recipe(name_or_file: str | None, options: Mapping[str, Any]) -> Recipe:
    """A bundled recipe by name or a TOML file, or the defaults; `options` win over what it says.

    Raises `UsageError` naming the setting that can't be.
    """
    chosen: dict[str, Any] = {}
    where = "The recipe"
    if name_or_file is not None:
        bundled = files("training") / "recipes" / f"{name_or_file}.toml"
        path = Path(str(bundled)) if bundled.is_file() and not Path(name_or_file).is_file() else Path(name_or_file)
        where = str(path)
        try:
            chosen = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise UsageError(f"The recipe {where} can't be read: {problem}.") from None
    try:
        return Recipe.model_validate({**chosen, **options})
    except ValidationError as problem:
        first = problem.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        source = "--" + name.replace("_", "-") if name in options else f"{where}: {name}"
        raise UsageError(f"{source}: {first['msg']} (given: {first['input']!r}).") from None
