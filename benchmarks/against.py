"""The speed of this tree beside that of another checkout of it, in one run: a change should not make requests slower.

    python -m benchmarks.against OTHER [--rounds 7] [--seconds 4]

Both trees serve the bundled checkpoint with this environment's packages, each from its own folder, and answer the same
requests in turn: `/verify` of two drawings, `/search` among the drawings of `tests/data`, `/enroll` of one drawing.
Prints medians of requests a second and of processor milliseconds a request, and the median of the rounds' ratios.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from benchmarks.load import BOUNDARY, Load, body, wrk
from benchmarks.service import free_port, start

ROOT = Path(__file__).parent.parent
DRAWINGS = sorted((ROOT / "tests" / "data" / "omniglot" / "evaluation").rglob("*.png"))
COMMAND = "import sys; from app.cli import main; sys.argv[0] = 'diptych'; main()"
CONNECTIONS = 4


def diptych(tree: Path, *arguments: str) -> list[str]:
    """The command `diptych` of a tree."""
    return [sys.executable, "-c", COMMAND, *arguments]


def environment(tree: Path, data: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1", "DIPTYCH_DATA_DIR": str(data)}


def field(name: str, value: str) -> bytes:
    """A text field, to be put before a multipart body."""
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def requests(folder: Path) -> dict[str, list[Path]]:
    """Bodies by endpoint, as files."""
    made: dict[str, list[Path]] = {"verify": [], "search": [], "enroll": []}
    for number, (first, second) in enumerate(zip(DRAWINGS, DRAWINGS[1:] + DRAWINGS[:1], strict=True)):
        for endpoint, data in (
            ("verify", body(image_a=first.read_bytes(), image_b=second.read_bytes())),
            ("search", body(image=first.read_bytes())),
            ("enroll", field("identity", f"i{number}") + field("collection", "new") + body(images=first.read_bytes())),
        ):
            path = folder / f"{endpoint}{number}"
            path.write_bytes(data)
            made[endpoint].append(path)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    given = parser.parse_args()
    trees = {"this tree": ROOT, "the other": given.other.resolve()}
    with tempfile.TemporaryDirectory() as scratch:
        bodies = requests(Path(scratch))
        running = {}
        try:
            for name, tree in trees.items():
                data, port = Path(scratch) / name, free_port()
                subprocess.run(
                    diptych(tree, "import", str(ROOT / "tests" / "data" / "omniglot"), "--quiet"),
                    env={**os.environ, **environment(tree, data)},
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                process, _ = start(diptych(tree, "serve", "--port", str(port)), port, environment(tree, data))
                running[name] = (process, port)
            found: dict[tuple[str, str], list[Load]] = {}
            for number in tqdm(range(given.rounds), disable=None):
                for endpoint, files in bodies.items():
                    for name in sorted(trees, reverse=bool(number % 2)):
                        process, port = running[name]
                        url = f"http://127.0.0.1:{port}/{endpoint}"
                        load = wrk(url, files, given.seconds, CONNECTIONS, process.pid)
                        found.setdefault((endpoint, name), []).append(load)
        finally:
            for process, _ in running.values():
                process.send_signal(signal.SIGTERM)
                process.wait(30)
    print("| request | this tree, per s | the other, per s | ratio | this tree, ms of processor | the other | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for endpoint in bodies:
        here, there = (found[endpoint, name] for name in trees)
        cells = []
        for of in (lambda load: load.rate, lambda load: 1000 * load.cpu_each):
            ratio = statistics.median(of(a) / of(b) for a, b in zip(here, there, strict=True))
            cells += [f"{statistics.median(map(of, loads)):.4g}" for loads in (here, there)] + [f"{ratio:.3f}"]
        print(f"| `/{endpoint}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
