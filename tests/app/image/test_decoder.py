"""Decoding in processes of their own: the same pixels, and whatever becomes of such a process, the next image works."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from app.arrays import ImageU8
from app.errors import BlankImage, DamagedImage, TooManyPixels
from app.image.decoder import IMAGES_OF_A_PROCESS, Decoder
from app.image.policy import HEIF, SERVED_FORMATS, Preprocessing, decode
from app.settings import Settings
from tests.files import drawings
from tests.service import wait_for

pillow_heif.register_heif_opener()
GREY = Preprocessing(height=48, width=48, channels=1, aspect="pad")
COLOUR = Preprocessing(height=48, width=64, channels=3, aspect="crop")
ROOT = Path(__file__).parents[3]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def picture(width: int = 320, height: int = 200) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 7), 255 * x / width], axis=2)
    return Image.fromarray(waves.astype(np.uint8))


def large(kind: str = "GIF") -> bytes:
    """36 megapixels, which take a while and much memory."""
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    return encoded(Image.linear_gradient("L").resize((6000, 6000)), kind, **options)


def decoder_for(settings: Settings) -> Decoder:
    """As the service makes it."""
    return Decoder(
        formats=settings.formats,
        processes=settings.concurrency,
        seconds=settings.decode_seconds,
        mib=settings.decode_mib,
    )


@pytest.fixture
def made() -> Iterator[Callable[..., Decoder]]:
    """Decoders that end with the test."""
    decoders: list[Decoder] = []

    def make(**settings: object) -> Decoder:
        decoders.append(decoder_for(Settings(heic=True, **settings)))  # type: ignore[arg-type]
        return decoders[-1]

    yield make
    for decoder in decoders:
        decoder.close()


def run(decoder: Decoder, data: bytes, to: Preprocessing = GREY, max_pixels: int = 40_000_000) -> ImageU8:
    return decoder.decode(data, to, max_bytes=2**24, max_pixels=max_pixels, refuse_blank=True)


def pids() -> set[int]:
    """Decoder processes of this one."""
    found = set()
    for listed in Path("/proc/self/task").glob("*/children"):
        for pid in listed.read_text().split():
            with suppress(OSError):
                if b"app.image.child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
    return found


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), kind, exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        *(encoded(picture().convert(mode), "TIFF") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB")),
        *(encoded(picture(), "TIFF", compression=how) for how in ("jpeg", "tiff_lzw", "tiff_adobe_deflate")),
        encoded(Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256)), "TIFF"),
        encoded(picture().convert("P"), "GIF", transparency=3),
        encoded(picture(), "GIF", save_all=True, append_images=[picture().rotate(90)]),
        *(encoded(picture().convert(mode), "AVIF") for mode in ("L", "RGB", "RGBA")),
        *(encoded(picture().convert(mode), HEIF) for mode in ("L", "RGB", "RGBA")),
        *(turned(kind, orientation) for kind in ("TIFF", "AVIF", HEIF) for orientation in (2, 5, 6)),
    ],
)
def test_pixels_are_the_same_in_a_process_of_their_own(shared: Decoder, data: bytes) -> None:
    """Every format and mode, without a file or a module that was not there before."""
    for to in (GREY, COLOUR):
        assert np.array_equal(run(shared, data, to), decode(data, to, formats=(*SERVED_FORMATS, HEIF)))


@pytest.fixture(scope="module")
def shared() -> Iterator[Decoder]:
    decoder = decoder_for(Settings(heic=True))
    yield decoder
    decoder.close()


def test_ordinary_images_start_no_process(made: Callable[..., Decoder]) -> None:
    """Nor does what is no image."""
    before, decoder = pids(), made()
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        run(decoder, encoded(picture(), kind))
    run(decoder, drawings("Angelic/character01")[0].read_bytes())
    assert pids() == before


def test_one_process_serves_one_image_after_the_other(made: Callable[..., Decoder]) -> None:
    """And is gone when the decoder is closed."""
    before, decoder = pids(), made()
    for _ in range(3):
        run(decoder, encoded(picture(), "GIF"))
    assert len(pids() - before) == 1
    decoder.close()
    assert pids() == before


def test_several_threads_get_their_own_pictures(made: Callable[..., Decoder]) -> None:
    """From as many processes as images may be decoded at once, and no more."""
    before, decoder = pids(), made(concurrency=2)
    images = [encoded(picture(100 + 7 * n, 80 + 3 * n), "TIFF") for n in range(24)]
    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(lambda data: run(decoder, data), images))
    for data, pixels in zip(images, results, strict=True):
        assert np.array_equal(pixels, decode(data, GREY))
    assert 1 <= len(pids() - before) <= 2


def test_an_image_that_takes_too_long_is_refused_and_the_next_works(made: Callable[..., Decoder]) -> None:
    """A large one, where little time is allowed; its process is gone."""
    decoder = made(decode_seconds=0.05)
    run(decoder, encoded(picture(), "GIF"))  # its process has started
    started = time.monotonic()
    with pytest.raises(DamagedImage, match=r"more than (0\.05 s of processor time|2 s)"):
        run(decoder, large())
    assert time.monotonic() - started < 5
    assert run(decoder, encoded(picture(), "GIF")).shape == (48, 48, 1)


def test_an_image_that_takes_too_much_memory_is_refused_and_the_next_works(made: Callable[..., Decoder]) -> None:
    """The same, where little memory is allowed."""
    decoder = made(decode_mib=24)
    for kind in ("GIF", "TIFF", "AVIF"):
        with pytest.raises(DamagedImage):
            run(decoder, large(kind) if kind != "AVIF" else encoded(picture(3000, 2000), kind))
        assert run(decoder, encoded(picture(), "GIF")).shape == (48, 48, 1)


def test_a_process_that_was_killed_is_replaced(made: Callable[..., Decoder]) -> None:
    """While it waits: nobody notices. While it works: that image is refused."""
    before, decoder = pids(), made()
    run(decoder, encoded(picture(), "GIF"))
    for pid in pids() - before:
        os.kill(pid, signal.SIGKILL)
    run(decoder, encoded(picture(), "GIF"))
    (process,) = decoder._idle
    assert {process.pid} == pids() - before
    os.kill(process.pid, signal.SIGSTOP)  # so that it does not finish before it is killed
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(run, decoder, encoded(picture(), "GIF"))
        wait_for(lambda: process.images == 2)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(DamagedImage, match="crashed its decoder"):
            work.result(10)
    assert run(decoder, encoded(picture(), "GIF")).shape == (48, 48, 1)


def test_a_process_that_stands_still_is_ended(made: Callable[..., Decoder]) -> None:
    """Without using any processor time: by the clock."""
    before, decoder = pids(), made(decode_seconds=0.2)
    run(decoder, encoded(picture(), "GIF"))
    for pid in pids() - before:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DamagedImage, match=r"more than 2 s,"):
        run(decoder, encoded(picture(), "GIF"))
    assert run(decoder, encoded(picture(), "GIF")).shape == (48, 48, 1)


def test_a_process_without_work_ends_and_is_replaced(
    made: Callable[..., Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before it is asked, too."""
    monkeypatch.setattr("app.image.decoder.IDLE_SECONDS", 0.02)
    before, decoder = pids(), made()
    for wait in np.linspace(0.01, 0.03, 20):
        assert run(decoder, encoded(picture(), "GIF")).shape == (48, 48, 1)
        time.sleep(wait)
    wait_for(lambda: pids() == before)


