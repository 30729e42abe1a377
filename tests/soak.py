"""SIGKILL at random moments while many hands enroll and delete: what was acknowledged is there, and nothing else.

    python -m tests.soak --rounds 200 [--workers 2] [--seed 0]

Each hand has identities of its own, so it knows what they must hold; of a request that was cut off, either outcome is
legal. After every kill the service starts again on the same directory, and every identity is looked at, searched for,
and its kept images are counted. The tests run a few rounds of it; `benchmarks/soak.py` has hands among its crowd.
"""

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.files import GOLDEN, drawings
from tests.service import Service

IMAGES = [path for name in ("Angelic/character01", "Kannada/character02") for path in drawings(name)]
BASE = "/collections/default/identities"
Held = frozenset[str]


@dataclass
class Hand:
    """One client: what its identities may hold, by filename; several possibilities after a request was cut off."""

    name: str
    rng: random.Random
    may_hold: dict[str, set[Held]] = field(default_factory=dict)
    answered: int = 0
    cut_off: int = 0
    # Seconds between two changes, and who is told of each answer: what was asked, its status, the seconds it took.
    pause: float = 0.0
    tell: Callable[[str, int, float], None] = lambda what, status, seconds: None

    def work(self, service: Service, stop: threading.Event) -> None:
        """Until the service is gone. Anything but a connection that breaks, or a 2xx, is a failure."""
        with httpx.Client(base_url=service.client.base_url, headers=service.client.headers, timeout=30) as client:
            while not stop.wait(self.pause):
                identity = f"{self.name}-{self.rng.randrange(6)}"
                (before,) = self.may_hold.setdefault(identity, {frozenset()})
                try:
                    after = self._change(client, identity, before)
                except (httpx.TransportError, _Stopping):
                    self.cut_off += 1
                    return
                self.may_hold[identity] = {after}
                self.answered += 1

    def _change(self, client: httpx.Client, identity: str, before: Held) -> Held:
        """What the identity holds once this is answered; until then it may hold that, too."""
        if before and self.rng.random() < 0.4:
            self.may_hold[identity] = {before, frozenset()}
            response = client.delete(f"{BASE}/{identity}")
            self.tell("delete", response.status_code, response.elapsed.total_seconds())
            assert response.status_code == 204 or _is_stopping(response), response.text
            return frozenset()
        image = self.rng.choice(IMAGES)
        after = before | {image.name}
        self.may_hold[identity] = {before, after}
        response = client.post(
            "/enroll", data={"identity": identity}, files={"images": (image.name, image.read_bytes())}
        )
        self.tell("enroll", response.status_code, response.elapsed.total_seconds())
        assert response.status_code == 201 or _is_stopping(response), response.text
        return after

    def check(self, service: Service) -> None:
        """That every identity holds what it may, and that a search for each of its images finds it."""
        for identity, possible in self.may_hold.items():
            response = service.client.get(f"{BASE}/{identity}")
            names = [one["filename"] for one in response.json()["references"]] if response.status_code == 200 else []
            assert len(names) == len(set(names))
            assert frozenset(names) in possible, f"{identity} holds {names}, and may hold {possible}"
            self.may_hold[identity] = {frozenset(names)}


class _Stopping(Exception):
    pass


def _is_stopping(response: httpx.Response) -> bool:
    if response.status_code == 503:
        raise _Stopping
    return False


def check_searches(service: Service, hands: list[Hand]) -> None:
    """For every image: exactly the identities that hold it are found at distance 0."""
    for image in IMAGES:
        holding = {i for hand in hands for i, (held,) in hand.may_hold.items() if image.name in held}
        response = service.search(image, top_k="1000")
        if response.status_code == 404 and not holding:
            continue
        found = {match["identity"] for match in response.json()["matches"] if match["distance"] < 1e-6}
        assert found == holding, (image.name, found ^ holding)


def check_kept(service: Service, hands: list[Hand]) -> None:
    """The images kept are those of the references that are there, each once, within some seconds."""
    expected = Counter(name for hand in hands for (held,) in hand.may_hold.values() for name in held)
    by_bytes = {path.read_bytes(): path.name for path in IMAGES}
    deadline = time.monotonic() + 15
    while True:
        kept = [path for path in (service.data_dir / "originals").rglob("*") if path.is_file()]
        found = Counter(by_bytes.get(path.read_bytes(), "torn") for path in kept)
        missing = expected - found
        assert not missing, missing
        # An enrolment that was cut off may leave one; it is an orphan, and goes after an hour.
        if sum(found.values()) - sum(expected.values()) <= sum(hand.cut_off for hand in hands):
            return
        assert time.monotonic() < deadline, found - expected
        time.sleep(0.2)


def rounds(service: Service, count: int, hands: int, seed: int, say: bool = False) -> tuple[int, int]:
    """Run so many kills; how many requests were answered and how many cut off."""
    rng = random.Random(seed)
    everybody = [Hand(f"h{number}", random.Random(rng.random())) for number in range(hands)]
    for number in range(count):
        stop = threading.Event()
        threads = [threading.Thread(target=hand.work, args=(service, stop)) for hand in everybody]
        for thread in threads:
            thread.start()
        time.sleep(rng.uniform(0.05, 0.8))
        service.kill()
        stop.set()
        for thread in threads:
            thread.join()
        service.start()
        for hand in everybody:
            hand.check(service)
        check_searches(service, everybody)
        check_kept(service, everybody)
        if say:
            answered, cut_off = sum(h.answered for h in everybody), sum(h.cut_off for h in everybody)
            print(f"round {number + 1}: {answered:,} answered, {cut_off:,} cut off, nothing lost", flush=True)
    return sum(hand.answered for hand in everybody), sum(hand.cut_off for hand in everybody)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--hands", type=int, default=6)
    parser.add_argument("--workers", default="1")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        service = Service(GOLDEN, Path(directory) / "data", workers=given.workers, keep_images="yes")
        try:
            answered, cut_off = rounds(service, given.rounds, given.hands, given.seed, say=True)
        finally:
            service.stop()
    minutes = (time.monotonic() - started) / 60
    print(f"{given.rounds} kills in {minutes:.1f} minutes: {answered:,} requests answered, {cut_off:,} cut off;")
    print("everything acknowledged was there and found, nothing deleted came back")


if __name__ == "__main__":
    main()
