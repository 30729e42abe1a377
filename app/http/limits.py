"""How many requests one caller may send, in a time and at once. Each process counts for itself."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from app.errors import TooManyRequests


class Limits:
    """Counts by the name of the key, or by the address where there are no keys."""

    def __init__(self, most: str, at_once: int) -> None:
        self._rate = parse(most) if most else None
        self._at_once = at_once
        self._window = MovingWindowRateLimiter(MemoryStorage())
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def turn(self, who: str) -> Iterator[None]:
        """Counts one request while entered. Raises `TooManyRequests`."""
        if self._at_once and self._under_way[who] >= self._at_once:
            raise TooManyRequests(f"At most {self._at_once} requests at once are allowed. Wait for their answers.", 1)
        if self._rate is not None and not self._window.hit(self._rate, who):
            wait = self._window.get_window_stats(self._rate, who).reset_time - time.time()
            raise TooManyRequests(f"The request limit is {self._rate}. Try again later.", max(1, math.ceil(wait)))
        self._under_way[who] += 1
        try:
            yield
        finally:
            self._under_way[who] -= 1
            if not self._under_way[who]:
                del self._under_way[who]
