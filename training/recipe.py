"""Every choice of a training run, in one record that travels with the checkpoint."""

from dataclasses import dataclass
from typing import Literal

from app.image import Aspect
from training.loss import Average


@dataclass(frozen=True)
class Recipe:
    """Every choice of a training run; it is recorded in the checkpoint. None means: read off the data."""

    image_size: int | None = None
    channels: Literal[1, 3] | None = None
    aspect: Aspect = "pad"
    embedding_dim: int = 128
    width: float = 1.0
    dropout: float = 0.0
    margin: float = 1.0
    impostors: Average = "active"
    epochs: int = 40
    identities_per_batch: int = 48
    images_per_identity: int = 4
    near_share: float = 0.5
    near_groups: int = 3
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warm_up_share: float = 0.05
    ema: float = 0.998
    quarter_turns: bool = False
    calibration_share: float = 0.15
    test_share: float = 0.15
    split_by: Literal["identity", "group"] = "identity"
    target_fmr: float = 0.01
    seed: int = 0
    threads: int = 0
