"""A long time of mixed load with faults: memory, latency and errors over it, and whether anything was lost.

    python -m benchmarks.soak --minutes 30 --output runs/soak

Everybody comes at once and at a moderate rate: pairs, claims, searches, embeddings, enrolments and deletions, and with
them hostile files, bodies that are too large, uploads that are too slow, connections that break off, bursts beyond what
the service takes, and a key that is revoked. Early on the service is killed, later told to stop, and started again each
time. Writes samples.csv and curves.png, and exits with 1 on an error that no fault explains, on an acknowledged
enrolment that is gone or a deleted one that came back, and on memory that grows.
"""

import argparse
import csv
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

from benchmarks.crowd import ENDPOINTS, Crowd
from benchmarks.curves import draw
from benchmarks.service import status_mib
from tests.service import Service, diptych
from tests.soak import Hand, check_searches

SAMPLE_SECONDS = 3.0
HANDS = 3
# Shares of the whole time. The last life of the process is the longest, since memory is judged in it.
KILL_AT, STOP_AT, REVOKE_AT, BURST_EVERY = 0.08, 0.16, 0.5, 60.0
# Of that life, the first third fills caches. Large images come and go, so of each so many samples the least counts.
WARM, FLOOR_OF = 1 / 3, 10


class Soak:
    """One run."""

    def __init__(self, service: Service, minutes: float, seed: int) -> None:
        self.service, self.seconds = service, 60 * minutes
        self.began = time.monotonic()
        self.faults: list[tuple[float, float, str]] = []
        self.rows: list[dict[str, float]] = []
        self.crowd = Crowd(service, seed, self.may_fail)
        rng = random.Random(seed)
        self.hands = [
            Hand(f"h{number}", random.Random(rng.random()), pause=0.3, tell=self.crowd.tell) for number in range(HANDS)
        ]
        self.stop = threading.Event()
        self.up = threading.Event()
        self.up.set()
        self.broken: list[str] = []
        threading.excepthook = lambda failed: self.broken.append(repr(failed.exc_value))

    def now(self) -> float:
        return time.monotonic() - self.began

    def may_fail(self, at: float) -> bool:
        """Whether a moment lies in a fault that was declared, or just after."""
        return any(start - 0.5 <= at - self.began <= end + 2.0 for start, end, _ in self.faults)

    def fault(self, kind: str, work: Callable[[], object]) -> None:
        """Declare it for as long as it lasts."""
        start = self.now()
        self.faults.append((start, float("inf"), kind))
        work()
        self.faults[-1] = (start, self.now(), kind)
        print(f"{start:6.0f} s  {kind}, {self.now() - start:.1f} s", flush=True)

    def hand(self, hand: Hand) -> None:
        """Until the end; whenever it was cut off or refused, it looks at what it holds first."""
        while not self.stop.is_set():
            hand.work(self.service, self.stop)
            if self.up.wait(60):
                hand.check(self.service)

    def restart(self, end: Callable[[], object]) -> None:
        """The hands rest while the service is started, and look at what they hold afterwards."""
        self.up.clear()
        end()
        time.sleep(0.5)
        self.service.start()
        for hand in self.hands:
            hand.check(self.service)
        self.up.set()

    def watch(self) -> None:
        while not self.stop.wait(SAMPLE_SECONDS):
            self.sample()

    def sample(self) -> None:
        pid = self.service.process.pid
        try:
            with httpx.Client(base_url=self.service.client.base_url, headers={"X-API-Key": self.service.key}) as client:
                told = client.get("/metrics", timeout=30).text
            row = {
                "seconds": round(self.now(), 1),
                "life": len([1 for _, _, kind in self.faults if "started" in kind]),
                "resident_mib": status_mib(pid, "VmRSS"),
                "open_files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
                "threads": status_mib(pid, "Threads") * 1024,
            }
        except (httpx.TransportError, OSError):
            return  # between two lives
        for name in ("diptych_references", "diptych_identities", "diptych_distance_drift"):
            row[name.removeprefix("diptych_")] = float(told.partition(f"\n{name} ")[2].split()[0])
        for what, (answers, seconds) in self.crowd.since_last().items():
            row[f"{what}_p50_ms"] = 1000 * float(np.percentile(seconds, 50)) if seconds else float("nan")
            row[f"{what}_p99_ms"] = 1000 * float(np.percentile(seconds, 99)) if seconds else float("nan")
            for status, count in answers.items():
                row[f"status_{status}"] = row.get(f"status_{status}", 0) + count
        self.rows.append(row)

    def run(self) -> None:
        threads = [threading.Thread(target=self.hand, args=(hand,)) for hand in self.hands]
        threads += [*self.crowd.threads(self.stop), threading.Thread(target=self.watch)]
        for thread in threads:
            thread.start()
        plan = [
            (KILL_AT * self.seconds, "killed and started", lambda: self.restart(self.service.kill)),
            (STOP_AT * self.seconds, "stopped and started", lambda: self.restart(self.service.stop)),
            (REVOKE_AT * self.seconds, "a key revoked", self.crowd.revoke),
        ]
        bursts = np.arange(BURST_EVERY / 2, self.seconds - 10, BURST_EVERY)
        plan += [(float(at), "burst", lambda: self.crowd.burst(3.0)) for at in bursts]
        plan.sort(key=lambda one: one[0])
        while self.now() < self.seconds and not self.broken:
            while plan and plan[0][0] <= self.now():
                _, kind, work = plan.pop(0)
                self.fault(kind, work)
            time.sleep(0.2)
        self.stop.set()
        for thread in threads:
            thread.join(60)
        for hand in self.hands:
            hand.check(self.service)
        check_searches(self.service, self.hands)

    def rise(self) -> tuple[float, float]:
        """MiB that the floor of memory rose by over the end of the last life, by the median of all slopes (Theil-Sen);
        and the minutes that is about."""
        last = [row for row in self.rows if row["life"] == self.rows[-1]["life"]]
        settled = last[int(WARM * len(last)) :]
        groups = [settled[start : start + FLOOR_OF] for start in range(0, len(settled), FLOOR_OF)]
        at = np.array([np.mean([row["seconds"] for row in group]) for group in groups])
        mib = np.array([min(row["resident_mib"] for row in group) for group in groups])
        first, second = np.triu_indices(len(at), 1)
        slope = float(np.median((mib[second] - mib[first]) / (at[second] - at[first])))
        return slope * (at[-1] - at[0]), (at[-1] - at[0]) / 60


