"""Memory of a service at rest, and its slope over many requests: does an answer leave something behind?

    python -m benchmarks.slope [--requests 100000] [--checkpoint omniglot]

Pairs of drawings to /verify by wrk (Debian has it) on four connections. Resident memory is read after each twentieth of
them; its slope is the median of the slopes between all of those readings but the first fifth (Theil and Sen). Exits
with 1 if that is steeper than --most-kib for each thousand requests.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.speed import _body, serve, status_mib

DRAWINGS = Path(__file__).parent.parent / "tests" / "data" / "omniglot" / "evaluation"
READINGS = 20
BODIES = 30
SCRIPT = """
local bodies = {%s}
local turn = 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "multipart/form-data; boundary=x"
request = function()
  turn = turn %% #bodies + 1
  return wrk.format(nil, "/verify", nil, bodies[turn])
end
"""


def script() -> str:
    """Lua that sends one body after another; every byte as an escape of three digits."""
    images = [path.read_bytes() for path in sorted(DRAWINGS.rglob("*.png"))]
    bodies = [_body(images[n], images[-n - 1]) for n in range(BODIES)]
    return SCRIPT % ",\n".join('"' + "".join(f"\\{byte:03d}" for byte in body) + '"' for body in bodies)


def load(port: int, lua: Path, seconds: float) -> int:
    """How many requests were answered, all of them with 200."""
    done = subprocess.run(
        ["wrk", "-t1", "-c4", f"-d{max(1, round(seconds))}s", "-s", str(lua), f"http://127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        check=True,
    )
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(done.stdout)
    return int(re.findall(r"(\d+) requests in", done.stdout)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--checkpoint", default="omniglot")
    parser.add_argument("--most-kib", type=float, default=20)
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as directory:
        lua = Path(directory) / "verify.lua"
        lua.write_text(script())
        process, port, _ = serve(given.checkpoint, f"{directory}/data")
        try:
            time.sleep(3)
            print(f"at rest {status_mib(process.pid, 'VmRSS'):.0f} MiB\n")
            print("| requests | resident, MiB | requests/s |\n| --- | --- | --- |")
            answered, readings, rate = 0, [], load(port, lua, 3) / 3
            while answered < given.requests:
                began = time.monotonic()
                some = load(port, lua, given.requests / READINGS / rate)
                answered, rate = answered + some, some / (time.monotonic() - began)
                readings.append((answered, status_mib(process.pid, "VmRSS")))
                print(f"| {answered:,} | {readings[-1][1]:.1f} | {rate:.0f} |", flush=True)
        finally:
            process.terminate()
            process.wait(20)
    count, mib = np.array(readings[len(readings) // 5 :]).T
    first, second = np.triu_indices(len(count), 1)
    kib = 1024 * float(np.median((mib[second] - mib[first]) / (count[second] - count[first]))) * 1000
    print(f"\nslope {kib:+.2f} KiB for each thousand requests")
    sys.exit(kib > given.most_kib)


if __name__ == "__main__":
    main()
