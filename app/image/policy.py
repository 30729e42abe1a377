"""Bytes to pixels: the decoding policy, the same for training and for serving.

Policy, version 1. A change of what `decode` returns needs a new `DECODING_POLICY`, which is part of the model_id:
the same encoder gives other embeddings for other pixels.

1.  The first bytes decide the format; only the formats below are opened. Size is read before pixels; frames are not
    counted.
2.  JPEG is decoded at the smallest DCT scale that leaves at least twice the encoder's input size.
3.  The first frame of many. 16 bit is scaled to 8, not clipped.
4.  One antialiased (bilinear) resize, premultiplied where there is alpha; then alpha over white.
5.  EXIF orientation is applied once, even if the decoder has applied it already. AVIF and HEIC store their orientation
    in the container; their other metadata does not turn them again.
"""

import functools
import importlib
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from app.arrays import ImageU8
from app.errors import BlankImage, DamagedImage, EmptyImage, ImageError, TooManyBytes, TooManyPixels, UnsupportedFormat

DECODING_POLICY = 1

SERVED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SERVED = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"  # the same, as people write them
HEIF = "HEIF"  # only on request: its decoder is an optional package
# For training data on the user's own disk: older data sets come as PGM and PPM.
FOLDER_FORMATS = (*SERVED_FORMATS, "PPM")

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000
# The limit of JPEG. An image of one row takes decoders far more time per pixel than a square one.
MAX_SIDE = 65_535
# Of 255 levels. A blank image has no identity, and any two blank images would be called similar.
BLANK_RANGE = 8

