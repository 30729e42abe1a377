"""Servers in processes of their own, for as long as they are measured: ours, and the peers."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

READY_SECONDS = 60.0


def serve(name: str, directory: str, **settings: str) -> tuple[subprocess.Popen[bytes], int, float]:
    """Diptych with a checkpoint, its port, and the seconds from its start until it was ready."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "diptych"), "serve", "--port", str(port), "--checkpoint", name]
    environment = {f"DIPTYCH_{key.upper()}": value for key, value in settings.items()}
    process, ready = start(command, port, {"DIPTYCH_DATA_DIR": directory, **environment})
    return process, port, ready


def start(
    command: Sequence[str], port: int, environment: dict[str, str], path: str = "/readyz"
) -> tuple[subprocess.Popen[bytes], float]:
    """The process, and the seconds until it answered at `path`, with whatever status below 500."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while True:
        try:
            connection = HTTPConnection("127.0.0.1", port)
            connection.request("GET", path)
            if connection.getresponse().status < 500:
                return process, time.perf_counter() - started
        except OSError:
            pass
        if process.poll() is not None or time.perf_counter() - started > READY_SECONDS:
            raise RuntimeError(f"{' '.join(command)} was not ready")
        time.sleep(0.01)


@contextmanager
def peer(module: str, *arguments: str) -> Iterator[tuple[int, int]]:
    """Process id and port of `python -m benchmarks.peers.MODULE`. Its arguments hold `PORT` where that belongs."""
    port = free_port()
    command = [sys.executable, "-m", f"benchmarks.peers.{module}"]
    command += [str(port) if one == "PORT" else one for one in arguments]
    process, _ = start(command, port, {}, "/health")
    try:
        yield process.pid, port
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # not all of them take their children along
        process.wait(30)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def status_mib(pid: int, field: str) -> float:
    """A figure of the kernel's about a process (`VmRSS` now, `VmHWM` its peak), in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return float("nan")
