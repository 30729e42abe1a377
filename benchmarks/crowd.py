"""Those who use the service during a soak, well and badly, and what they were told."""

import io
import random
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress

import httpx
from PIL import Image

from tests.app.image.test_bombs import large_png, many_frames, packed_text
from tests.files import EVALUATION
from tests.service import Service, diptych

DRAWINGS = [path.read_bytes() for path in sorted(EVALUATION.rglob("*.png"))]
ENDPOINTS = ("verify", "claim", "search", "embed", "enroll", "delete")
# Requests a second of each kind.
RATES = {"verify": 6.0, "claim": 2.0, "search": 3.0, "embed": 2.0, "photo": 0.5, "hostile": 1.0, "guest": 0.5,
         "too_large": 0.1, "slow": 0.1, "broken_off": 0.5}  # fmt: skip
# What each may be answered with; nothing, if it is None.
RIGHT: dict[str, set[int | None]] = {
    "hostile": {200, 413, 415, 422},
    "too_large": {413},
    "slow": {408},
    "guest": {200},
    "broken_off": {None},
}
CLAIMED = "claimed"


def photo(side: int) -> bytes:
    """A JPEG of noise and edges, as large as a telephone's."""
    rng = random.Random(0)
    small = Image.effect_noise((64, 48), 90).resize((side, 3 * side // 4), Image.Resampling.BICUBIC).convert("RGB")
    for _ in range(40):
        x, y = rng.randrange(side), rng.randrange(3 * side // 4)
        small.paste((rng.randrange(256), 80, 120), (x, y, x + side // 20, y + side // 20))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


class Crowd:
    """Threads that ask at a steady rate each; `may_fail` says of a moment whether a fault was declared for it."""

    def __init__(self, service: Service, seed: int, may_fail: Callable[[float], bool]) -> None:
        self.service, self.may_fail, self.seed = service, may_fail, seed
        self.guest = ""
        self.answers: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._revoked_at = float("inf")
        self._lock = threading.Lock()
        # A connection for each request; one that was kept may be closed by the service at the very moment it is used.
        self._client = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
        self._seen: dict[str, tuple[Counter[int], list[float]]] = defaultdict(lambda: (Counter(), []))
        self._photos = [photo(640), photo(4000)]
        self._hostile = [b"", b"no image", DRAWINGS[0][:200], large_png(), many_frames(), packed_text()]

    def tell(self, what: str, status: int, seconds: float) -> None:
        """Count an answer, and judge it."""
        with self._lock:
            self.answers[status] += 1
            answers, times = self._seen[what]
            answers[status] += 1
            if status < 400:
                times.append(seconds)
        right = RIGHT.get(what, {200, 201, 204})
        if what == "guest" and time.monotonic() > self._revoked_at + 3:
            right = {401}
        elif what == "guest" and time.monotonic() > self._revoked_at:
            right = {200, 401}
        if status not in right and not (status == 503 and self.may_fail(time.monotonic() - seconds)):
            self.wrong.append(f"{what} was answered with {status}")

    def since_last(self) -> dict[str, tuple[Counter[int], list[float]]]:
        """Answers and seconds of each kind since this was asked before."""
        with self._lock:
            seen, self._seen = self._seen, defaultdict(lambda: (Counter(), []))
        return {what: seen.get(what, (Counter(), [])) for what in dict.fromkeys((*ENDPOINTS, *seen))}

    def threads(self, stop: threading.Event) -> list[threading.Thread]:
        """One for each kind; they end with `stop`."""
        files = [("images", ("claimed.png", data)) for data in DRAWINGS[:2]]
        self.service.client.post("/enroll", data={"identity": CLAIMED, "collection": "crowd"}, files=files)
        return [threading.Thread(target=self._steadily, args=(what, rate, stop)) for what, rate in RATES.items()]

    def _steadily(self, what: str, rate: float, stop: threading.Event) -> None:
        rng = random.Random(f"{self.seed} {what}")
        while not stop.wait(rng.expovariate(rate)):
            asked = time.monotonic()
            try:
                status = self._ask(what, rng)
            except (httpx.TransportError, OSError) as problem:
                # Whoever sends too much may find the connection closed before there is an answer.
                if not self.may_fail(asked) and not self.may_fail(time.monotonic()):
                    self.wrong.append(f"{what}: {problem!r}")
                continue
            if status is not None:
                self.tell(what, status, time.monotonic() - asked)

    def _ask(self, what: str, rng: random.Random) -> int | None:
        one, other = rng.choice(DRAWINGS), rng.choice(DRAWINGS)
        match what:
            case "verify":
                return self._post("/verify", {"image_a": one, "image_b": other})
            case "photo":
                return self._post("/verify", {"image_a": rng.choice(self._photos), "image_b": rng.choice(self._photos)})
            case "claim":
                return self._post("/verify", {"image_a": one}, identity=CLAIMED, collection="crowd")
            case "search":
                return self._post("/search", {"image": one}, collection="crowd")
            case "embed":
                return self._post("/embed", {"image": one})
            case "hostile":
                return self._post("/embed", {"image": rng.choice(self._hostile)})
            case "too_large":
                return self._post("/embed", {"image": bytes(24 * 2**20)})
            case "guest":
                answer = self._client.get(
                    f"http://127.0.0.1:{self.service.port}/collections", headers={"X-API-Key": self.guest}
                )
                return answer.status_code
            case "slow":
                return self._by_hand(one, pieces=20, pause=0.5)
            case _:
                return self._by_hand(one, pieces=3, pause=0.05, break_off=True)

    def _post(self, path: str, files: dict[str, bytes], **fields: str) -> int:
        headers = {"X-API-Key": self.service.key}
        url = f"http://127.0.0.1:{self.service.port}{path}"
        return self._client.post(url, files=files, data=fields, headers=headers).status_code

    def _by_hand(self, image: bytes, pieces: int, pause: float, break_off: bool = False) -> int | None:
        """An upload that comes bit by bit, or ends before its end."""
        body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n' + image + b"\r\n--x--\r\n"
        head = f"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {self.service.key}\r\n"
        head += f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.service.port), timeout=30) as connection:
            connection.sendall(head.encode())
            step = -(-len(body) // pieces)
            for start in range(0, len(body) - step * break_off, step):
                with suppress(BrokenPipeError, ConnectionResetError):  # refused meanwhile; the answer is there to read
                    connection.sendall(body[start : start + step])
                connection.settimeout(pause)
                try:
                    if answer := connection.recv(100):
                        return int(answer.split()[1])
                except TimeoutError:
                    continue
            if break_off:
                return None
            connection.settimeout(30)
            answer = connection.recv(100)
            return int(answer.split()[1]) if answer else None

    def burst(self, seconds: float, clients: int = 60) -> None:
        """Many more at once than are let in."""
        until, rng = time.monotonic() + seconds, random.Random(self.seed)

        def ask() -> None:
            while time.monotonic() < until:
                asked = time.monotonic()
                pair = {"image_a": rng.choice(DRAWINGS), "image_b": rng.choice(DRAWINGS)}
                with suppress(httpx.TransportError):
                    self.tell("burst", self._post("/verify", pair), time.monotonic() - asked)

        threads = [threading.Thread(target=ask) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def revoke(self) -> None:
        """The guest's key, while it is in use."""
        done = diptych("keys", "revoke", "guest", "--data-dir", self.service.data_dir)
        assert done.returncode == 0, done.stderr
        self._revoked_at = time.monotonic()
