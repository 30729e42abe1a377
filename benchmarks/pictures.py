"""Pictures and request bodies to measure with, made of a folder of camera photos."""

import io
from pathlib import Path

from PIL import Image, ImageOps

from app.errors import ImageError
from app.image.policy import Preprocessing, decode
from benchmarks.load import body

QUALITY = 90
SIZES = {"VGA": (640, 480), "12 megapixel": (4000, 3000)}


def photos(cameras: Path, size: tuple[int, int], how_many: int) -> list[bytes]:
    """So many of the photos, each filling `size` (width, height), saved again as JPEG."""
    made = []
    for path in sorted(cameras.glob("*.jpg")):
        with Image.open(path) as photo:
            picture = ImageOps.fit(ImageOps.exif_transpose(photo).convert("RGB"), size)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY)
        if is_usable(buffer.getvalue()):
            made.append(buffer.getvalue())
        if len(made) == how_many:
            return made
    raise ValueError(f"{cameras} holds only {len(made)} photos, and {how_many} are needed")


def is_usable(data: bytes) -> bool:
    """Whether the service takes it: one of the camera pictures is black all over."""
    try:
        decode(data, Preprocessing(224, 224, 3, "pad"), refuse_blank=True)
    except ImageError:
        return False
    return True


def pairs(images: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Each image with the next."""
    return [(one, images[(k + 1) % len(images)]) for k, one in enumerate(images)]


def bodies(images: list[bytes], folder: Path) -> list[Path]:
    """Files with the bodies of requests to verify, a pair each."""
    written = []
    for number, (a, b) in enumerate(pairs(images)):
        path = folder / f"body{number}"
        path.write_bytes(body(image_a=a, image_b=b))
        written.append(path)
    return written
