"""All measurements in one run, as tables in Markdown: accuracy on Omniglot, speed of the service.

    make bench DATA=folder        with omniglot.zip and omniglot_one_shot_runs.zip, and camera_jpegs.zip for speed

The archives may be unpacked: `omniglot.zip` or a folder `omniglot`. See RESULTS.md for where they come from.
"""

import platform
import sys
import tempfile
import zipfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from app import checkpoint
from benchmarks.one_shot import one_shot
from benchmarks.speed import measure
from training.evaluate import evaluate_folder

CHECKPOINT = "omniglot"


def unpacked(data: Path, name: str, stack: ExitStack) -> Path | None:
    """The folder of an archive, unpacked for as long as the stack lives; None if it isn't there."""
    if (data / name).is_dir():
        return data / name
    if not (data / f"{name}.zip").is_file():
        return None
    target = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="diptych-bench-")))
    with zipfile.ZipFile(data / f"{name}.zip") as archive:
        archive.extractall(target)
    return target


def accuracy(data: Path, stack: ExitStack) -> None:
    runs, drawings = unpacked(data, "omniglot_one_shot_runs", stack), unpacked(data, "omniglot", stack)
    print(f"\n### Accuracy of `{CHECKPOINT}` on Omniglot's evaluation set\n\n| measure | value |\n| --- | --- |")
    if runs is not None:
        found = one_shot(CHECKPOINT, runs)
        print(f"| official 20 runs, 20-way one-shot error | {found['error']:.2%} ({found['errors']} of 400) |")
    if drawings is not None:
        opened = checkpoint.load(CHECKPOINT)
        m = evaluate_folder(opened, drawings / "images_evaluation", progress=False).metrics
        print(f"| threshold ({opened.description.threshold_source}) | {m['threshold']:.4f} |")
        print(f"| FMR, {m['impostor_pairs']:,} impostor pairs | {m['fmr']:.2%} |")
        print(f"| FMR, {m['same_group_impostor_pairs']:,} of the same alphabet | {m['same_group_fmr']:.2%} |")
        print(f"| FNMR, {m['genuine_pairs']:,} genuine pairs | {m['fnmr']:.2%} |")
        print(f"| EER | {m['eer']:.2%} |")
        print(f"| EER, same alphabet | {m['same_group_eer']:.2%} |")


def speed(data: Path, stack: ExitStack) -> None:
    photos = unpacked(data, "camera_jpegs", stack)
    print(f"\n### Speed of `{CHECKPOINT}`, two images a request\n")
    print("| images | in-process, pairs/s | `/verify`, pairs/s | ratio | p50, ms | p99, ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    here = Path(__file__).parent.parent / "tests" / "data" / "omniglot" / "evaluation"
    sets = {"drawings, 105 x 105 PNG": sorted(here.rglob("*.png"))[:40]}
    if photos is not None:
        sets["camera JPEGs, 3 to 12 megapixel"] = sorted((photos / "cameras").glob("*.jpg"))
    for name, images in sets.items():
        s = measure(CHECKPOINT, images)
        print(
            f"| {name} | {s.in_process:.0f} | {s.service:.0f} | {s.service / s.in_process:.2f} "
            f"| {s.p50_ms:.1f} | {s.p99_ms:.1f} |"
        )
    print(f"\nImport to ready {s.ready_seconds:.2f} s; resident after the run {s.resident_mib:.0f} MiB.")


def main(data: Path) -> None:
    if not data.is_dir():
        sys.exit(f"{data} is no folder")
    print(f"## {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}")
    with ExitStack() as stack:
        accuracy(data, stack)
        speed(data, stack)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.run DATA")
    main(Path(sys.argv[1]))
