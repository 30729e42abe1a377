"""Load on a server of ours: `wrk` in a closed loop, and the processor's time that both sides take.

`wrk` (Debian's package) is written in C: it takes a hundredth of the processor where a client in Python takes a
quarter.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# As long as curl's and the browsers': parsers look for it in every byte, the faster the longer it is.
BOUNDARY = "------------------------d74496d66958873e"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
# Sends the bodies in turn; each thread of wrk starts at another.
SCRIPT = """
local bodies, at = {}, 0
function setup(thread) thread:set("start", start or 0); start = (start or 0) + 3 end
function init(args)
  for _, name in ipairs(args) do
    local file = io.open(name, "rb")
    bodies[#bodies + 1] = file:read("*a")
    file:close()
  end
  at = start
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "multipart/form-data; boundary=BOUNDARY"
end
function request()
  at = at % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[at])
end
function done(summary, latency)
  local e = summary.errors
  print(string.format("requests %d us %d p50 %d p99 %d failed %d", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """What a closed loop of some seconds did. Times in seconds; `server_cpu`, `client_cpu` of all processors."""

    requests: int
    seconds: float
    p50: float
    p99: float
    server_cpu: float
    client_cpu: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def rate_without_client(self) -> float:
        """Requests a second of what the client left of the machine."""
        cores = os.cpu_count() or 1
        return self.rate * cores / (cores - self.client_cpu / self.seconds)

    @property
    def cpu_each(self) -> float:
        """Processor seconds of the server for one request."""
        return self.server_cpu / self.requests


def body(**files: bytes) -> bytes:
    """A multipart body of these files."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="%s"; filename="i"\r\n\r\n'
    return (
        b"".join((head % name).encode() + data + b"\r\n" for name, data in files.items())
        + f"--{BOUNDARY}--\r\n".encode()
    )


def wrk(url: str, bodies: list[Path], seconds: float, connections: int, pid: int) -> Load:
    """Send the bodies in turn for so long. `pid` is the server's: its children's time counts too.

    Raises `RuntimeError` if any request was not answered with 2xx or 3xx.
    """
    program = shutil.which("wrk")
    if program is None:
        sys.exit("wrk is missing: apt-get install wrk")
    script = bodies[0].parent / "wrk.lua"
    script.write_text(SCRIPT.replace("BOUNDARY", BOUNDARY))
    server, client = cpu_seconds(pid), _children_cpu()
    started = time.perf_counter()
    done = subprocess.run(
        [
            program,
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--timeout",
            "60s",
            "-s",
            script,
            url,
            "--",
            *bodies,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    elapsed = time.perf_counter() - started
    found = re.search(r"requests (\d+) us (\d+) p50 (\d+) p99 (\d+) failed (\d+)", done.stdout)
    if found is None or int(found[5]) or "Non-2xx" in done.stdout:
        raise RuntimeError(f"not every request was answered: {done.stdout}")
    requests, microseconds, p50, p99 = (int(found[k]) for k in range(1, 5))
    # what was under way at the end is in neither count
    scale = microseconds / 1e6 / elapsed
    return Load(
        requests=requests,
        seconds=microseconds / 1e6,
        p50=p50 / 1e6,
        p99=p99 / 1e6,
        server_cpu=(cpu_seconds(pid) - server) * scale,
        client_cpu=(_children_cpu() - client) * scale,
    )


def cpu_seconds(pid: int) -> float:
    """Processor seconds that a process and its descendants have taken."""
    tick = os.sysconf("SC_CLK_TCK")
    total = 0.0
    for one in (pid, *descendants(pid)):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(fields[k]) for k in (11, 12, 13, 14)) / tick  # own and waited-for, user and system
    return total


def descendants(pid: int) -> list[int]:
    """Processes that this one started, and those that they did."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system
