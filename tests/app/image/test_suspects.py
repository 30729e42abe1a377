"""Which images are decoded in a process of their own, on files as programs write them and as nobody does."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from app.image.policy import HEIF, SERVED_FORMATS
from app.image.suspects import MOST_CHUNKS, MOST_SCANS, MOST_SEGMENTS, is_suspect
from tests.files import drawings


def encoded(kind: str, **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": b"Exif\0\0" + bytes(60_000), "icc_profile": bytes(300_000)}),
        ("PNG", {}),
        ("PNG", {"dpi": (300, 300)}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
    ],
)
def test_what_programs_write_is_ordinary(kind: str, options: dict[str, object]) -> None:
    """Nearly every image: it is decoded where it is."""
    assert not is_suspect(encoded(kind, **options), SERVED_FORMATS)


def test_drawings_are_ordinary() -> None:
    """Of the tests' own."""
    assert not any(is_suspect(path.read_bytes(), SERVED_FORMATS) for path in drawings("Angelic/character01"))


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "AVIF"])
def test_formats_whose_decoders_may_take_much_are_suspect(kind: str) -> None:
    """Whatever is in them."""
    assert is_suspect(encoded(kind), SERVED_FORMATS)


def test_what_is_not_opened_needs_no_process() -> None:
    """HEIC only where it is asked for; text never."""
    heic = b"\0\0\0\x18ftypheic" + bytes(64)
    assert not is_suspect(heic, SERVED_FORMATS)
    assert is_suspect(heic, (*SERVED_FORMATS, HEIF))
    assert not is_suspect(b"hello", (*SERVED_FORMATS, HEIF))


def test_a_jpeg_of_many_scans_is_suspect() -> None:
    """Each may go over all pixels, in ten bytes. One sequential scan may hold the same bytes as often as it likes."""
    scan = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0"
    progressive, sequential = encoded("JPEG", progressive=True), encoded("JPEG")
    for few in (progressive, sequential, sequential + scan * MOST_SCANS):
        assert not is_suspect(few, SERVED_FORMATS)
    assert is_suspect(progressive[:-2] + scan * MOST_SCANS + progressive[-2:], SERVED_FORMATS)
    alone = sequential.index(b"\xff\xda")
    assert is_suspect(sequential[:alone] + scan * (MOST_SCANS + 1), SERVED_FORMATS)


@pytest.mark.parametrize("filling", [b"\xff\xef\0\x02", b"\xff\xfe\0\x02", b"\xff", b"\0"], ids=repr)
def test_a_jpeg_of_many_segments_is_suspect(filling: bytes) -> None:
    """Also where what is between them is none."""
    whole = encoded("JPEG")
    assert is_suspect(whole[:2] + filling * MOST_SEGMENTS + whole[2:], SERVED_FORMATS)


@pytest.mark.parametrize("kind", [b"teSt", b"IDAT"])
def test_a_png_of_many_chunks_is_suspect(kind: bytes) -> None:
    """Before the pixels or in them."""
    whole = encoded("PNG")
    assert not is_suspect(whole[:33] + chunk(kind) * (MOST_CHUNKS // 2) + whole[33:], SERVED_FORMATS)
    assert is_suspect(whole[:33] + chunk(kind) * MOST_CHUNKS + whole[33:], SERVED_FORMATS)


def test_a_bmp_packed_in_runs_is_suspect() -> None:
    """Python unpacks it, a byte at a time."""
    plain = bytearray(encoded("BMP"))
    for runs in (1, 2):
        struct.pack_into("<I", plain, 30, runs)
        assert is_suspect(bytes(plain), SERVED_FORMATS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_any_beginning_of_a_file_is_judged(kind: str) -> None:
    """Cut off at every byte of the header, it is one or the other and no accident."""
    whole = encoded(kind)
    for length in range(700):
        assert is_suspect(whole[:length], SERVED_FORMATS) in (True, False)
