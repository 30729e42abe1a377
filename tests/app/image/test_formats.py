"""What cameras, phones and programs write, through the running service: turned, grey, deep, transparent, moving."""

import functools
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from tests.files import GOLDEN, drawings
from tests.service import Service, assert_problem, diptych

pillow_heif.register_heif_opener()
ROOT = Path(__file__).parents[3]
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
# How far a picture may be from itself, stored another way: where nothing is lost, and where something is.
SAME, NEARLY = 0.001, 0.01
LOSSLESS: dict[str, dict[str, object]] = {
    "PNG": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True},
    "HEIF": {"quality": -1, "chroma": 444, "matrix_coefficients": 0},
}
LOSSY: dict[str, dict[str, object]] = {"JPEG": {"quality": 92}, "AVIF": {"quality": 90, "subsampling": "4:4:4"}}


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that opens HEIC too."""
    running = Service(GOLDEN, tmp_path_factory.mktemp("formats") / "data", heic="1")
    yield running
    running.stop()


@functools.cache
def photo() -> Image.Image:
    """A sheet with a drawing on it, lit from one side, on a grained table: upright in one way only."""
    drawing = Image.open(drawings("Angelic/character01")[0]).convert("L").resize((420, 420), Image.Resampling.BICUBIC)
    y, x = np.mgrid[0:600, 0:800]
    table = 120 + 60 * x / 800 + 12 * np.sin(y / 5 + 3 * np.sin(x / 60))
    scene = np.stack([table, 0.8 * table, 0.6 * table], axis=2)
    scene[90:510, 150:570] = np.asarray(drawing)[:, :, None] * (0.75 + 0.25 * x[90:510, 150:570, None] / 800)
    return Image.fromarray(scene.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def turned(kind: str, orientation: int, **options: object) -> bytes:
    """The photo as a camera stores it that was held so."""
    turn = TURNS[orientation]
    stored = photo() if turn is None else photo().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    said = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": exif.tobytes()}
    return encoded(stored, kind, **said, **options)


def apart(service: Service, a: bytes, b: bytes) -> float:
    answer = service.client.post("/verify", files={"image_a": a, "image_b": b})
    assert answer.status_code == 200, answer.text
    return float(answer.json()["distance"])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
def test_a_picture_embeds_alike_however_the_camera_was_held(phone: Service, kind: str, orientation: int) -> None:
    """Turned once, whoever turns it: Pillow turns TIFF by itself, libheif HEIC; the others say how they are."""
    upright = encoded(photo(), "PNG")
    distance = apart(phone, turned(kind, orientation, **{**LOSSLESS, **LOSSY}[kind]), upright)
    assert distance <= (SAME if kind in LOSSLESS else NEARLY)


@pytest.mark.parametrize("turn", [turn for turn in TURNS.values() if turn is not None])
def test_a_picture_that_is_not_turned_back_is_farther_away(phone: Service, turn: Image.Transpose) -> None:
    """So the distances above say something."""
    assert apart(phone, encoded(photo().transpose(turn), "PNG"), encoded(photo(), "PNG")) > 4 * NEARLY


def ten_bit() -> bytes:
    """The photo as HEIC with 10 bits a channel, as newer phones write it."""
    wide = (np.asarray(photo()).astype(np.uint16) << 8).tobytes()
    heic = pillow_heif.from_bytes("RGB;16", photo().size, wide)
    buffer = io.BytesIO()
    heic.save(buffer, quality=-1, chroma=444)
    return buffer.getvalue()


def moving(kind: str) -> bytes:
    return encoded(photo(), kind, save_all=True, append_images=[photo().rotate(180), photo().rotate(90)])


def of_a_depth(kind: str) -> bytes:
    return encoded(Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257), kind)


def behind_glass(kind: str, **options: object) -> bytes:
    """Alpha that hides nothing."""
    image = photo().convert("RGBA")
    image.putalpha(255)
    return encoded(image, kind, **options)


KINDS = {
    "grey PNG": encoded(photo().convert("L"), "PNG"),
    "grey JPEG": encoded(photo().convert("L"), "JPEG", quality=92),
    "grey AVIF": encoded(photo().convert("L"), "AVIF", quality=90),
    "grey HEIC": encoded(photo().convert("L"), "HEIF", quality=-1),
    "grey TIFF": encoded(photo().convert("L"), "TIFF"),
    "print colours (CMYK) JPEG": encoded(photo().convert("CMYK"), "JPEG", quality=92),
    "print colours (CMYK) TIFF": encoded(photo().convert("CMYK"), "TIFF"),
    "palette PNG": encoded(photo().quantize(256), "PNG"),
    "palette GIF": encoded(photo().quantize(256), "GIF"),
    "16-bit PNG": of_a_depth("PNG"),
    "16-bit TIFF": of_a_depth("TIFF"),
    "10-bit HEIC": ten_bit(),
    "alpha PNG": behind_glass("PNG"),
    "alpha WebP": behind_glass("WEBP", lossless=True),
    "alpha TIFF": behind_glass("TIFF"),
    "alpha AVIF": behind_glass("AVIF", quality=90),
    "alpha HEIC": behind_glass("HEIF", quality=-1),
    "animated GIF": moving("GIF"),
    "animated WebP": moving("WEBP"),
    "animated PNG": moving("PNG"),
    "animated AVIF": moving("AVIF"),
    "many pages of TIFF": moving("TIFF"),
    "several pictures of HEIC": moving("HEIF"),
    "progressive JPEG": encoded(photo(), "JPEG", quality=92, progressive=True),
    "BMP": encoded(photo(), "BMP"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_embeds_alike_however_it_is_stored(phone: Service, kind: str) -> None:
    """Of many the first; deep ones scaled; grey where the encoder is."""
    assert apart(phone, KINDS[kind], encoded(photo(), "PNG")) <= NEARLY


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_what_is_transparent_is_white(phone: Service, kind: str) -> None:
    """A hole in the picture, whatever colour lies beneath."""
    glass = photo().convert("RGBA")
    glass.paste((0, 0, 0, 0), (570, 0, 800, 600))
    white = photo()
    white.paste("white", (570, 0, 800, 600))
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 95}, "HEIF": {"quality": -1}}.get(kind, {})
    assert apart(phone, encoded(glass, kind, **options), encoded(white, "PNG")) <= NEARLY


def test_ten_bits_of_avif_are_scaled(phone: Service) -> None:
    """A wedge of grey with 10 bits a channel, from another encoder, is that wedge with 8."""
    wedge = Image.fromarray(np.tile(np.linspace(0, 255, 96).astype(np.uint8)[:, None], (1, 128)))
    ten = (ROOT / "tests" / "data" / "wedge_10_bit.avif").read_bytes()
    assert apart(phone, ten, encoded(wedge, "PNG")) <= NEARLY


def test_an_embedded_thumbnail_does_not_stand_for_the_picture(phone: Service) -> None:
    """It may show something else."""
    buffer = io.BytesIO()
    photo().save(buffer, "HEIF", quality=-1, chroma=444, thumbnails=[320])
    assert apart(phone, buffer.getvalue(), encoded(photo(), "PNG")) <= SAME


def test_bytes_decide_not_the_name(phone: Service) -> None:
    """A HEIC that says it is a PNG, a GIF that says it is HEIC."""
    files = {
        "image_a": ("a.png", encoded(photo(), "HEIF", quality=-1), "image/png"),
        "image_b": ("b.heic", encoded(photo().quantize(256), "GIF"), "image/heic"),
    }
    answer = phone.client.post("/verify", files=files)
    assert answer.status_code == 200 and answer.json()["distance"] <= NEARLY


def test_heic_is_refused_by_name_where_it_is_not_asked_for(service: Service) -> None:
    """With what to do."""
    answer = service.client.post("/embed", files={"image": encoded(photo(), "HEIF")})
    problem = assert_problem(answer, 415, "unsupported_format")
    assert "HEIC" in problem["detail"] and "DIPTYCH_HEIC=1" in problem["detail"] and "JPEG" in problem["detail"]


def test_heic_that_is_not_installed_is_a_mistake_in_the_settings(tmp_path: Path) -> None:
    """Said at the start, in one line, with the command that mends it."""
    hidden = "import sys; sys.modules['pillow_heif'] = None; from app.cli import main; sys.argv[0] = 'diptych'; main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden, "serve", "--port", "0", "--data-dir", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        env={**os.environ, "DIPTYCH_HEIC": "1"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "DIPTYCH_HEIC" in done.stderr and "EXTRAS=heic" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_of_phone_pictures_is_imported_where_heic_is_asked_for(tmp_path: Path) -> None:
    """And counted as refused where it is not."""
    (tmp_path / "photos" / "sheet").mkdir(parents=True)
    (tmp_path / "photos" / "sheet" / "1.heic").write_bytes(encoded(photo(), "HEIF"))
    (tmp_path / "photos" / "sheet" / "2.avif").write_bytes(encoded(photo(), "AVIF"))
    given = ("import", tmp_path / "photos", "--checkpoint", GOLDEN, "--data-dir", tmp_path / "data")
    without = diptych(*given)
    assert "1 images enrolled" in without.stdout and "HEIC" in without.stdout
    assert "1 images enrolled" in diptych(*given, DIPTYCH_HEIC="1").stdout
