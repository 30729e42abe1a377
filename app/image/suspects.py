"""Which images are decoded in a process of their own: those that could take their decoder much time or memory.

Measured in `docs/results/`: all TIFF, GIF, AVIF and HEIC files, because of their decoders; of the other formats the
files that no camera and no drawing program writes. A JPEG of 40 KB can hold so many scans that it takes nine seconds,
a PNG of 19 MB so many chunks that it takes four; a run-length encoded BMP is unpacked by Python. The check takes
microseconds.
"""

from app.image.policy import HEIF, claimed_format

ORDINARY_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
ISOLATED_FORMATS = ("TIFF", "GIF", "AVIF", HEIF)

# A progressive JPEG has about ten scans, a large PNG 2,500 chunks of 8 KiB.
MOST_SCANS, MOST_SEGMENTS, MOST_CHUNKS = 100, 1_000, 10_000

# Markers with a length, up to the first scan; SOF0 and SOF1 are not progressive (ISO/IEC 10918-1, table B.1).
_SEGMENTS = frozenset((*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE))
_FRAMES = _SEGMENTS & set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _SCAN = (0xC0, 0xC1), 0xDA
_BMP_RUNS = (1, 2)


def is_suspect(data: bytes, formats: tuple[str, ...]) -> bool:
    """Whether decoding the image could take too much. Whether it is an image in one of `formats` its decoder tells."""
    claimed = claimed_format(data)
    if claimed == "JPEG":
        return _jpeg_is_suspect(data)
    if claimed == "PNG":
        return _png_is_suspect(data)
    if claimed == "BMP":
        return int.from_bytes(data[14:18], "little") >= 40 and int.from_bytes(data[30:34], "little") in _BMP_RUNS
    return claimed in ISOLATED_FORMATS and claimed in formats


def _jpeg_is_suspect(data: bytes) -> bool:
    """Whether there are more segments than a camera writes, other bytes between them, or too many scans."""
    at, sequential, components = 2, False, b""
    for _ in range(MOST_SEGMENTS):
        marker, length = data[at : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
        if len(marker) < 2:
            return False  # cut off, so there is nothing to decode
        if marker[0] != 0xFF or marker[1] not in _SEGMENTS:
            return True
        if marker[1] == _SCAN:
            in_one = sequential and data[at + 4 : at + 5] == components
            return not in_one and data.count(b"\xff\xda", at) > MOST_SCANS
        if marker[1] in _FRAMES:
            sequential, components = marker[1] in _SEQUENTIAL, data[at + 9 : at + 10]
        at += 2 + length
    return True


def _png_is_suspect(data: bytes) -> bool:
    at = 8
    for _ in range(MOST_CHUNKS):
        if at + 8 > len(data):
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return True
