"""Device, precision and several processes, through Lightning Fabric.

Each process embeds its share of a batch. The embeddings are gathered with their gradients, so that pairs are formed
across processes, and the norms see the whole batch. So two processes with half a batch each take the same step as one
with all of it.
"""

import logging
import os
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from app.errors import UsageError
from training.recipe import Recipe


def open_fabric(recipe: Recipe, device: str = "auto") -> Fabric:
    """The device, precision and processes of this run: those that `torchrun` started, or this one.

    Raises `UsageError` for a device that is not available for every process.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    torch.set_num_threads(recipe.threads or max(1, (os.cpu_count() or 1) // _here()))
    torch.manual_seed(recipe.seed)
    try:
        fabric = Fabric(
            accelerator=device,
            devices=_here(),
            num_nodes=max(1, int(os.environ.get("WORLD_SIZE", "1")) // _here()),
            strategy="ddp" if "TORCHELASTIC_RUN_ID" in os.environ else "auto",
            precision=PRECISIONS[_precision(recipe, device)],
        )
    except (MisconfigurationException, ValueError, RuntimeError) as problem:
        raise UsageError(
            f"{_here()} processes can't train on the device {device!r}: {' '.join(str(problem).split())} "
            "--device cpu works everywhere."
        ) from None
    fabric.launch()
    return fabric


PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def _here() -> int:
    """Processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _precision(recipe: Recipe, device: str) -> str:
    """As asked, or what is faster: bfloat16 where the processor multiplies it natively, else float32.

    A processor without such instructions emulates them and is slower than in float32.
    """
    if recipe.precision != "auto":
        return recipe.precision
    if torch.cuda.is_available() and device in ("auto", "cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "16"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "32"


def gather(fabric: Fabric, share_BD: Tensor) -> Tensor:
    """The rows of all processes, in their order, with gradients."""
    if fabric.world_size == 1:
        return share_BD
    return cast(Tensor, fabric.all_gather(share_BD, sync_grads=True)).flatten(0, 1)


def share_norms(network: nn.Module, fabric: Fabric) -> None:
    """Make the batch norms of a network see the images of all processes.

    They keep their parameters and buffers, and with these their names in checkpoints; only `forward` changes.
    """
    if fabric.world_size > 1:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.__class__ = SharedBatchNorm2d


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the images of all processes, on any device; torch's own works on GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        x = input.float()
        count = x.numel() / x.shape[1] * dist.get_world_size()
        mean = _sum_of_all(x.sum(dim=(0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _sum_of_all(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def _sum_of_all(part: Tensor) -> Tensor:
    """The sum over processes; its gradient is summed over processes, too."""
    return cast(Tensor, all_reduce(part))  # type: ignore[no-untyped-call]