def test_a_process_is_replaced_after_many_images(made: Callable[..., Decoder]) -> None:
    """What leaked in it goes with it."""
    before, decoder = pids(), made()
    run(decoder, encoded(picture(), "GIF"))
    (first,) = pids() - before
    decoder._idle[0].images = IMAGES_OF_A_PROCESS - 1
    for _ in range(2):
        run(decoder, encoded(picture(), "GIF"))
    assert first not in pids()


def test_refusals_come_back_as_what_they_are(shared: Decoder) -> None:
    """With their words."""
    with pytest.raises(BlankImage, match="blank"):
        run(shared, encoded(Image.new("L", (50, 50), 9), "GIF"))
    with pytest.raises(TooManyPixels, match="at most 1,000"):
        run(shared, encoded(picture(), "TIFF"), max_pixels=1000)
    with pytest.raises(DamagedImage, match="Send the whole file"):
        run(shared, encoded(picture(), "AVIF")[:500])


@pytest.mark.parametrize("threads", [False, True])
def test_a_process_can_reach_nothing(tmp_path: Path, threads: bool) -> None:
    """No file, not even by name, no socket, no other process, no program, though it runs as the same user."""
    here = tmp_path / "file"
    here.write_text("x")
    attempts = f"""
import os, socket, subprocess
from app.image.confinement import confine
confine(64, threads={threads})
for attempt in (
    lambda: open({str(here)!r}),
    lambda: open({str(here)!r}, "w"),
    lambda: os.truncate({str(here)!r}, 0),
    lambda: os.unlink({str(here)!r}),
    lambda: os.rename({str(here)!r}, {str(here)!r} + "2"),
    lambda: os.chmod({str(here)!r}, 0),
    lambda: os.execv("/bin/true", ["true"]),
    lambda: os.kill(os.getpid(), 0),
    lambda: socket.socket(),
    lambda: subprocess.run(["true"]),
    lambda: bytearray(2**27),
):
    try:
        attempt()
    except (OSError, MemoryError):
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", attempts], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n" * 11
    assert here.read_text() == "x" and here.stat().st_mode & 0o400


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "AVIF", HEIF])
def test_every_format_is_decoded_by_an_ordinary_user(tmp_path: Path, kind: str) -> None:
    """Whom limits bind that do not bind root."""
    (tmp_path / "image").write_bytes(encoded(picture(), kind))
    script = f"""
import os, sys
from app.image.confinement import confine
from app.image.child import _load
from app.image.policy import Preprocessing, decode
data = open(sys.argv[1], "rb").read()
_load(heic={kind == HEIF})
if os.getuid() == 0:
    os.setuid(65534)
confine(64, threads={kind == HEIF})
print(decode(data, Preprocessing(8, 8, 1, "pad"), formats=("{kind}",)).shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "image")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "(8, 8, 1)\n", done.stderr


def test_a_process_knows_no_secrets(made: Callable[..., Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment has what it needs to find its modules."""
    monkeypatch.setenv("DIPTYCH_DATABASE_URL", "postgresql+psycopg://user:secret@host/db")
    before, decoder = pids(), made()
    run(decoder, encoded(picture(), "GIF"))
    (pid,) = pids() - before
    assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_process_ends_with_its_parent() -> None:
    """Even where that was killed."""
    script = """
import io, os, signal
from PIL import Image
from app.image.decoder import Decoder
from app.image.policy import SERVED_FORMATS, Preprocessing
buffer = io.BytesIO()
Image.linear_gradient("L").save(buffer, "GIF")
decoder = Decoder(formats=SERVED_FORMATS, processes=1, seconds=1.5, mib=640)
decoder.decode(buffer.getvalue(), Preprocessing(8, 8, 1, "pad"), max_bytes=10**6, max_pixels=10**6, refuse_blank=True)
print(decoder._idle[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 5
    while Path(f"/proc/{int(done.stdout)}/cmdline").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with suppress(OSError):
        assert b"decoder_process" not in Path(f"/proc/{int(done.stdout)}/cmdline").read_bytes()
