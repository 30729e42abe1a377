"""The running service against an in-process loop of the same pipeline: same images, same encoder, same cores.

Closed loop, four connections, client on the same cores and counted in; medians over repeats, the two sides
taken in turn so that a noisy neighbour meets both.
"""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

from app import checkpoint
from app.encoder import Encoder
from app.errors import ImageError
from app.image import decode
from app.matching import distance

REPEATS = 5
SECONDS = 4.0
CONNECTIONS = 4


@dataclass(frozen=True)
class Speed:
    in_process: float
    service: float
    p50_ms: float
    p99_ms: float
    ready_seconds: float
    resident_mib: float


def measure(name: str, images: list[Path]) -> Speed:
    """Pairs a second on both sides, latency of the service, its start and its memory."""
    encoder = Encoder(checkpoint.load(name))
    data = [one for path in images if _usable(one := path.read_bytes(), encoder)]
    pairs = [(data[i], data[(i + 1) % len(data)]) for i in range(len(data))]
    with tempfile.TemporaryDirectory() as directory:
        process, port, ready = serve(name, directory)
        try:
            loops, services, latencies = [], [], []
            for _ in range(REPEATS):
                loops.append(_in_process(encoder, pairs))
                rate, taken = _requests(port, pairs)
                services.append(rate)
                latencies += taken
            resident = status_mib(process.pid, "VmRSS")
        finally:
            process.terminate()
            process.wait(10)
    return Speed(
        in_process=statistics.median(loops),
        service=statistics.median(services),
        p50_ms=1000 * float(np.percentile(latencies, 50)),
        p99_ms=1000 * float(np.percentile(latencies, 99)),
        ready_seconds=ready,
        resident_mib=resident,
    )


def _usable(data: bytes, encoder: Encoder) -> bool:
    """Whether the service takes it: one of the camera pictures is black all over."""
    try:
        decode(data, encoder.preprocessing, refuse_blank=True)
    except ImageError:
        return False
    return True


def _in_process(encoder: Encoder, pairs: list[tuple[bytes, bytes]]) -> float:
    """Decode both, embed both, take the distance: on all cores, a thread each."""

    def work(deadline: float) -> int:
        done = 0
        while time.perf_counter() < deadline:
            both = np.stack([decode(one, encoder.preprocessing) for one in pairs[done % len(pairs)]])
            first, second = encoder.embed(both)
            distance(first, second)
            done += 1
        return done

    started = time.perf_counter()
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, [started + SECONDS] * threads))
    return done / (time.perf_counter() - started)


def _requests(port: int, pairs: list[tuple[bytes, bytes]]) -> tuple[float, list[float]]:
    bodies = [_body(a, b) for a, b in pairs]

    def work(number: int) -> list[float]:
        connection = HTTPConnection("127.0.0.1", port)
        taken = []
        while time.perf_counter() < deadline:
            body = bodies[(number + len(taken)) % len(bodies)]
            sent = time.perf_counter()
            connection.request("POST", "/verify", body, {"Content-Type": "multipart/form-data; boundary=x"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}")
            taken.append(time.perf_counter() - sent)
        return taken

    started = time.perf_counter()
    deadline = started + SECONDS
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        latencies = [one for taken in pool.map(work, range(CONNECTIONS)) for one in taken]
    return len(latencies) / (time.perf_counter() - started), latencies


def _body(a: bytes, b: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="i"\r\n\r\n'
    return head % b"image_a" + a + b"\r\n" + head % b"image_b" + b + b"\r\n--x--\r\n"


def serve(name: str, directory: str) -> tuple[subprocess.Popen[bytes], int, float]:
    """A running service, its port, and the seconds from its start until it was ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.perf_counter()
    process = subprocess.Popen(
        [Path(sys.executable).parent / "diptych", "serve", "--port", str(port), "--checkpoint", name],
        env={**os.environ, "DIPTYCH_DATA_DIR": directory},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while True:
        try:
            connection = HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return process, port, time.perf_counter() - started
        except OSError:
            if process.poll() is not None:
                raise RuntimeError("the service ended before it was ready") from None
            time.sleep(0.01)


def status_mib(pid: int, field: str) -> float:
    """A figure of the kernel's about a process (`VmRSS` now, `VmHWM` its peak), in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return float("nan")
