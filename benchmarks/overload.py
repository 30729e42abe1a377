"""How the service keeps its temper: arrivals at random below its peak, and many times more than it can answer.

    python -m benchmarks.overload CHECKPOINT CAMERAS [--seconds 20]

Arrivals are an open-loop Poisson process: they do not wait for answers. First 70 % of the peak that `wrk` finds in a
closed loop, then 4 and 10 times the peak. Goodput is answers with a verdict; what else comes back must be 503 with
Retry-After, and soon. The client is in Python on the same cores; its share of them is printed, and goodput also as a
share of the peak that the rest of the machine would have.
"""

import argparse
import asyncio
import os
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvloop

from benchmarks import pictures
from benchmarks.load import CONTENT_TYPE, wrk
from benchmarks.service import serve

CONNECTIONS = 8
MOST_CONNECTIONS = 2000


@dataclass
class Seen:
    """Answers by kind: seconds from a request's arrival to its answer."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    others: list[str] = field(default_factory=list)
    in_time: int = 0
    client_cores: float = 0.0

    def note(self, head: bytes, seconds: float) -> None:
        if head.startswith(b"HTTP/1.1 200"):
            self.answered.append(seconds)
        elif head.startswith(b"HTTP/1.1 503"):
            self.refused.append(seconds)
            self.without_retry_after += b"retry-after" not in head.lower()
        else:
            self.others.append(head[:12].decode("latin-1"))


class Client:
    """Sends requests at random times, on as many connections as it takes."""

    def __init__(self, port: int, bodies: list[bytes]) -> None:
        head = f"POST /verify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: %d\r\n\r\n"
        self._requests = [(head % len(one)).encode() + one for one in bodies]
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._open = 0

    async def run(self, rate: float, seconds: float, seed: int = 0) -> Seen:
        rng, seen, tasks = random.Random(seed), Seen(), set()
        arrival = started = time.perf_counter()
        cpu = time.process_time()
        while arrival < started + seconds:
            arrival += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
            task = asyncio.ensure_future(self._one(rng.choice(self._requests), arrival, seen))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        seen.in_time = len(seen.answered)
        seen.client_cores = (time.process_time() - cpu) / (time.perf_counter() - started)
        if tasks:
            await asyncio.wait(tasks, timeout=30)
        return seen

    async def _one(self, request: bytes, arrival: float, seen: Seen) -> None:
        try:
            # The service closes what is idle for five seconds.
            self._idle = [pair for pair in self._idle if not pair[0].at_eof()]
            if self._idle:
                reader, writer = self._idle.pop()
            elif self._open < MOST_CONNECTIONS:
                self._open += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            else:
                seen.others.append("no connection left")
                return
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as problem:
            self._open -= 1
            seen.others.append(type(problem).__name__)
            return
        seen.note(head, time.perf_counter() - arrival)
        if b"connection: close" in head.lower():
            writer.close()
            self._open -= 1
        else:
            self._idle.append((reader, writer))


def measure(name: str, cameras: Path, seconds: float) -> None:
    """Run it and print the tables."""
    with tempfile.TemporaryDirectory(prefix="diptych-bench-") as directory:
        images = pictures.photos(cameras, pictures.SIZES["VGA"], 8)
        files = pictures.bodies(images, Path(directory))
        bodies = [one.read_bytes() for one in files]
        process, port, _ = serve(name, directory)
        url = f"http://127.0.0.1:{port}/verify"
        try:
            wrk(url, files, 2, CONNECTIONS, process.pid)
            peak = wrk(url, files, seconds / 2, CONNECTIONS, process.pid)
            below = uvloop.run(Client(port, bodies).run(0.7 * peak.rate, seconds))
            print(f"\nPeak {peak.rate:.1f} pairs/s in a closed loop of {CONNECTIONS} connections.\n")
            p50, p99 = np.percentile(below.answered, [50, 99])
            print("| at 70 % of it, Poisson arrivals | |\n| --- | --- |")
            print(
                f"| requests | {len(below.answered)} answered, {len(below.refused)} refused, {len(below.others)} else |"
            )
            print(f"| p50, p99 | {1000 * p50:.0f}, {1000 * p99:.0f} ms |\n| p99 over p50 | {p99 / p50:.1f} |\n")
            print(
                "| offered, times the peak | goodput over peak | client's cores | goodput over what the client left "
                "| refused: p50, p99, ms | within 50 ms | without Retry-After | neither |\n" + "| --- " * 8 + "|"
            )
            for times in (4, 10):
                seen = uvloop.run(Client(port, bodies).run(times * peak.rate, seconds))
                goodput, cores = seen.in_time / seconds / peak.rate, os.cpu_count() or 1
                client = seen.client_cores
                q50, q99 = 1000 * np.percentile(seen.refused, [50, 99])
                soon = np.mean(np.array(seen.refused) < 0.05)
                print(
                    f"| {times} | {goodput:.2f} | {client:.2f} | {goodput * cores / (cores - client):.2f} "
                    f"| {q50:.0f}, {q99:.0f} | {soon:.1%} | {seen.without_retry_after} | {len(seen.others)} |",
                    flush=True,
                )
            again = wrk(url, files, seconds / 2, CONNECTIONS, process.pid)
            print(f"\nAfterwards {again.rate / peak.rate:.2f} of the peak.")
        finally:
            process.terminate()
            process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("cameras", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    measure(given.checkpoint, given.cameras, given.seconds)


if __name__ == "__main__":
    main()
