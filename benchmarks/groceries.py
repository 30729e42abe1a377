"""The same questions on photographs: train on 51 grocery classes, ask on the 30 that were held out.

python -m benchmarks.groceries GROCERY_STORE        (a folder with train/, val/ and test/, a folder per class in each)
"""

import random
import sys
import tempfile
from pathlib import Path

from benchmarks import verdicts
from training.recipe import Recipe
from training.train import RunOptions, train_encoder

HELD, PARTS = 30, ("train", "val", "test")
RECIPE = Recipe(
    image_size=64,
    supervised=5,
    temperature=0.05,
    epochs=24,
    identities_per_batch=24,
    calibration_share=0.1,
    test_share=0.1,
    threads=1,
)


def split(source: Path, target: Path) -> None:
    """Links to all photos: the classes to learn from below `learn`, those held out below `held`."""
    names = sorted(folder.name for folder in (source / "train").iterdir() if folder.is_dir())
    random.Random(0).shuffle(names)
    for number, name in enumerate(names):
        folder = target / ("held" if number < HELD else "learn") / name
        folder.mkdir(parents=True)
        for part in PARTS:
            for photo in sorted((source / part / name).glob("*.jpg")):
                (folder / f"{part}_{photo.name}").symlink_to(photo.resolve())


def main(source: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="diptych-bench-") as directory:
        root = Path(directory)
        split(source, root)
        train_encoder(root / "learn", root / "run", RECIPE, RunOptions(despite_lint=True, progress=False))
        for choosing, measuring in ((5, 5), (10, 10)):
            verdicts.main(str(root / "run"), root / "held", choosing, measuring)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.groceries GROCERY_STORE")
    main(Path(sys.argv[1]))
