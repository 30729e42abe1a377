"""How long the command line takes to answer.

    python -m benchmarks.commands [--rounds 15]

Each command in turn, in processes of its own, beside a Python that imports nothing. Prints medians and the ratio to it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

DIPTYCH = str(Path(sys.executable).parent / "diptych")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "diptych --version": [DIPTYCH, "--version"],
    "diptych --help": [DIPTYCH, "--help"],
    "diptych train --help": [DIPTYCH, "train", "--help"],
    "diptych keys list": [DIPTYCH, "keys", "list"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as data:
        environment = {**os.environ, "DIPTYCH_DATA_DIR": data}
        create = [DIPTYCH, "keys", "create", "somebody"]
        subprocess.run(create, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in tqdm(range(rounds), disable=None):
            for name, command in COMMANDS.items():
                started = time.perf_counter()
                subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
                seconds[name].append(time.perf_counter() - started)
    bare = statistics.median(seconds["python -c pass"])
    print("| command | seconds | times a bare Python |")
    print("| --- | --- | --- |")
    for name, taken in seconds.items():
        print(f"| `{name}` | {statistics.median(taken):.3f} | {statistics.median(taken) / bare:.1f} |")


if __name__ == "__main__":
    main()
