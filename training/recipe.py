"""Every choice of a training run in one record, with its limits and its description.

A recipe file is TOML with the names below. The command line has an option for each, which overrides the file.
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


def _of(section: str, default: Any, text: str, **limits: Any) -> Any:
    return Field(default, description=text, json_schema_extra={"section": section}, **limits)


class Recipe(BaseModel):
    """Every choice of a training run. It is recorded in the checkpoint. None: derived from the images."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image_size: int | None = _of("Images", None, "Width and height of the encoder's input, in pixels.", ge=16, le=512)
    channels: Literal[1, 3] | None = _of("Images", None, "Colour channels of the input: 1 (grey) or 3 (RGB).")
    aspect: Aspect | None = _of("Images", None, "How an image is made square.")

    backbone: Backbone = _of(
        "Encoder", "compact", "Network: `compact` (for small or grey images), or one of torchvision's."
    )
    weights: str | None = _of(
        "Encoder",
        None,
        "Weights to start from: `pretrained` (downloaded by torchvision), a file with the backbone's weights "
        "(.pth or .safetensors), or a Diptych checkpoint.",
    )
    width: float = _of("Encoder", 1.0, "Multiplier for the number of channels of `compact`.", ge=0.1, le=4)
    depth: int = _of("Encoder", 2, "Residual blocks of `compact` at each resolution.", ge=1, le=8)
    pooling: Pooling = _of(
        "Encoder",
        "mean",
        "How feature maps become one vector. `mean` and `gem` (generalised mean) ignore where in the image a feature "
        "is; `grid` keeps it.",
    )
    bottleneck: int = _of(
        "Encoder", 0, "Number of channels before pooling. 0: as many as the backbone has.", ge=0, le=4096
    )
    embedding_dim: int = _of("Encoder", 128, "Number of values in an embedding.", ge=2, le=2048)
    dropout: float = _of(
        "Encoder", 0.0, "Share of pooled features that are dropped at random during training.", ge=0, le=0.9
    )

    margin: Annotated[float, Field(gt=0, le=2)] | Search = _of(
        "Loss",
        1.0,
        "Distance that training pushes impostor pairs to. It should be below 1.41, the distance of unit vectors at "
        "right angles. `search` tries several for a few epochs each.",
    )
    impostors: Mining = _of(
        "Loss",
        "active",
        "Impostor pairs that the loss averages over. `all`; `active`: pairs closer than the margin; `semi-hard`: "
        "active pairs that are farther apart than the anchor and its nearest genuine partner; `hardest`: the closest "
        "pair of each anchor.",
    )
    supervised: float = _of(
        "Loss",
        0.0,
        "Weight of the supervised contrastive loss, which compares distances with each other instead of with the "
        "margin.",
        ge=0,
        le=1000,
    )
    temperature: float = _of(
        "Loss",
        0.1,
        "Temperature of the supervised contrastive loss. At a lower temperature, the nearest impostors count more.",
        gt=0,
        le=1,
    )
    centres: float = _of(
        "Loss",
        0.0,
        "Weight of a loss between images and a learned centre of each training identity. It compares each image with "
        "all identities in every step. 0: no centres.",
        ge=0,
        le=10,
    )

    identities_per_batch: int = _of("Batches", 48, "Number of identities in a batch.", ge=2)
    images_per_identity: int = _of("Batches", 4, "Number of images of each identity in a batch.", ge=2)
    near_share: float = _of(
        "Batches", 0.5, "Share of a batch's identities that are drawn from a few groups.", ge=0, le=1
    )
    near_groups: int = _of(
        "Batches", 3, "Number of groups (parent folders) that these identities are drawn from.", ge=1
    )

    augment: Kind = _of(
        "Augmentation",
        "auto",
        "Random changes of training images. `lines`: move and bend; `photos`: move, crop, change colours, blur, JPEG; "
        "`auto`: derived from your images.",
    )
    strength: float = _of("Augmentation", 1.0, "Multiplier for the strength of all these changes.", ge=0, le=4)
    quarter_turns: bool = _of(
        "Augmentation",
        False,
        "Set this if a picture turned by 90 degrees shows a different thing (characters, symbols).",
    )
    mirrors: bool = _of(
        "Augmentation", False, "Set this if a mirrored picture shows a different thing (characters, symbols)."
    )

    epochs: int = _of("Optimisation", 40, "Number of passes over the training images.", ge=1)
    optimizer: Literal["adamw", "adam", "sgd"] = _of("Optimisation", "adamw", "Optimizer.")
    learning_rate: float = _of(
        "Optimisation",
        2e-3,
        "Peak learning rate. It is reached after the warm-up and then falls to zero along half a cosine.",
        gt=0,
    )
    weight_decay: float = _of("Optimisation", 0.02, "Weight decay.", ge=0)
    warm_up_share: float = _of(
        "Optimisation", 0.05, "Share of the steps over which the learning rate rises.", ge=0, le=0.9
    )
    clip: float = _of("Optimisation", 5.0, "Largest norm of the gradient. 0: no limit.", ge=0)
    ema: float = _of(
        "Optimisation",
        0.998,
        "Decay of the moving average of the weights. The checkpoint holds this average. 0: no average.",
        ge=0,
        lt=1,
    )
    patience: int = _of(
        "Optimisation",
        0,
        "Stop after this many epochs without a lower EER on the calibration identities, and keep the best epoch. "
        "0: never.",
        ge=0,
    )
    precision: Precision = _of(
        "Optimisation", "auto", "Floating-point precision. `auto` chooses the fastest one on this machine."
    )
    seed: int = _of("Optimisation", 0, "Random seed.", ge=0, le=2**63 - 1)
    threads: int = _of("Optimisation", 0, "Number of CPU threads. 0: one for each core.", ge=0)

    calibration_share: float = _of(
        "Splits", 0.15, "Share of the identities that is kept for choosing the threshold.", ge=0, le=0.8
    )
    test_share: float = _of(
        "Splits", 0.15, "Share of the identities that is kept for measuring the error rates.", ge=0, le=0.8
    )
    split_by: Literal["identity", "group"] = _of(
        "Splits", "identity", "Unit of the split: single identities, or whole groups (parent folders)."
    )
    target_fmr: float = _of("Splits", 0.01, "False-match rate that the default threshold is chosen for.", gt=0, lt=1)

    @property
    def fixed_margin(self) -> float:
        """The margin as a number. Raises `TypeError` where it is still to be searched."""
        if isinstance(self.margin, str):
            raise TypeError("the margin is still to be searched")
        return self.margin

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become pixels. Raises `TypeError` until `training.data.survey` has made the open choices."""
        if self.image_size is None or self.channels is None or self.aspect is None:
            raise TypeError("the images have not been surveyed")
        return Preprocessing(height=self.image_size, width=self.image_size, channels=self.channels, aspect=self.aspect)

    def but(self, **changes: Any) -> "Recipe":
        """The same recipe with other choices. Raises pydantic's `ValidationError` for one that is not allowed."""
        return type(self).model_validate({**self.model_dump(), **changes})


def read_recipe(name_or_file: str | None, options: Mapping[str, Any]) -> Recipe:
    """A bundled recipe by name, a TOML file, or the defaults; `options` override it.

    Raises `UsageError` naming the choice that is not allowed.
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
