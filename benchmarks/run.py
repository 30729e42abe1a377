"""All measurements of accuracy and speed in one run, as tables in Markdown.

    make bench DATA=folder
    python -m benchmarks.run FOLDER [--only speed,overload]

FOLDER holds omniglot.zip and omniglot_one_shot_runs.zip for accuracy, camera_jpegs.zip and grocery_store.zip for speed;
they may be unpacked (`omniglot.zip` or a folder `omniglot`). docs/results/index.md says where they come from. The speed
of the service is measured with MobileNetV3-Large at 224 pixels, trained for one short epoch here: its speed does not
depend on how well it was trained.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from app.checkpoint.store import load_checkpoint
from benchmarks import overload, profile, runtimes, speed
from benchmarks.one_shot import one_shot
from training.evaluate import evaluate_folder

CHECKPOINT = "omniglot"


class Data:
    """The archives, each unpacked when it is first asked for, for as long as the stack lives."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._unpacked: dict[str, Path] = {}
        self._large: Path | None = None

    def __call__(self, name: str) -> Path:
        if (self._folder / name).is_dir():
            return self._folder / name
        if name not in self._unpacked:
            target = self._temporary()
            with zipfile.ZipFile(self._folder / f"{name}.zip") as archive:
                archive.extractall(target)
            self._unpacked[name] = target
        return self._unpacked[name]

    def large_checkpoint(self) -> str:
        """MobileNetV3-Large at 224 pixels."""
        if self._large is None:
            self._large = self._temporary() / "mobilenet_v3_large"
            command = [Path(sys.executable).parent / "diptych", "train", self("grocery_store") / "val", "--quiet"]
            how = ["--backbone", "mobilenet_v3_large", "--image-size", "224", "--epochs", "1", "--despite-lint"]
            subprocess.run([*command, "--output", self._large, *how, "--no-images"], check=True, capture_output=True)
        return str(self._large)

    def _temporary(self) -> Path:
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="diptych-bench-")))


def accuracy(data: Data) -> None:
    print(f"\n### Accuracy of `{CHECKPOINT}` on Omniglot's evaluation set\n\n| measure | value |\n| --- | --- |")
    found = one_shot(CHECKPOINT, data("omniglot_one_shot_runs"))
    print(f"| official 20 runs, 20-way one-shot error | {found['error']:.2%} ({found['errors']} of 400) |")
    opened = load_checkpoint(CHECKPOINT)
    m = evaluate_folder(opened, data("omniglot") / "images_evaluation", progress=False).metrics
    print(f"| threshold ({opened.description.threshold_source}) | {m['threshold']:.4f} |")
    print(f"| FMR, {m['impostor_pairs']:,} impostor pairs | {m['fmr']:.2%} |")
    print(f"| FMR, {m['same_group_impostor_pairs']:,} of the same alphabet | {m['same_group_fmr']:.2%} |")
    print(f"| FNMR, {m['genuine_pairs']:,} genuine pairs | {m['fnmr']:.2%} |")
    print(f"| EER | {m['eer']:.2%} |")
    print(f"| EER, same alphabet | {m['same_group_eer']:.2%} |")


def contest(data: Data) -> None:
    print("\n### Speed of `/verify`: MobileNetV3-Large, 224 pixels")
    speed.measure(data.large_checkpoint(), data("camera_jpegs") / "cameras", rounds=5, seconds=5)
    large, small = (speed.ready_seconds(name) for name in (data.large_checkpoint(), CHECKPOINT))
    print(f"Import to ready {large:.2f} s; with `{CHECKPOINT}` {small:.2f} s.")


def stages(data: Data) -> None:
    print("\n### Where the time goes: the same")
    profile.measure(data.large_checkpoint(), data("camera_jpegs") / "cameras", seconds=3)


def pressure(data: Data) -> None:
    print("\n### Overload: the same")
    overload.measure(data.large_checkpoint(), data("camera_jpegs") / "cameras", seconds=20)


def precision(data: Data) -> None:
    print("\n### Other runtimes and precisions")
    runtimes.measure(CHECKPOINT, data("omniglot") / "images_evaluation")
    runtimes.measure(data.large_checkpoint(), data("grocery_store") / "test")


SECTIONS: dict[str, Callable[[Data], None]] = {
    "accuracy": accuracy,
    "speed": contest,
    "overload": pressure,
    "profile": stages,
    "runtimes": precision,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"some of {', '.join(SECTIONS)}; all by default")
    given = parser.parse_args()
    wanted = given.only.split(",")
    if not given.data.is_dir():
        parser.error(f"{given.data} is no folder")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}: {', '.join(SECTIONS)}")
    listed = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.partition(": ")[2] for line in listed if line.startswith("model name"))
    print(f"## {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} x {cpu}, Python {platform.python_version()}")
    with ExitStack() as stack:
        data = Data(given.data, stack)
        for name in wanted:
            SECTIONS[name](data)


if __name__ == "__main__":
    main()
