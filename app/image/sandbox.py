"""One decoder process, as its parent sees it: started, asked, and killed when its time is over.

`child` is the other side. The answer is bytes with a length, never objects: a decoder that a hostile image took over
can send wrong pixels, but no more of them than were asked for.
"""

import fcntl
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from app.image.child import ANSWER, CONFINED, REQUEST

# Python and Pillow take a tenth of a second to start; a busy machine takes longer.
START_SECONDS = 20.0
PIPE_BYTES = 2**20


class Ended(Exception):
    """The process ended without an answer. `status` as in `subprocess`; None where it took too long."""

    def __init__(self, status: int | None) -> None:
        super().__init__(f"status {status}")
        self.status = status


class DecoderProcess:
    """Decodes one image at a time. Not safe to call from several threads."""

    def __init__(self, mib: int, idle_seconds: float, *, heic: bool) -> None:
        """Start the process, with `mib` MiB for an image. It ends by itself after `idle_seconds` without work.

        Raises `OSError` or `Ended` where it can't be started.
        """
        self.images = 0
        self._process = subprocess.Popen(  # noqa: S603  an installed module, with numbers as arguments
            [
                *(sys.executable, "-S", "-P", "-m", "app.image.child"),
                *(str(mib), str(idle_seconds), *(["heic"] if heic else [])),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            bufsize=0,
            start_new_session=True,  # Ctrl-C goes to the service, which then ends its decoders
        )
        assert self._process.stdin  # noqa: S101  both are pipes
        assert self._process.stdout  # noqa: S101
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._writable, self._readable = select.poll(), select.poll()
        self._writable.register(self._to, select.POLLOUT)
        self._readable.register(self._from, select.POLLIN)
        for pipe in (self._to, self._from):
            os.set_blocking(pipe, False)
            if sys.platform == "linux":
                with suppress(OSError):  # the kernel limits how much a user may hold in pipes
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            # Whether the process gave up the system calls that it does not need.
            self.confined = self._read(len(CONFINED), time.monotonic() + START_SECONDS) == CONFINED
        except Ended:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, asked: bytes, data: bytes, *, seconds: float, most: int) -> tuple[int, bytearray]:
        """Kind and bytes of the answer, at most `most` of them. Raises `Ended` where the process dies, answers more
        than that, or takes more than `seconds` by the clock."""
        self.images += 1
        deadline = time.monotonic() + seconds
        for part in (REQUEST.pack(len(asked), len(data)) + asked, data):
            self._write(part, deadline)
        kind, length = ANSWER.unpack(self._read(ANSWER.size, deadline))
        if length > most:
            raise Ended(self.end())
        return kind, self._read(length, deadline)

    def end(self) -> int:
        """Kill the process if it is alive; its status."""
        self._process.kill()
        status = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return status

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._writable, deadline)
            try:
                view = view[os.write(self._to, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise Ended(self._own_status()) from None

    def _read(self, length: int, deadline: float) -> bytearray:
        answer = bytearray()
        while len(answer) < length:
            self._wait(self._readable, deadline)
            more = os.read(self._from, length - len(answer))
            if not more:
                raise Ended(self._own_status())
            answer += more
        return answer

    def _wait(self, poll: select.poll, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(1000 * left):
            raise Ended(None)

    def _own_status(self) -> int:
        """The status of a process that closed its pipes; it gets a second to end by itself."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(1)
        return self.end()


def _environment() -> dict[str, str]:
    """What the child needs to import what this process can. No settings, no passwords, no keys."""
    return {
        **{name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",  # each arena counts as 64 MiB of address space
        "MALLOC_MMAP_THRESHOLD_": str(2**20),  # freed large blocks go back to the system at once
    }
