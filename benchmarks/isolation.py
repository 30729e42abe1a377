"""What it costs to decode in a process of its own: the same images in this process and in another, taken in turn.

    python -m benchmarks.isolation PHOTO.jpg [--repeats 40]

The photograph is saved again in each format, once in VGA size and once in its own. Medians of one image at a time, as
`app.decoder` decodes it, the isolated ones with everything that goes over pipes; then what a process takes to start,
and its memory: what it alone holds (private), and what it holds with others sharing its libraries (resident). Last,
what an ordinary image pays to be told from a suspect. HEIC where it is installed.
"""

import argparse
import ctypes
import importlib.util
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from PIL import AvifImagePlugin, Image, ImageOps
from tqdm import tqdm

from app.image.decoder import IDLE_SECONDS, Decoder
from app.image.policy import HEIF, SERVED_FORMATS, Preprocessing, decode
from app.image.sandbox import DecoderProcess
from app.image.suspects import is_suspect

M_MMAP_THRESHOLD = -3  # from malloc.h
VGA = (640, 480)
TO = Preprocessing(height=224, width=224, channels=3, aspect="pad")
FORMATS: dict[str, dict[str, object]] = {
    "GIF": {},
    "TIFF": {"compression": "tiff_lzw"},
    "AVIF": {"quality": 75},
    HEIF: {"quality": 75},
}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def memory_mib(pid: int) -> tuple[float, float]:
    """Private and resident."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in rollup[1:]}
    return (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024, kib["Rss"] / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--repeats", type=int, default=40)
    given = parser.parse_args()
    has_heic = importlib.util.find_spec("pillow_heif") is not None
    if has_heic:
        importlib.import_module("pillow_heif").register_heif_opener()
    limits = {"max_bytes": 2**30, "max_pixels": 200_000_000}
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # as in a decoder process
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)  # as in the service and in a decoder process
    photo = ImageOps.exif_transpose(Image.open(given.photo)).convert("RGB")
    formats = (*SERVED_FORMATS, HEIF) if has_heic else SERVED_FORMATS
    decoder = Decoder(formats=formats, processes=2, seconds=60, mib=4096)
    print("| format | pixels | bytes | in this process, ms | in its own, ms | more, ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    sizes = [ImageOps.fit(photo, VGA), photo]
    for kind, options in tqdm(FORMATS.items(), disable=None):
        if kind == HEIF and not has_heic:
            continue
        for image in sizes:
            data = encoded(image, kind, **options)
            here, there = [], []
            for _ in range(given.repeats):
                here.append(seconds(lambda data=data: decode(data, TO, formats=formats, **limits)))  # type: ignore[misc]
                there.append(seconds(lambda data=data: decoder.decode(data, TO, refuse_blank=False, **limits)))  # type: ignore[misc]
            a, b = 1000 * statistics.median(here), 1000 * statistics.median(there)
            name = "HEIC" if kind == HEIF else kind
            size = f"{image.width} x {image.height}"
            print(f"| {name} | {size} | {len(data):,} | {a:.1f} | {b:.1f} | {b - a:.1f} | {b / a:.2f} |", flush=True)
    decoder.close()
    for heic in (False, True)[: 1 + has_heic]:
        starts = []
        for _ in range(10):
            started = time.perf_counter()
            process = DecoderProcess(640, IDLE_SECONDS, heic=heic)
            starts.append(time.perf_counter() - started)
            private, resident = memory_mib(process.pid)
            process.end()
        what = "with HEIC" if heic else "without HEIC"
        print(
            f"\na process {what} starts in {1000 * statistics.median(starts):.0f} ms and holds {private:.0f} MiB alone"
        )
        print(f"({resident:.0f} MiB with what its libraries share)")
    for name, data in (
        ("JPEG", given.photo.read_bytes()),
        ("PNG", encoded(sizes[0], "PNG")),
        ("WebP", encoded(sizes[0], "WEBP")),
    ):
        taken = statistics.median(seconds(lambda data=data: is_suspect(data, formats)) for _ in range(1000))  # type: ignore[misc]
        print(f"\nto tell that a {name} of {len(data):,} bytes is ordinary takes {1e6 * taken:.1f} microseconds")


if __name__ == "__main__":
    main()
