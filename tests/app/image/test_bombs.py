"""Images that are sent to break the service: each is refused in words and in time, and the next one is served.

A corpus of some two thousand malformed files goes through `benchmarks/hostile.py`; these are made here.
"""

import io
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.files import GOLDEN, drawings
from tests.service import Serve, Service, assert_problem

A = drawings("Angelic/character01")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With the usual limits, but for the time that a decoder may take."""
    running = Service(GOLDEN, tmp_path_factory.mktemp("bombs") / "data", decode_seconds="1")
    yield running
    running.stop()


def is_decoder(pid: int) -> bool:
    with suppress(OSError):
        return b"app.image.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def decoders(service: Service) -> list[int]:
    """Process ids."""
    listed = [path.read_text().split() for path in Path(f"/proc/{service.process.pid}/task").glob("*/children")]
    return [int(pid) for pids in listed for pid in pids if is_decoder(int(pid))]


def resident(service: Service) -> int:
    """MiB, its decoders included."""
    total = 0
    for pid in (service.process.pid, *decoders(service)):
        with suppress(OSError):
            total += int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])
    return total // 1024


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def large_png() -> bytes:
    """40,000 x 40,000 pixels of one bit: 200 MB that were 200 kB."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(5001) * 1000) for _ in range(40)) + rows.flush()
    head = struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def many_frames() -> bytes:
    """A million frames of one pixel."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + frame * 1_000_000 + b";"


def packed_text() -> bytes:
    """A picture beside a compressed comment of 64 MB."""
    buffer = io.BytesIO()
    Image.open(A[0]).save(buffer, "PNG")
    whole = buffer.getvalue()
    return whole[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**26), 9)) + whole[33:]


def packed_profile() -> bytes:
    """The same with a colour profile."""
    buffer = io.BytesIO()
    Image.open(A[0]).save(buffer, "PNG")
    whole = buffer.getvalue()
    return whole[:33] + chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**26), 9)) + whole[33:]


def tiff_that_points_at_itself() -> bytes:
    """A directory whose next one is the same."""
    entries = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (273, 4, 1, 8), (279, 4, 1, 64)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8)


def many_scans() -> bytes:
    """A JPEG of 40 KB that goes over 36 megapixels four thousand times."""
    table = b"\xff\xc4\0\x14%c\x01" + bytes(16)
    head = b"\xff\xd8\xff\xdb\0\x43\0" + bytes([1] * 64)
    head += b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, 6000, 6000, 3) + b"\x01\x11\0\x02\x11\0\x03\x11\0"
    head += table % 0 + table % 16 + b"\xff\xda\0\x08\x01\x01\0\0\0\0"
    return head + b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0" * 4000 + b"\xff\xd9"


def many_segments() -> bytes:
    """Five million empty ones before a small JPEG."""
    buffer = io.BytesIO()
    Image.open(A[0]).convert("L").save(buffer, "JPEG")
    return buffer.getvalue()[:2] + b"\xff\xef\0\x02" * 4_900_000 + buffer.getvalue()[2:]


def many_chunks() -> bytes:
    """A million and a half empty ones in a small PNG."""
    buffer = io.BytesIO()
    Image.open(A[0]).save(buffer, "PNG")
    return buffer.getvalue()[:33] + chunk(b"teSt", b"") * 1_600_000 + buffer.getvalue()[33:]


def many_runs() -> bytes:
    """A BMP of nine megapixels, each packed as a run of one."""
    packed = (b"\x01\x05" * 3000 + b"\0\0") * 3000
    head = struct.pack("<IiiHHIIiiII", 40, 3000, 3000, 1, 8, 1, len(packed), 1, 1, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(packed), 0, 0, 1078) + head + bytes(1024) + packed


def many_frames_of_avif() -> bytes:
    """A sequence whose table of samples speaks of two million of them."""
    buffer = io.BytesIO()
    frames = [Image.linear_gradient("L").rotate(10 * n) for n in range(3)]
    frames[0].save(buffer, "AVIF", save_all=True, append_images=frames[1:])
    whole = bytearray(buffer.getvalue())
    at = whole.index(b"stsz")
    struct.pack_into(">II", whole, at + 8, 1, 2_000_000)  # of one byte each
    return bytes(whole)


def wide_tiff() -> bytes:
    """36 megapixels of 16 bits, packed well: few bytes, much memory."""
    buffer = io.BytesIO()
    Image.new("I;16", (6000, 6000), 9).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    return buffer.getvalue()


BOMBS = [
    *(large_png, many_frames, packed_text, packed_profile, tiff_that_points_at_itself, many_scans, many_segments),
    *(many_chunks, many_runs, many_frames_of_avif, wide_tiff),
]


@pytest.mark.parametrize("made", BOMBS, ids=lambda made: made.__name__)
def test_a_small_file_that_unpacks_to_much_is_answered_soon(target: Service, made: Callable[[], bytes]) -> None:
    """Within two seconds and little memory, whatever the answer."""
    data = made()
    target.client.post("/embed", files={"image": A[0].read_bytes()})
    before, started = resident(target), time.monotonic()
    answer = target.client.post("/embed", files={"image": data})
    assert answer.status_code in (200, 413, 415, 422), answer.text
    assert time.monotonic() - started < 5  # two, and a machine that does other things
    assert resident(target) - before < 300
    assert target.client.post("/embed", files={"image": A[0].read_bytes()}).status_code == 200


def picture(kind: str, side: int = 400) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("limit", ["decode_seconds", "decode_mib"])
@pytest.mark.parametrize("kind", ["GIF", "AVIF"])
def test_a_decoder_that_goes_beyond_its_limits_harms_nobody(serve: Serve, limit: str, kind: str) -> None:
    """An image too large for a small limit is refused as damaged; those after it, and those beside it, are served."""
    service = serve(workers="2", **{limit: {"decode_seconds": "0.03", "decode_mib": "16"}[limit]})
    small, large = picture(kind), picture(kind, 6000)

    def ask(data: bytes) -> httpx.Response:
        return httpx.post(f"{service.client.base_url}/embed", files={"image": data}, timeout=30)

    for _ in range(2):
        with ThreadPoolExecutor(4) as threads:
            refused, *served = threads.map(ask, [large, A[0].read_bytes(), A[1].read_bytes(), A[2].read_bytes()])
        assert_problem(refused, 422, "damaged_image")
        assert [answer.status_code for answer in served] == [200, 200, 200]
        assert ask(small).status_code == 200


def test_a_service_leaves_no_decoders_behind(serve: Serve) -> None:
    """Neither when it stops nor when it is killed."""
    for end in (Service.stop, Service.kill):
        service = serve()
        assert service.client.post("/embed", files={"image": picture("GIF")}).status_code == 200
        left = decoders(service)
        assert left
        end(service)
        deadline = time.monotonic() + 5
        while any(Path(f"/proc/{pid}/fd").exists() and is_decoder(pid) for pid in left):
            assert time.monotonic() < deadline
            time.sleep(0.05)
