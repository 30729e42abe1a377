"""Decoding without risk to the service: ordinary images in this process, suspects in processes that can be killed.

A thread can't be killed, and a security hole in a decoder is a hole in its process.
"""

import json
import logging
import signal
from contextlib import suppress
from dataclasses import asdict
from threading import BoundedSemaphore, Lock

import numpy as np

from app.arrays import ImageU8
from app.errors import DamagedImage, ImageError, Unavailable
from app.image.child import PIXELS, REFUSED
from app.image.policy import HEIF, Preprocessing, decode
from app.image.sandbox import DecoderProcess, Ended
from app.image.suspects import is_suspect

log = logging.getLogger(__name__)

# Measured by the clock a decoder may take longer, since others use the processor too.
CLOCK_FACTOR, CLOCK_SECONDS = 4, 2.0
# A service that gets one GIF a day should not hold memory for it all day.
IDLE_SECONDS = 60.0
# A process is replaced after so many images, which bounds what a leak in a decoder can hold.
IMAGES_OF_A_PROCESS = 1000
ORDINARY = "Save it as an ordinary JPEG or PNG and send that."
_REFUSAL_BYTES = 2**16
_REFUSALS = {kind.code: kind for kind in ImageError.__subclasses__()}
_OUT_OF_TIME = (-signal.SIGPROF, -signal.SIGXCPU)
_OUT_OF_CLOCK = (None, -signal.SIGALRM)


class Decoder:
    """`policy.decode`, with suspects in up to `processes` decoder processes.

    They start when the first suspect arrives, wait for the next one, and are replaced when they die. An image may take
    `seconds` of processor time and `mib` MiB of memory. Safe to call from several threads.
    """

    def __init__(self, *, formats: tuple[str, ...], processes: int, seconds: float, mib: int) -> None:
        self._formats = formats
        self._seconds = seconds
        self._mib = mib
        self._clock_seconds = max(CLOCK_FACTOR * seconds, CLOCK_SECONDS)
        self._places = BoundedSemaphore(processes)
        self._lock = Lock()
        self._idle: list[DecoderProcess] = []
        self._closed = False
        self._warned = False

    def decode(self, data: bytes, to: Preprocessing, *, max_bytes: int, max_pixels: int, refuse_blank: bool) -> ImageU8:
        """Pixels `[height, width, channels]`. Raises what `policy.decode` raises, `DamagedImage` also where a decoder
        took too long or died, and `Unavailable` where none can be started."""
        if len(data) > max_bytes or not is_suspect(data, self._formats):
            return decode(
                data, to, max_bytes=max_bytes, max_pixels=max_pixels, formats=self._formats, refuse_blank=refuse_blank
            )
        asked = {
            "to": asdict(to),
            "max_bytes": max_bytes,
            "max_pixels": max_pixels,
            "formats": self._formats,
            "refuse_blank": refuse_blank,
            "seconds": self._seconds,
            "clock_seconds": self._clock_seconds,
        }
        shape = (to.height, to.width, to.channels)
        size = to.height * to.width * to.channels
        with self._places:
            kind, answer = self._ask(json.dumps(asked).encode(), data, max(size, _REFUSAL_BYTES))
        if kind == PIXELS and len(answer) == size:
            return np.frombuffer(answer, dtype=np.uint8).reshape(shape)
        raise _refusal(kind, answer)

    def _ask(self, asked: bytes, data: bytes, most: int) -> tuple[int, bytearray]:
        ended = Ended(0)
        for _ in range(2):
            if ended.status != 0:
                break
            process = self._take()  # a second try, if the process had ended for want of work
            try:
                answer = process.ask(asked, data, seconds=self._clock_seconds, most=most)
            except Ended as problem:
                process.end()
                ended = problem
            except BaseException:
                process.end()
                raise
            else:
                self._give_back(process)
                return answer
        if ended.status in _OUT_OF_TIME or ended.status in _OUT_OF_CLOCK:
            by_clock = ended.status in _OUT_OF_CLOCK
            limit = f"{self._clock_seconds:g} s" if by_clock else f"{self._seconds:g} s of processor time"
            log.warning("decoding an image of %d bytes took more than %s; its process was killed", len(data), limit)
            raise DamagedImage(f"Decoding the image took more than {limit}, which is the limit. {ORDINARY}")
        log.warning("decoding an image of %d bytes crashed its process (%s)", len(data), ended)
        raise DamagedImage(f"The image is damaged: it crashed its decoder. {ORDINARY}")

    def _take(self) -> DecoderProcess:
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.is_alive():
                    return process
                process.end()
        try:
            process = DecoderProcess(self._mib, IDLE_SECONDS, heic=HEIF in self._formats)
        except (OSError, Ended) as problem:
            log.error("a decoder process could not be started: %s", problem)
            raise Unavailable("The image could not be decoded: no process could be started. Try again.") from None
        if not process.confined and not self._warned:
            self._warned = True
            log.warning("on this machine the system calls of decoder processes can't be restricted; see SECURITY.md")
        return process

    def _give_back(self, process: DecoderProcess) -> None:
        with self._lock:
            if not self._closed and process.images < IMAGES_OF_A_PROCESS:
                self._idle.append(process)
                return
        process.end()

    def close(self) -> None:
        """End the idle processes; a busy one ends after its image."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()


def _refusal(kind: int, answer: bytearray) -> ImageError:
    """The refusal that a decoder answered, if it is one that exists."""
    with suppress(ValueError, KeyError, TypeError):
        if kind == REFUSED:
            refusal = json.loads(answer)
            return _REFUSALS[refusal["code"]](str(refusal["detail"]))
    return DamagedImage(f"The image is damaged: its decoder gave no answer. {ORDINARY}")
