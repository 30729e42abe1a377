"""Figures of each epoch for TensorBoard: `tensorboard --logdir CHECKPOINT/report/tensorboard`."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

Row = dict[str, Any]


@contextmanager
def tensorboard_scalars(directory: Path, *, enabled: bool) -> Iterator[Callable[[Row], None]]:
    """A function that records the row of an epoch. A resumed run records its earlier epochs again."""
    if not enabled:
        yield lambda row: None
        return
    shutil.rmtree(directory, ignore_errors=True)
    with SummaryWriter(str(directory)) as writer:

        def record(row: Row) -> None:
            for name, value in row.items():
                if name not in ("epoch", "steps") and value is not None:
                    place, _, figure = name.partition("_")
                    tag = f"{place}/{figure}" if figure else name
                    writer.add_scalar(tag, value, row["epoch"])
            writer.flush()

        yield record