def key(name: str, data: Path) -> str:
    made = diptych("keys", "create", name, "--scope", "admin", "--data-dir", data)
    (token,) = re.findall(r"diptych_\S{52}", made.stdout)
    return str(token)


def write(rows: list[dict[str, float]], path: Path) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows({name: round(value, 3) for name, value in row.items()} for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--output", type=Path, default=Path("runs/soak"))
    parser.add_argument("--checkpoint", default="omniglot")
    parser.add_argument("--most-mib", type=float, default=16, help="How much memory may grow by once it is warm.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "data"
        Service.key, guest = key("crowd", data), key("guest", data)
        service = Service(given.checkpoint, data, keep_images="yes", upload_seconds="5", log_format="json")
        soak = Soak(service, given.minutes, given.seed)
        soak.crowd.guest = guest
        try:
            soak.run()
        finally:
            write(soak.rows, given.output / "samples.csv")
            draw(soak.rows, soak.faults, ENDPOINTS, given.output / "curves.png")
            service.stop()
            (given.output / "log.jsonl").write_bytes(service.log.read_bytes())
    rise, minutes = soak.rise()
    print(f"{soak.crowd.answers.total():,} answers: {dict(sorted(soak.crowd.answers.items()))}")
    print(f"changes acknowledged by {HANDS} hands: {sum(hand.answered for hand in soak.hands):,}")
    resident = soak.rows[-1]["resident_mib"]
    print(f"memory {rise:+.1f} MiB over the last {minutes:.1f} minutes, {resident:.0f} MiB at the end")
    wrong = soak.broken + soak.crowd.wrong
    if rise > given.most_mib:
        wrong.append(f"memory grew by {rise:.1f} MiB in {minutes:.1f} minutes; {given.most_mib:g} are allowed")
    for one in wrong[:20]:
        print(f"WRONG: {one}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
