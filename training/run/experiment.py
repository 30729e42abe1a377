"""What a training run is about: the images, who learns and who judges, every choice, and the device."""

from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version

import torch
from lightning_fabric import Fabric

from app.arrays import Ints
from app.checkpoint.format import Architecture
from training.data.dataset import Dataset
from training.data.splits import SplitName
from training.recipe import Recipe


@dataclass(frozen=True)
class Experiment:
    """One experiment, fixed from its first step to its report. `splits` holds the identities of each split."""

    fabric: Fabric
    dataset: Dataset
    splits: dict[SplitName, Ints]
    recipe: Recipe
    architecture: Architecture

    @cached_property
    def images(self) -> dict[SplitName, Ints]:
        """Indices of the images of each split."""
        return {name: self.dataset.images_of(identities) for name, identities in self.splits.items()}

    def with_recipe(self, recipe: Recipe) -> "Experiment":
        """The same experiment with other choices."""
        return replace(self, recipe=recipe)

    @property
    def key(self) -> dict[str, str]:
        """Everything that must be the same for an interrupted run to go on: recipe, data, processes, versions."""
        choices = {name: str(value) for name, value in self.recipe.model_dump().items()}
        return {
            **choices,
            "data": self.dataset.fingerprint,
            "number of processes": str(self.fabric.world_size),
            "number of threads": str(torch.get_num_threads()),
            "device": self.fabric.device.type,
            "precision": self.fabric.strategy.precision.precision,
            "version of PyTorch": str(torch.__version__),
            "version of Diptych": version("diptych"),
        }
