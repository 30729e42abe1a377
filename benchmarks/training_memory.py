"""Does training's memory stay flat over epochs on a folder of 100,000 images?

    python -m benchmarks.training_memory FOLDER        (any folder tree of images, such as Omniglot's images_background)

Links to its images make a folder of 100,000 in 5,000 identities; pixels in colour, 64 x 64, are 1.2 GB, more than is
kept in memory. A small network, since memory is what is measured. Anonymous memory is what the process holds itself;
file pages are the kernel's to take back.
"""

import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np

from training.dataset import image_files, read_dataset
from training.fit import fit
from training.network import build
from training.processes import open_fabric
from training.recipe import Recipe
from training.train import architecture_of

IMAGES, IDENTITIES, EPOCHS = 100_000, 5_000, 6


def memory_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def main(source: Path) -> None:
    recipe = Recipe(image_size=64, channels=3, aspect="pad", augment="lines", width=0.1, depth=1, epochs=EPOCHS)
    with tempfile.TemporaryDirectory(prefix="diptych-bench-") as directory:
        root = Path(directory)
        for number, path in zip(range(IMAGES), itertools.cycle(image_files(source)), strict=False):
            folder = root / f"i{number % IDENTITIES:05d}"
            folder.mkdir(exist_ok=True)
            (folder / f"{number}{path.suffix}").symlink_to(path.resolve())
        print(f"at start {memory_mib('RssAnon'):.0f} MiB")
        data = read_dataset(root, recipe.preprocessing)
        print(f"{len(data):,} images decoded: {memory_mib('RssAnon'):.0f} MiB, file pages {memory_mib('RssFile'):.0f}")
        fabric = open_fabric(recipe)
        network = build(architecture_of(data, np.arange(len(data)), recipe))
        print("\n| epoch | anonymous memory, MiB | file pages, MiB |\n| --- | --- | --- |")

        def record(row: dict[str, float]) -> None:
            shown = f"{memory_mib('RssAnon'):.0f} | {memory_mib('RssFile') + memory_mib('RssShmem'):.0f}"
            print(f"| {row['epoch']} | {shown} |", flush=True)

        validation = np.flatnonzero(data.identity_N < 100)
        fit(fabric, network, data, np.arange(100, IDENTITIES), validation, recipe, record=record)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.training_memory FOLDER")
    main(Path(sys.argv[1]))
