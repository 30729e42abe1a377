"""The end: told to stop, the service says that it is not ready, then takes no more, answers what it has, and ends.

uvicorn does most of it: at SIGTERM it closes the port and idle connections, and waits for the others. What it leaves
out is the time before: a load balancer asks now and then who is ready, and sends to this service until it has asked
again.
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

from app.serving.resources import Resources

log = logging.getLogger("uvicorn.error")

LOOK_SECONDS = 0.1


class Workers(Multiprocess):
    """uvicorn's parent of several workers, which would hold the port open, with nobody to answer, until all are gone;
    and would not pass a second signal on."""

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
            time.sleep(LOOK_SECONDS)
        super().join_all()


@contextmanager
def announced(resources: Resources, seconds: float) -> Iterator[None]:
    """For the life of a service: at SIGTERM /readyz says so, and uvicorn hears of it only `seconds` later.

    To be entered inside the event loop, once uvicorn listens to signals. Another signal meanwhile ends the wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # as tests run it; signals are for main threads
        return
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        if not callable(before):
            signal.signal(number, before)
            signal.raise_signal(number)
        elif resources.draining or not seconds:
            resources.draining = True
            before(number, frame)
        else:
            resources.draining = True
            log.info("told to stop: not ready from now on, and no connections are taken in %g seconds", seconds)
            loop.call_soon_threadsafe(loop.call_later, seconds, before, number, frame)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
