"""Every file of a corpus of malformed and odd images through the running service, one at a time.

    python -m benchmarks.hostile FOLDER|ARCHIVE.zip [--checkpoint omniglot]

An answer or a refusal (4xx) is right; a 5xx, more than two seconds or 300 MB for one file is not, nor a service that is
gone afterwards. Memory is the peak of the service and its decoder processes together during that one request, over what
they held before. Prints a table and exits with 1 if anything was not right.
"""

import argparse
import json
import math
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Thread

from tqdm import tqdm

from benchmarks.service import serve, status_mib

MOST_SECONDS, MOST_MIB = 2.0, 300e6 / 2**20
SHOWN = 5


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    name: str
    status: int
    code: str
    seconds: float
    mib: float

    @property
    def is_right(self) -> bool:
        return 200 <= self.status < 500 and self.seconds <= MOST_SECONDS and self.mib <= MOST_MIB


def files(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_file():
                yield str(path.relative_to(source)), path.read_bytes()
        return
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, archive.read(info)


def processes(pid: int) -> list[int]:
    """The service and its decoders."""
    listed = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [pid, *(int(child) for children in listed for child in children)]


def held(pids: list[int], field: str) -> float:
    """MiB of them all; what has ended holds nothing."""
    total = 0.0
    for pid in pids:
        with suppress(OSError):
            mib = status_mib(pid, field)
            total += 0 if math.isnan(mib) else mib
    return total


@contextmanager
def watched(pid: int) -> Iterator[list[float]]:
    """The peak so far, in MiB, as the one number of a list. Sampled too, since a decoder may not live to the end."""
    seen, over = [held(processes(pid), "VmRSS")], Event()

    def sample() -> None:
        while not over.wait(0.005):
            seen[0] = max(seen[0], held(processes(pid), "VmRSS"))

    for one in processes(pid):
        Path(f"/proc/{one}/clear_refs").write_text("5")  # the peak is that from here on
    sampler = Thread(target=sample)
    sampler.start()
    try:
        yield seen
    finally:
        over.set()
        sampler.join()
        seen[0] = max(seen[0], held(processes(pid), "VmHWM"))


def send(port: int, pid: int, name: str, data: bytes) -> Outcome:
    before = held(processes(pid), "VmRSS")
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n' + data + b"\r\n--x--\r\n"
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    with watched(pid) as peak:
        started = time.perf_counter()
        connection.request("POST", "/embed", body, {"Content-Type": "multipart/form-data; boundary=x"})
        answer = connection.getresponse()
        said = json.loads(answer.read())
        seconds = time.perf_counter() - started
    connection.close()
    return Outcome(name, answer.status, said.get("code", "embedded"), seconds, peak[0] - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--checkpoint", default="omniglot")
    given = parser.parse_args()
    every = list(files(given.corpus))
    with tempfile.TemporaryDirectory(prefix="diptych-bench-") as directory:
        process, port, _ = serve(given.checkpoint, directory)
        try:
            sent = tqdm(every, desc="files", unit="file", disable=None)
            outcomes = [send(port, process.pid, name, data) for name, data in sent]
            alive = process.poll() is None
        finally:
            process.terminate()
            process.wait(10)
    counts = Counter((one.status, one.code) for one in outcomes)
    print(f"{len(outcomes):,} files; afterwards the service is {'alive' if alive else 'GONE'}\n")
    print("| status | code | files |\n| --- | --- | --- |")
    for (status, code), count in sorted(counts.items()):
        print(f"| {status} | `{code}` | {count:,} |")
    for what, unit, key in (("slowest", "s", "seconds"), ("largest", "MiB", "mib")):
        ranked = sorted(outcomes, key=lambda one: -getattr(one, key))[:SHOWN]
        print(f"\n{what}: " + ", ".join(f"{one.name} {getattr(one, key):.2f} {unit}" for one in ranked))
    wrong = [one for one in outcomes if not one.is_right]
    print(f"\n{len(wrong)} not as they should be" + "".join(f"\n- {one}" for one in wrong))
    sys.exit(1 if wrong or not alive else 0)


if __name__ == "__main__":
    main()