_ORIENTATION_TAG = 0x0112
_BITS_TAG = 0x0102
_SIGNATURES = {
    "JPEG": (b"\xff\xd8",),
    "PNG": (b"\x89PNG",),
    "GIF": (b"GIF8",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0"),
    "PPM": tuple(b"P" + bytes([kind]) for kind in b"0123456fy"),
}
# Brands of ISO/IEC 23000-22 and 23008-12; `mif1` and `msf1` alone do not tell AVIF from HEIC.
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", **dict.fromkeys(_HEIC_BRANDS, HEIF)}

# EXIF orientation to the turn that puts the image upright (EXIF 2.32, tag 274).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Aspect = Literal["pad", "stretch", "crop"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """The encoder's input: pixels of `height` x `width` x `channels` (1 grey, 3 RGB).

    `aspect` says how an image of another shape is fitted: `pad` (whole image, white bars), `stretch`
    (whole image, distorted) or `crop` (undistorted, the middle of it).
    """

    height: int
    width: int
    channels: Literal[1, 3]
    aspect: Aspect
    decoding_policy: int = DECODING_POLICY


def decode(
    data: bytes,
    to: Preprocessing,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = SERVED_FORMATS,
    refuse_blank: bool = False,
) -> ImageU8:
    """Decode one image to uint8 pixels `[height, width, channels]`, as `to` asks.

    Raises `EmptyImage`, `TooManyBytes`, `UnsupportedFormat`, `TooManyPixels`, `DamagedImage` and, with
    `refuse_blank`, `BlankImage` where no channel spans `BLANK_RANGE` levels.
    """
    if not data:
        raise EmptyImage("The file is empty. Send an image.")
    if len(data) > max_bytes:
        raise TooManyBytes(f"The image has {len(data):,} bytes; at most {max_bytes:,} are allowed.")
    claimed = claimed_format(data)
    if claimed is None or claimed not in formats:
        raise _unsupported(claimed)
    load_plugin(claimed)
    try:
        with Image.open(io.BytesIO(data), formats=(claimed,)) as image:
            return _pixels(image, to, max_pixels, refuse_blank)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise DamagedImage("The image's header is damaged or cut off. Send the whole file.") from None
    except Image.DecompressionBombError:
        raise TooManyPixels(f"The image has too many pixels; at most {max_pixels:,} are allowed.") from None
    except MemoryError:
        raise DamagedImage(
            "Decoding the image takes more memory than is allowed. Send a smaller image, or a JPEG."
        ) from None
    # Decoders raise almost anything (TypeError, KeyError, struct.error, ...) on hostile files. It is always the file
    # that is wrong.
    except Exception as problem:
        raise DamagedImage("The image is damaged or cut off. Send the whole file.") from problem


def claimed_format(data: bytes) -> str | None:
    """The format whose signature the bytes begin with, or None. Only decoding tells whether they are an image."""
    for name, signatures in _SIGNATURES.items():
        if data.startswith(signatures):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] != b"ftyp":
        return None
    for at in (8, *range(16, min(int.from_bytes(data[:4], "big"), 256), 4)):
        if data[at : at + 4] in _BRANDS:
            return _BRANDS[data[at : at + 4]]
    return HEIF if data[8:12] in (b"mif1", b"msf1") else None


def _unsupported(claimed: str | None) -> UnsupportedFormat:
    if claimed != HEIF:
        return UnsupportedFormat(f"The file is not an image in a supported format. Send {SERVED}.")
    return UnsupportedFormat(
        f"The image is HEIC, which many phones write and this service does not open. Send {SERVED}. To have HEIC "
        "opened, install its decoder (make env EXTRAS=heic) and set DIPTYCH_HEIC=1."
    )


@functools.cache
def load_plugin(name: str) -> None:
    """Import the decoder of one format. Left alone, Pillow would import all of them."""
    if name == HEIF:
        import pillow_heif  # no embedded thumbnails: they may show something else

        pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    else:
        importlib.import_module(f"PIL.{'WebP' if name == 'WEBP' else name.capitalize()}ImagePlugin")


def _pixels(image: Image.Image, to: Preprocessing, max_pixels: int, refuse_blank: bool) -> ImageU8:
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise TooManyPixels(f"The image is {width} x {height}; at most {MAX_SIDE:,} pixels a side are allowed.")
    if width * height > max_pixels:
        raise TooManyPixels(
            f"The image is {width} x {height}, {width * height:,} pixels; at most {max_pixels:,} are allowed."
        )
    drafted = image.format != HEIF and image.draft("L" if to.channels == 1 else "RGB", (2 * to.width, 2 * to.height))
    image.load()
    # The size of a reduced JPEG is rounded up to whole pixels; the box is the part of them that is picture.
    box = drafted[1] if drafted else (0, 0, *image.size)
    # After loading: a decoder that turns the image itself removes the tag.
    orientation = _orientation(image)
    image = _eight_bits(image)

    turned = orientation >= 5
    size = (to.height, to.width) if turned else (to.width, to.height)
    image = _resize(image, box, size, to.aspect)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("L" if to.channels == 1 else "RGB")
    if refuse_blank and _is_blank(image):
        raise BlankImage(
            f"The image is blank: scaled to the encoder's input, no channel spans {BLANK_RANGE} of 255 levels. "
            "There is nothing to compare."
        )
    if orientation > 1:
        image = image.transpose(_TURNS[orientation])
    if image.size != (to.width, to.height):
        canvas = Image.new(image.mode, (to.width, to.height), "white")
        canvas.paste(image, ((to.width - image.width) // 2, (to.height - image.height) // 2))
        image = canvas
    return np.array(image, dtype=np.uint8).reshape(to.height, to.width, to.channels)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where it is missing, invalid or unreadable."""
    if image.format == HEIF:
        return 1
    if image.format == "AVIF":
        image.info.pop("xmp", None)  # Pillow has put the container's orientation into EXIF
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001  broken EXIF data must not spoil a good picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in a mode that resizes without loss: L, LA, RGB or RGBA."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        wide = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        return Image.fromarray((wide >> (_depth(image) - 8)).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnsupportedFormat("The image has 32-bit pixels, whose scale is unknown. Send 8 or 16 bits a channel.")
    wanted = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L") else "RGB"
    # Converting an image to its own mode would copy up to hundreds of megabytes.
    return image if image.mode == wanted else image.convert(wanted)


def _depth(image: Image.Image) -> int:
    """Bits of a channel that has more than 8: as TIFF says (12, for example), else 16."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_TAG, (16,))[0]
    return bits if 8 < bits <= 16 else 16


def _resize(image: Image.Image, box: Box, size: tuple[int, int], aspect: Aspect) -> Image.Image:
    """One antialiased resize of `box` into `size` (width, height); smaller on one side for `pad`."""
    left, top, right, bottom = box
    across, down = right - left, bottom - top
    if aspect == "pad":
        scale = min(size[0] / across, size[1] / down)
        size = (max(1, round(across * scale)), max(1, round(down * scale)))
    elif aspect == "crop":
        scale = max(size[0] / across, size[1] / down)
        # At least zero: rounding may make the side that is kept whole come out larger than it is.
        side, end = max(0.0, (across - size[0] / scale) / 2), max(0.0, (down - size[1] / scale) / 2)
        box = (left + side, top + end, right - side, bottom - end)
    return image.resize(size, Image.Resampling.BILINEAR, box=box)


def _is_blank(image: Image.Image) -> bool:
    # Pillow makes one pass over the bytes; numpy's ptp over two axes took a seventh of a whole request.
    extrema = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(high - low < BLANK_RANGE for low, high in bands)
