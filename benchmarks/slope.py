"""Memory of a service at rest, and its slope over many requests: does an answer leave something behind?

    python -m benchmarks.slope [--requests 100000] [--checkpoint omniglot]

Pairs of drawings to /verify on four connections. Resident memory is read after each twentieth of them; its slope is the
median of the slopes between all of those readings but the first fifth (Theil and Sen). Exits with 1 if that is steeper
than --most-kib for each thousand requests.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.load import wrk
from benchmarks.pictures import bodies
from benchmarks.service import serve, status_mib

DRAWINGS = Path(__file__).parent.parent / "tests" / "data" / "omniglot" / "evaluation"
READINGS = 20
CONNECTIONS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--checkpoint", default="omniglot")
    parser.add_argument("--most-kib", type=float, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        pairs = bodies([path.read_bytes() for path in sorted(DRAWINGS.rglob("*.png"))], Path(directory))
        process, port, _ = serve(given.checkpoint, f"{directory}/data")
        try:
            time.sleep(3)
            print(f"at rest {status_mib(process.pid, 'VmRSS'):.0f} MiB\n")
            print("| requests | resident, MiB | requests/s |\n| --- | --- | --- |")
            url = f"http://127.0.0.1:{port}/verify"
            load = wrk(url, pairs, 3, CONNECTIONS, process.pid)
            answered, readings = load.requests, []
            while answered < given.requests:
                load = wrk(url, pairs, given.requests / READINGS / load.rate, CONNECTIONS, process.pid)
                answered += load.requests
                readings.append((answered, status_mib(process.pid, "VmRSS")))
                print(f"| {answered:,} | {readings[-1][1]:.1f} | {load.rate:.0f} |", flush=True)
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
