"""Does training's memory stay flat over epochs on a folder of 100,000 images?

    python -m benchmarks.training_memory FOLDER        (any folder tree of images, such as Omniglot's images_background)

Links to its images make a folder of 100,000 in 5,000 identities, and the whole command runs on it: lint, epochs with
validation on 750 identities, calibration, report. Pixels in colour, 64 x 64, are 1.2 GB, more than is kept in memory.
A small network, since memory is what is measured. Anonymous memory is what the process holds itself; file pages are
the kernel's to take back.
"""

import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training import train
from training.data.dataset import image_files
from training.recipe import Recipe

IMAGES, IDENTITIES, EPOCHS = 100_000, 5_000, 5
RECIPE = Recipe(image_size=64, channels=3, aspect="pad", augment="lines", width=0.1, depth=1, epochs=EPOCHS)


def memory_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def show(when: str) -> None:
    files = memory_mib("RssFile") + memory_mib("RssShmem")
    print(f"| {when} | {memory_mib('RssAnon'):.0f} | {files:.0f} | {memory_mib('VmHWM'):.0f} |", flush=True)


@contextmanager
def watched(*_: Any, **__: Any) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Stands where figures go to TensorBoard: called once an epoch."""
    show("decoded and linted")
    yield lambda row: show(f"epoch {row['epoch']}")


def main(source: Path) -> None:
    train.tensorboard_scalars = watched  # type: ignore[assignment]
    with tempfile.TemporaryDirectory(prefix="diptych-bench-") as directory:
        root = Path(directory, "data")
        for number, path in zip(range(IMAGES), itertools.cycle(image_files(source)), strict=False):
            folder = root / f"i{number % IDENTITIES:05d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}{path.suffix}").symlink_to(path.resolve())
        print("| when | anonymous memory, MiB | file pages, MiB | peak so far, MiB |\n| --- | --- | --- | --- |")
        show("start")
        train.train_encoder(root, Path(directory, "out"), RECIPE, train.RunOptions(despite_lint=True, progress=False))
        show("end, with report")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.training_memory FOLDER")
    main(Path(sys.argv[1]))
