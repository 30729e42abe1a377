"""The decoding policy, on real drawings and photographs made here."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.errors import (
    BlankImage,
    DamagedImage,
    EmptyImage,
    ImageError,
    TooManyBytes,
    TooManyPixels,
    UnsupportedFormat,
)
from app.image.policy import HEIF, SERVED_FORMATS, Preprocessing, _depth, claimed_format, decode
from tests.files import drawings

GREY = Preprocessing(height=48, width=48, channels=1, aspect="pad")
COLOUR = Preprocessing(height=48, width=64, channels=3, aspect="stretch")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def scene(width: int = 320, height: int = 200) -> Image.Image:
    """A picture that looks different in each of the eight orientations, smooth enough for JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / width
    green = 255 * y / height
    blue = 255 * ((x > width // 2) & (y > height // 2))
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def close(a: np.ndarray, b: np.ndarray, within: float) -> bool:
    return bool(np.abs(a.astype(float) - b.astype(float)).mean() <= within)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_the_same_drawing_decodes_alike_from_every_lossless_format(kind: str) -> None:
    """The format is a container: it doesn't change the pixels."""
    drawing = Image.open(drawings("Angelic/character01")[0]).convert("L")
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encoded(drawing, kind, **options), GREY)
    assert pixels.shape == (48, 48, 1)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, decode(encoded(drawing, "PNG"), GREY))


TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("to", [GREY, COLOUR])
def test_orientation_is_applied_once_whoever_decodes(kind: str, orientation: int, to: Preprocessing) -> None:
    """All eight EXIF orientations of one scene give one picture, also where Pillow turns it by itself (TIFF)."""
    turn = TURNS[orientation]
    stored = scene() if turn is None else scene().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"exif": exif} if kind != "TIFF" else {"tiffinfo": {0x0112: orientation}}
    if kind in ("JPEG", "WEBP", "AVIF"):
        options["quality"] = 95
    pixels = decode(encoded(stored, kind, **options), to)
    assert close(pixels, decode(encoded(scene(), "PNG"), to), within=2.0)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_invalid_orientation_means_upright(value: int) -> None:
    """Some cameras write 0."""
    exif = Image.Exif()
    exif[0x0112] = value
    assert np.array_equal(decode(encoded(scene(), "PNG", exif=exif), COLOUR), decode(encoded(scene(), "PNG"), COLOUR))


