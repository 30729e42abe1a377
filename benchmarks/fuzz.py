"""Bytes that nobody thought of through `decode`: mutated from real files, guided by the code they reach.

    python -m benchmarks.fuzz FOLDER|ARCHIVE.zip ... [--seconds 3600] [--findings DIR]

Needs the extra `fuzz`. Nothing but an `ImageError` may come out, within two seconds of processor time and 300 MiB; what
breaks that is saved to DIR, and so is what kills or hangs the process, which is then started again. Seconds are
those of the processor, so a run that was stopped meanwhile is no shorter. All served formats, and HEIC where it is
installed; grey and colour in turn. A few pictures of each format are added to the given ones. Exits with 1 if anything
was found.
"""

import argparse
import hashlib
import importlib
import importlib.util
import io
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Nothing that imports Pillow: the worker has to have it instrumented first.
MOST_SECONDS, MOST_MIB, HANG_SECONDS = 2.0, 300, 30.0
# Small enough for a thousand pictures a second, large enough for every branch.
MOST_BYTES, MOST_PIXELS = 2**16, 2_000_000
HAS_HEIC = importlib.util.find_spec("pillow_heif") is not None
PLUGINS = ("Jpeg", "Mpo", "Png", "WebP", "Gif", "Bmp", "Tiff", "Avif")
# What the worker leaves for the supervisor, whatever becomes of it: executions, seconds, length, bytes.
STATE = struct.Struct("<QdQ")


def repaired(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have: no decoder looks beyond a wrong one."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    whole, at = bytearray(data), 8
    while at + 12 <= len(whole):
        end = at + 8 + int.from_bytes(whole[at : at + 4], "big")
        if end + 4 > len(whole):
            break
        whole[end : end + 4] = struct.pack(">I", zlib.crc32(whole[at + 4 : end]))
        at = end + 4
    return bytes(whole)


def pictures() -> Iterator[bytes]:
    """Small ones in every format that is served: grey, colour, transparent, several frames."""
    from PIL import Image

    from app.image.policy import HEIF, SERVED_FORMATS

    formats = list(SERVED_FORMATS)
    if HAS_HEIC:
        importlib.import_module("pillow_heif").register_heif_opener()
        formats.append(HEIF)
    ramp = Image.linear_gradient("L").resize((40, 24))
    for name in formats:
        for mode in ("L", "P", "RGB", "RGBA", "CMYK"):
            for options in ({}, {"save_all": True, "append_images": [ramp.rotate(90).convert(mode)]}):
                buffer = io.BytesIO()
                with suppress(OSError, ValueError, KeyError):  # not every format has every mode, or frames
                    ramp.convert(mode).save(buffer, name, **options)
                    yield buffer.getvalue()


def work(seeds: str, state_file: Path, findings: Path, seconds: float) -> None:
    """Fuzz in this process until so many seconds of its processor time are used."""
    import atheris

    with atheris.instrument_imports(include=["PIL", "app.image.policy", "pillow_heif"]):
        from app.errors import ImageError
        from app.image.policy import HEIF, SERVED_FORMATS, Preprocessing, decode

        for plugin in PLUGINS:
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
    formats = (*SERVED_FORMATS, HEIF) if HAS_HEIC else SERVED_FORMATS
    inputs = (Preprocessing(48, 48, 1, "pad"), Preprocessing(32, 64, 3, "crop"))
    warnings.simplefilter("ignore")
    with state_file.open("r+b") as file:
        state = mmap.mmap(file.fileno(), 0)
    executions, before, _ = STATE.unpack_from(state)
    peak = 0

    def save(what: str, data: bytes) -> None:
        (findings / f"{what}-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)

    def one(data: bytes) -> None:
        nonlocal executions, peak
        started = time.process_time()
        if started >= seconds:
            os._exit(0)
        STATE.pack_into(state, 0, executions, before + started, len(data))
        state[STATE.size : STATE.size + len(data)] = data
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)  # ends the process, in native code too
        try:
            decode(data, inputs[zlib.crc32(data) & 1], max_pixels=MOST_PIXELS, formats=formats, refuse_blank=True)
        except ImageError:
            pass
        except BaseException as problem:  # noqa: BLE001  that is what is looked for
            save(type(problem).__name__, data)
        executions += 1
        if time.process_time() - started > MOST_SECONDS:
            save("slow", data)
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        if peak and resident - peak > MOST_MIB:
            save("memory", data)
        peak = max(peak, resident)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        return repaired(atheris.Mutate(data, most))[:most]

    options = [
        f"-max_len={MOST_BYTES}",
        "-rss_limit_mb=4096",
        "-timeout=100000",
        "-report_slow_units=100000",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], seeds, *options, f"-artifact_prefix={findings}/"], one, custom_mutator=mutate)
    atheris.Fuzz()


def supervise(sources: list[Path], findings: Path, seconds: float) -> int:
    """Start workers until the time is used up; keep what ended one before. Returns how many findings there are."""
    from benchmarks.hostile import files

    findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="diptych-fuzz-") as directory:
        seeds, state_file = Path(directory, "seeds"), Path(directory, "state")
        seeds.mkdir()
        given = (data for source in sources for _, data in files(source))
        for data in (*pictures(), *given):
            if len(data) <= MOST_BYTES:
                (seeds / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        print(f"{len(list(seeds.iterdir())):,} seeds", flush=True)
        state_file.write_bytes(bytes(STATE.size + MOST_BYTES))
        executions, used, crashes = 0, 0.0, 0
        while used < seconds:
            arguments = ["--worker", str(seeds), str(state_file), "--seconds", str(seconds - used)]
            worker = [sys.executable, "-m", "benchmarks.fuzz", *arguments, "--findings", str(findings)]
            # libtiff says on standard error what it thinks of each file.
            status = subprocess.run(worker, check=False, stderr=subprocess.DEVNULL).returncode
            executions, used, length = STATE.unpack_from(state_file.read_bytes())
            print(
                f"{executions:,} executions in {used:,.0f} s of processor time; worker ended with {status}", flush=True
            )
            if status == 0:
                break
            crashes += 1
            data = state_file.read_bytes()[STATE.size : STATE.size + length]
            (findings / f"ended{status}-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            if crashes > 20:
                break
    found = sorted(path.name for path in findings.iterdir())
    print(f"{executions:,} executions, {used:,.0f} s, {len(found)} findings" + "".join(f"\n- {name}" for name in found))
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        parser.error("needs atheris: uv pip install 'diptych[fuzz]'")
    if given.worker:
        work(str(given.sources[0]), given.sources[1], given.findings, given.seconds)
    else:
        sys.exit(1 if supervise(given.sources, given.findings, given.seconds) else 0)


if __name__ == "__main__":
    main()
