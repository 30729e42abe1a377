"""The end of a service: at SIGTERM it says that it is not ready, then takes no more requests, answers those it has.

uvicorn does most of this: at SIGTERM it closes the port and idle connections, and waits for the other connections. It
leaves out the time before: a load balancer asks only now and then who is ready, and sends requests here until it has
asked again.
"""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from uvicorn.supervisors import Multiprocess

from app.errors import Unavailable
from app.serving.readiness import Check, make_check

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1


class Draining:
    """Whether the service was told to stop: requests under way are answered, and no more should be sent."""

    def __init__(self) -> None:
        self.begun = False

    def check(self) -> Iterator[Check]:
        yield make_check("accepting", self._check)

    def _check(self) -> str:
        if self.begun:
            raise Unavailable(
                "The service is stopping. It still answers the requests that it has; send new ones to another instance."
            )
        return "takes requests"


class Workers(Multiprocess):
    """uvicorn's parent of several workers.

    The original keeps the port open until every worker is gone, though nobody would answer there, and does not pass a
    second signal on.
    """

    def terminate_all(self) -> None:
        super().terminate_all()
        for listening in self.sockets:
            listening.close()

    def join_all(self) -> None:
        while any(process.process.is_alive() for process in self.processes):
            if self.signal_queue:
                self.signal_queue.clear()
                for process in self.processes:
                    process.process.terminate()
            time.sleep(POLL_SECONDS)
        super().join_all()


@contextmanager
def announce_stop(draining: Draining, seconds: float) -> Iterator[None]:
    """While the service lives: SIGTERM first makes /readyz answer 503, and reaches uvicorn only `seconds` later.

    Enter it inside the event loop, after uvicorn has set its signal handlers. A second signal ends the delay.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # in tests: only main threads receive signals
        return
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        if not callable(before):
            signal.signal(number, before)
            signal.raise_signal(number)
        elif draining.begun or not seconds:
            draining.begun = True
            before(number, frame)
        else:
            draining.begun = True
            log.info("told to stop: /readyz answers 503 now, and the port closes in %g seconds", seconds)
            loop.call_soon_threadsafe(loop.call_later, seconds, before, number, frame)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
