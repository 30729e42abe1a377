"""Decoding where it does no harm: ordinary images here, suspects in processes that have limits and can be ended.

A thread can't be killed, and a hole in a decoder is a hole in its process.
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
from app.image.policy import Preprocessing, decode
from app.image.sandbox import DecoderProcess, Ended
from app.image.suspects import is_suspect
from app.settings import Settings

log = logging.getLogger("uvicorn.error")

# By the clock a decoder may take longer, since others use the processor too.
CLOCK_FACTOR, CLOCK_SECONDS = 4, 2.0
# A service that is shown one GIF a day holds no memory for it.
IDLE_SECONDS = 60.0
# What leaks in a decoder goes with its process.
IMAGES_OF_A_PROCESS = 1000
_REFUSAL_BYTES = 2**16
_REFUSALS = {kind.code: kind for kind in ImageError.__subclasses__()}
_OUT_OF_TIME = (-signal.SIGPROF, -signal.SIGXCPU)
_OUT_OF_CLOCK = (None, -signal.SIGALRM)


class Decoder:
    """`decode` as in `image`, with suspects in up to `concurrency` processes of their own.

    They start when the first suspect comes, wait for the next, and are replaced when they die. Safe in several threads.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clock_seconds = max(CLOCK_FACTOR * settings.decode_seconds, CLOCK_SECONDS)
        self._places = BoundedSemaphore(settings.concurrency)
        self._lock = Lock()
        self._idle: list[DecoderProcess] = []
        self._closed = False
        self._said = False

    def decode(self, data: bytes, to: Preprocessing, *, max_bytes: int, max_pixels: int, refuse_blank: bool) -> ImageU8:
        """Pixels `[height, width, channels]`. Raises what `image.decode` raises; `DamagedImage` also where a decoder
        took too long or died, and `Unavailable` where none can be started."""
        formats = self._settings.formats
        if len(data) > max_bytes or not is_suspect(data, formats):
            return decode(
                data, to, max_bytes=max_bytes, max_pixels=max_pixels, formats=formats, refuse_blank=refuse_blank
            )
        asked = {
            "to": asdict(to),
            "max_bytes": max_bytes,
            "max_pixels": max_pixels,
            "formats": formats,
            "refuse_blank": refuse_blank,
            "seconds": self._settings.decode_seconds,
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
            process = self._take()  # once more, if it had gone for want of work just now
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
            seconds = self._clock_seconds if by_clock else self._settings.decode_seconds
            took = f"took more than {seconds:g} s {'by the clock' if by_clock else 'of the processor'}"
            log.warning("the decoder of an image of %d bytes %s, and was ended", len(data), took)
            raise DamagedImage(f"Decoding the image {took}, which is all it may. Send an ordinary JPEG or PNG of it.")
        log.warning("the decoder of an image of %d bytes died (%s)", len(data), ended)
        raise DamagedImage("The image is damaged: its decoder died of it. Send an ordinary JPEG or PNG of it.")

    def _take(self) -> DecoderProcess:
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.is_alive():
                    return process
                process.end()
        try:
            process = DecoderProcess(self._settings.decode_mib, IDLE_SECONDS, heic=self._settings.heic)
        except (OSError, Ended) as problem:
            log.error("no decoder process can be started: %s", problem)
            raise Unavailable("No process can be started to decode the image in. Try again in a moment.") from None
        if not process.confined and not self._said:
            self._said = True
            log.warning("decoder processes can't give up system calls on this machine; see SECURITY.md")
        return process

    def _give_back(self, process: DecoderProcess) -> None:
        with self._lock:
            if not self._closed and process.images < IMAGES_OF_A_PROCESS:
                self._idle.append(process)
                return
        process.end()

    def close(self) -> None:
        """End the processes that wait; those at work end with their image."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()


def _refusal(kind: int, answer: bytearray) -> ImageError:
    """What the decoder said, if that is one of the refusals that there are."""
    with suppress(ValueError, KeyError, TypeError):
        if kind == REFUSED:
            said = json.loads(answer)
            return _REFUSALS[said["code"]](str(said["detail"]))
    return DamagedImage("The image is damaged: its decoder gave no answer to it. Send an ordinary JPEG or PNG of it.")
