"""The scheduler of jobs that run beside the requests, in threads of their own."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from app.errors import DiptychError

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
STOP_SECONDS = 3.0


@dataclass(frozen=True)
class Job:
    """`work` may return False: there was nothing to do, and whether the job last failed stays as it was."""

    name: str
    work: Callable[[], object]
    every_seconds: float = 0.0  # at most this often, and once a tick
    once: bool = False  # until it succeeds, or has nothing to do


class Housekeeping:
    """Runs the jobs of each thread in turn, again and again, until it is closed.

    A job that fails runs again a tick later, and is logged when the reason changes. `at_end` runs last of all, unless
    a thread is still busy.
    """

    def __init__(self, threads: Mapping[str, Sequence[Job]], at_end: Job, stopping: threading.Event) -> None:
        self._at_end = at_end
        self._stopping = stopping
        self._threads = [
            threading.Thread(target=self._run, args=(jobs,), name=f"housekeeping-{name}", daemon=True)
            for name, jobs in threads.items()
        ]
        self._failures: dict[str, str] = {}  # by job, the reason; empty where its last run succeeded

    @property
    def failing(self) -> dict[str, bool]:
        """For each job that has run, whether its last run failed."""
        return {name: bool(reason) for name, reason in list(self._failures.items())}

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop every thread, then run `at_end`. A second call does nothing."""
        if self._threads[0].ident is None or self._stopping.is_set():
            return
        self._stopping.set()
        until = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0, until - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            self._run_job(self._at_end)

    def _run(self, jobs: Sequence[Job]) -> None:
        due = dict.fromkeys(jobs, 0.0)  # by the monotonic clock
        while not self._stopping.is_set():
            for job, at in list(due.items()):
                if self._stopping.is_set():
                    return
                if time.monotonic() >= at:
                    due[job] = time.monotonic() + job.every_seconds
                    finished = self._run_job(job)
                    if job.once and finished:
                        del due[job]
            self._stopping.wait(TICK_SECONDS)

    def _run_job(self, job: Job) -> bool:
        """Whether it succeeded or had nothing to do."""
        try:
            if job.work() is False:
                return True
            reason = ""
        except DiptychError as problem:
            reason = f"{problem.code}: {problem.detail}"
        except Exception as problem:
            reason = repr(problem)
            if self._failures.get(job.name) != reason:
                log.exception("housekeeping (%s) failed and will be tried again", job.name)
        if reason != self._failures.get(job.name, ""):
            log.warning("housekeeping (%s): %s", job.name, reason or "works again")
        self._failures[job.name] = reason
        return not reason