def test_avif_is_turned_as_its_container_says() -> None:
    """XMP that says otherwise was left there by a program that had turned the picture."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain, said = (encoded(scene(), "AVIF", quality=95, **options) for options in ({}, {"xmp": xmp}))
    assert np.array_equal(decode(said, COLOUR), decode(plain, COLOUR))


def test_a_large_jpeg_decoded_at_reduced_scale_looks_like_the_whole(tmp_path: Path) -> None:
    """The shortcut for photographs changes them by less than JPEG itself does."""
    data = encoded(scene(4001, 3003), "JPEG", quality=92)
    full = Image.open(io.BytesIO(data)).resize((64, 48), Image.Resampling.BILINEAR)
    assert close(decode(data, COLOUR), np.asarray(full), within=1.0)


def test_transparency_is_shown_over_white() -> None:
    """What nobody sees must not decide: fully transparent pixels are white, whatever colour they hide."""
    image = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    image.paste((200, 10, 10, 255), (20, 20, 40, 40))
    pixels = decode(encoded(image, "PNG"), COLOUR)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[24, 32].tolist() == [200, 10, 10]


def test_transparent_palette_is_shown_over_white() -> None:
    """A GIF's transparent colour is transparent."""
    image = Image.new("P", (60, 60), 0)
    image.putpalette([0, 0, 0, 250, 250, 10])
    image.paste(1, (20, 20, 40, 40))
    pixels = decode(encoded(image, "GIF", transparency=0), COLOUR)
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    """A 16-bit ramp becomes an 8-bit ramp, not a white sheet."""
    ramp = np.tile(np.linspace(0, 65535, 64, dtype=np.uint16), (48, 1))
    for kind in ("PNG", "TIFF"):
        pixels = decode(encoded(Image.fromarray(ramp), kind), Preprocessing(48, 64, 1, "stretch"))
        assert np.abs(pixels[0, :, 0].astype(int) - np.linspace(0, 255, 64)).max() <= 1.5


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "AVIF"])
def test_the_first_frame_of_many_counts(kind: str) -> None:
    """An animation is its first picture, and so is a file of many pages."""
    frames = [scene(), Image.new("RGB", (320, 200), "red")]
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "AVIF" else {}
    animated = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert close(decode(animated, COLOUR), decode(encoded(scene(), "PNG"), COLOUR), within=3.0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_common_mode_decodes_to_both_channel_counts(mode: str) -> None:
    """Grey, colour, palette, print colours: nothing falls through."""
    image = scene().convert("L").convert(mode) if mode == "I;16" else scene().convert(mode)
    data = encoded(image, "TIFF")
    assert decode(data, GREY).shape == (48, 48, 1)
    assert decode(data, COLOUR).shape == (48, 64, 3)


def test_pad_keeps_the_whole_image_between_white_bars() -> None:
    """A wide picture in a square."""
    pixels = decode(encoded(Image.new("L", (100, 50), 40), "PNG"), Preprocessing(40, 40, 1, "pad"))[:, :, 0]
    assert (pixels[:10] == 255).all()
    assert (pixels[30:] == 255).all()
    assert (pixels[10:30] == 40).all()


def test_crop_keeps_the_middle_undistorted() -> None:
    """The sides of a wide picture go."""
    image = Image.new("L", (100, 50), 0)
    image.paste(200, (25, 0, 75, 50))
    pixels = decode(encoded(image, "PNG"), Preprocessing(40, 40, 1, "crop"))
    assert (pixels[:, 1:-1] == 200).all()


def test_an_image_of_one_endless_row_is_refused() -> None:
    """Few pixels more than a photo has, at many times its cost."""
    with pytest.raises(TooManyPixels, match="65,535 pixels a side"):
        decode(encoded(Image.new("1", (1, 70_000)), "PNG"), GREY)


def test_twelve_bits_are_scaled_as_twelve() -> None:
    """A TIFF that says 12 bits a channel is not a nearly black one of 16."""
    ramp = Image.fromarray(np.tile(np.linspace(0, 4095, 64, dtype=np.uint16), (48, 1)))
    image = decode(encoded(ramp, "TIFF"), Preprocessing(48, 64, 1, "stretch"))
    assert image.max() < 16, "as 16 bits"
    data = bytearray(encoded(ramp, "TIFF"))
    entry = struct.pack("<HHI", 258, 3, 1)
    at = data.index(entry) + len(entry)
    assert struct.unpack_from("<H", data, at) == (16,)
    opened = Image.open(io.BytesIO(data))
    opened.load()
    opened.tag_v2[258] = (12,)
    assert _depth(opened) == 12


@pytest.mark.parametrize(
    ("brands", "claimed"),
    [
        ((b"avif",), "AVIF"),
        ((b"avis", b"msf1"), "AVIF"),
        ((b"mif1", b"miaf", b"avif"), "AVIF"),
        ((b"heic", b"mif1"), HEIF),
        ((b"mif1", b"heix"), HEIF),
        ((b"mif1",), HEIF),
        ((b"isom", b"mp42"), None),
    ],
)
def test_a_container_is_known_by_its_brands(brands: tuple[bytes, ...], claimed: str | None) -> None:
    """AVIF and HEIC begin alike."""
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    assert claimed_format(struct.pack(">I", 4 + len(body)) + body + bytes(100)) == claimed


def test_heic_is_refused_by_name() -> None:
    """With what to do."""
    with pytest.raises(UnsupportedFormat, match=r"HEIC, .* Send JPEG, .* DIPTYCH_HEIC=1"):
        decode(b"\0\0\0\x18ftypheic" + bytes(64), GREY)


def test_an_empty_file_is_named() -> None:
    """No bytes, no image."""
    with pytest.raises(EmptyImage):
        decode(b"", GREY)


@pytest.mark.parametrize(
    "data",
    [b"hello, world", b"%PDF-1.7 ...", b"\0\0\0\x18ftypisom" + bytes(64), b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
)
def test_what_is_no_supported_image_is_named_with_what_is(data: bytes) -> None:
    """Text, PDF, MP4, SVG."""
    with pytest.raises(UnsupportedFormat, match="JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"):
        decode(data, GREY)


@pytest.mark.parametrize("kind", [kind for kind in SERVED_FORMATS if kind != "GIF"])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_a_truncated_image_is_damaged(kind: str, share: float) -> None:
    """An upload that broke off never passes for a picture."""
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(DamagedImage):
        decode(data[: int(len(data) * share)], GREY)


def test_too_many_bytes_are_refused_before_decoding() -> None:
    """The limit is in the message."""
    with pytest.raises(TooManyBytes, match="at most 1,024"):
        decode(bytes(1025), GREY, max_bytes=1024)


def test_too_many_pixels_are_refused_before_decoding() -> None:
    """A header that claims 40,000 x 40,000 pixels is believed, and refused."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(TooManyPixels):
        decode(bomb, GREY)
    with pytest.raises(TooManyPixels, match="at most 1,000"):
        decode(encoded(scene(), "PNG"), GREY, max_pixels=1000)


@pytest.mark.parametrize("colour", [0, 127, 255])
@pytest.mark.parametrize("size", [(50, 50), (200, 20)])
def test_a_blank_image_is_refused_on_request(colour: int, size: tuple[int, int]) -> None:
    """White bars around it do not make it less blank."""
    data = encoded(Image.new("L", size, colour), "PNG")
    with pytest.raises(BlankImage):
        decode(data, GREY, refuse_blank=True)
    assert decode(data, GREY).shape == (48, 48, 1)


def test_a_drawing_is_not_blank() -> None:
    """A few strokes on white are a picture."""
    decode(drawings("Angelic/character01")[0].read_bytes(), GREY, refuse_blank=True)


def test_float_pixels_are_refused_by_name() -> None:
    """Nobody knows their scale."""
    with pytest.raises(UnsupportedFormat, match="32-bit"):
        decode(encoded(Image.new("F", (30, 30), 0.5), "TIFF"), GREY)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from(
        [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"\0\0\0\x10ftypavif\0\0\0\0"]
    ),
)
def test_any_bytes_are_an_image_or_a_named_error(data: bytes, magic: bytes) -> None:
    """Nothing but the error tree comes out of the decoder."""
    with contextlib.suppress(ImageError):
        assert decode(magic + data, GREY).shape == (48, 48, 1)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    aspect=st.sampled_from(["pad", "stretch", "crop"]),
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
)
def test_any_shape_fits_the_encoder(width: int, height: int, aspect: str, kind: str) -> None:
    """Thin, tiny, huge: the output has the size that was asked for."""
    data = encoded(Image.new("RGB", (width, height), (9, 99, 199)), kind)
    pixels = decode(data, Preprocessing(24, 32, 3, aspect))  # type: ignore[arg-type]
    assert pixels.shape == (24, 32, 3)
