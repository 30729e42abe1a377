"""`/verify` beside an in-process loop of the same pipeline, and beside what one would install or write instead.

    python -m benchmarks.speed CHECKPOINT CAMERAS [--rounds 5] [--seconds 5]

CHECKPOINT is one with MobileNetV3-Large at 224 pixels (`benchmarks/run.py` trains it), CAMERAS a folder of photos. Same
images, same ONNX file, two cores for everybody; `wrk` is the client, on the same cores. In each round everybody has a
turn, and ratios are taken within a round, so that a noisy neighbour meets both sides; medians over rounds.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from app.checkpoint.encoder import Encoder
from app.checkpoint.format import RuntimeName
from app.checkpoint.matching import distance
from app.checkpoint.store import load_checkpoint
from app.image.policy import decode
from benchmarks import pictures
from benchmarks.load import Load, wrk
from benchmarks.service import peer, serve, status_mib

CONNECTIONS = 8
IMAGES = 8
OURS, FAST = "Diptych", "Diptych, OpenVINO bf16"
LIT, LIT_REDUCED, TUTORIAL = "LitServe", "LitServe, our decoding", "FastAPI + torch"


@dataclass(frozen=True)
class Loop:
    """Pairs a second in one process without HTTP, and processor seconds a pair."""

    rate: float
    cpu_each: float


def loop(encoder: Encoder, images: list[bytes], seconds: float) -> Loop:
    """Decode both, embed both, take the distance: on all cores, a thread each."""
    pairs = pictures.pairs(images)

    def work(deadline: float) -> int:
        done = 0
        while time.perf_counter() < deadline:
            a, b = (decode(one, encoder.preprocessing, refuse_blank=True) for one in pairs[done % len(pairs)])
            first_D, second_D = encoder.embed(np.stack([a, b]))
            distance(first_D, second_D)
            done += 1
        return done

    started, cpu = time.perf_counter(), time.process_time()
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, [started + seconds] * threads))
    return Loop(done / (time.perf_counter() - started), (time.process_time() - cpu) / done)


class Contest:
    """Servers that run side by side, each idle while another has its turn."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        cores = os.cpu_count() or 1
        opened = load_checkpoint(name)
        runtimes: dict[str, RuntimeName] = {OURS: "onnxruntime", FAST: "openvino-bf16"}
        self.encoders = {who: Encoder(opened, 1, runtime, cores) for who, runtime in runtimes.items()}
        self.servers: dict[str, tuple[int, int]] = {}
        for who, runtime in runtimes.items():
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="diptych-bench-"))
            process, port, _ = serve(name, directory, runtime=runtime)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
            self.servers[who] = process.pid, port
        self.servers[LIT] = stack.enter_context(peer("lit", name, "PORT", "ordinary"))
        self.servers[LIT_REDUCED] = stack.enter_context(peer("lit", name, "PORT", "reduced"))
        self.servers[TUTORIAL] = stack.enter_context(peer("tutorial", name, "PORT"))

    def turn(self, who: str, bodies: list[Path], seconds: float) -> Load:
        pid, port = self.servers[who]
        return wrk(f"http://127.0.0.1:{port}/verify", bodies, seconds, CONNECTIONS, pid)


def measure(name: str, cameras: Path, rounds: int, seconds: float) -> None:
    """Run the contest and print its tables."""
    with ExitStack() as stack:
        contest = Contest(name, stack)
        rest = {who: status_mib(pid, "VmRSS") for who, (pid, _) in contest.servers.items() if who == OURS}
        for size, pixels in pictures.SIZES.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="diptych-bench-")))
            images = pictures.photos(cameras, pixels, IMAGES)
            bodies = pictures.bodies(images, folder)
            loops: dict[str, list[Loop]] = defaultdict(list)
            loads: dict[str, list[Load]] = defaultdict(list)
            for number in tqdm(range(-1, rounds), desc=size, unit="round", disable=None):
                turn = 1.0 if number < 0 else seconds  # the first is to warm up
                now = {who: loop(encoder, images, turn) for who, encoder in contest.encoders.items()}
                then = {who: contest.turn(who, bodies, turn) for who in contest.servers}
                if number >= 0:
                    for who in now:
                        loops[who].append(now[who])
                    for who in then:
                        loads[who].append(then[who])
            _print(size, loops, loads)
        after = status_mib(contest.servers[OURS][0], "VmRSS")
        print(f"\nResident: {rest[OURS]:.0f} MiB at rest, {after:.0f} MiB after all of this.")


def _print(size: str, loops: dict[str, list[Loop]], loads: dict[str, list[Load]]) -> None:
    print(f"\n{size} JPEGs, two a request, {CONNECTIONS} connections, medians of {len(loads[OURS])} rounds:\n")
    print("| | pairs/s | p50, ms | p99, ms | CPU ms a pair |\n| --- | --- | --- | --- | --- |")
    for who, name in ((OURS, "in-process loop"), (FAST, "in-process loop, OpenVINO bf16")):
        rate, cpu = (median(getattr(one, of) for one in loops[who]) for of in ("rate", "cpu_each"))
        print(f"| {name} | {rate:.1f} | | | {1000 * cpu:.1f} |")
    for who, of in loads.items():
        rate, p50, p99, cpu = (median(getattr(one, f) for one in of) for f in ("rate", "p50", "p99", "cpu_each"))
        print(f"| {who} | {rate:.1f} | {1000 * p50:.0f} | {1000 * p99:.0f} | {1000 * cpu:.1f} |")
    print("\n| ratio | Diptych | with OpenVINO bf16 |\n| --- | --- | --- |")
    rows = [
        ("over the in-process loop, client's CPU accounted for", lambda m, k, who: m.rate_without_client / k[who].rate),
        ("over the in-process loop as it is", lambda m, k, who: m.rate / k[who].rate),
        ("server CPU seconds a pair over the loop's", lambda m, k, who: m.cpu_each / k[who].cpu_each),
    ]
    rounds = range(len(loads[OURS]))
    for name, ratio in rows:
        both = [
            median(ratio(loads[who][r], {w: loops[w][r] for w in loops}, who) for r in rounds) for who in (OURS, FAST)
        ]
        print(f"| {name} | {both[0]:.2f} | {both[1]:.2f} |")
    for peer_name in (LIT, LIT_REDUCED, TUTORIAL):
        both = [median(loads[who][r].rate / loads[peer_name][r].rate for r in rounds) for who in (OURS, FAST)]
        print(f"| over {peer_name} | {both[0]:.2f} | {both[1]:.2f} |")


def median(values) -> float:  # type: ignore[no-untyped-def]
    return statistics.median(list(values))


def ready_seconds(name: str, starts: int = 5) -> float:
    """Median time from the command's start until the service is ready."""
    taken = []
    for _ in range(starts):
        with tempfile.TemporaryDirectory(prefix="diptych-bench-") as directory:
            process, _, ready = serve(name, directory)
            process.terminate()
            process.wait(10)
            taken.append(ready)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("cameras", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    measure(given.checkpoint, given.cameras, given.rounds, given.seconds)
    print(f"Import to ready {ready_seconds(given.checkpoint):.2f} s.")


if __name__ == "__main__":
    main()
