"""Bytes to embeddings: decode and embed, with a bound on how many requests do so at once.

    event loop: `turn` ── a place, or `Overloaded` ──> a worker's thread: `embed`, and what else the request needs

A request is handed to a thread once, and that thread does all its work: each further hand-over would wait for the
interpreter's lock behind the other threads.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

import numpy as np

from app.arrays import EmbeddingsF32, ImageU8
from app.checkpoint.encoder import Encoder
from app.errors import ImageError, Overloaded
from app.image.decoder import Decoder
from app.serving.metrics import Metrics
from app.settings import Settings

# Images that go through the encoder together. More would take memory and gain nothing on a CPU.
BATCH = 8

Answer = TypeVar("Answer")


class Pipeline:
    """bytes -> image -> embedding, for `concurrency` requests at a time; up to `queue_length` more wait for their turn.

    The work has threads of its own: an allocator keeps memory for each thread, so their number bounds that too.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._decoder = Decoder(
            formats=settings.formats,
            processes=settings.concurrency,
            seconds=settings.decode_seconds,
            mib=settings.decode_mib,
        )
        self._workers = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="embed")
        self._places = settings.concurrency + settings.queue_length
        self._taken = 0  # only the event loop changes it

    @property
    def taken(self) -> int:
        """Requests that have a place: being worked on, or waiting."""
        return self._taken

    @property
    def is_full(self) -> bool:
        """Whether a request would be refused now."""
        return self._taken >= self._places

    async def turn(self, work: Callable[[], Answer]) -> Answer:
        """What `work` returns, called by a worker when its turn comes.

        Raises `Overloaded` where there is no place or the turn does not come in time, and what `work` raises.
        """
        if self.is_full:
            raise Overloaded("Too many requests are waiting for the encoder. Try again in a moment.")
        asked = time.perf_counter()

        def work_in_turn() -> Answer:
            self._metrics.waited(time.perf_counter() - asked)
            return work()

        submitted = self._workers.submit(copy_context().run, work_in_turn)
        answer = asyncio.wrap_future(submitted)
        self._taken += 1
        try:
            await asyncio.wait({answer}, timeout=self._settings.queue_seconds)
            if not answer.done() and submitted.cancel():
                raise Overloaded("The encoder was busy for too long. Try again in a moment.")
            return await answer  # work that has begun is finished
        finally:
            self._taken -= 1
            # A future that failed refers to its error, which refers to this frame: break the circle, so that uploads
            # are freed at once.
            del submitted, answer

    def embed(self, encoder: Encoder, **uploads: bytes) -> list[EmbeddingsF32]:
        """Embeddings `[D]` of uploads by field; call it in a turn. Raises the first `ImageError`, naming its field."""
        embeddings: list[EmbeddingsF32] = []
        for field, result in zip(uploads, self.embed_each(encoder, list(uploads.values())), strict=True):
            if isinstance(result, ImageError):
                result.extra.setdefault("field", field)
                try:
                    raise _without_frames(result)
                finally:
                    del result  # its traceback refers to this frame
            embeddings.append(result)
        return embeddings

    def embed_each(self, encoder: Encoder, uploads: Sequence[bytes]) -> list[EmbeddingsF32 | ImageError]:
        """For each upload its embedding `[D]`, or what is wrong with it; call it inside a turn."""
        results: list[EmbeddingsF32 | ImageError] = []
        for start in range(0, len(uploads), BATCH):
            results += self._embed_batch(encoder, uploads[start : start + BATCH])
        for result in results:
            if isinstance(result, ImageError):
                self._metrics.refusals.labels(result.code).inc()
        return results

    def _embed_batch(self, encoder: Encoder, uploads: Sequence[bytes]) -> list[EmbeddingsF32 | ImageError]:
        decoded = []
        for upload in uploads:
            with self._metrics.stage("decode"):
                decoded.append(self._decode(encoder, upload))
        images = [image for image in decoded if not isinstance(image, ImageError)]
        embeddings: list[EmbeddingsF32] = []
        if images:
            with self._metrics.stage("embed"):
                embeddings = list(encoder.embed(np.stack(images)))
        embedded = iter(embeddings)
        return [image if isinstance(image, ImageError) else next(embedded) for image in decoded]

    def _decode(self, encoder: Encoder, upload: bytes) -> ImageU8 | ImageError:
        try:
            return self._decoder.decode(
                upload,
                encoder.preprocessing,
                max_bytes=self._settings.max_image_bytes,
                max_pixels=self._settings.max_image_pixels,
                refuse_blank=True,
            )
        except ImageError as problem:
            return _without_frames(problem)

    def close(self) -> None:
        self._workers.shutdown(cancel_futures=True)
        self._decoder.close()


def _without_frames(problem: ImageError) -> ImageError:
    """The error without the frames that it went through, which would keep the upload until the next collection."""
    problem.__context__ = problem.__cause__ = None
    return problem.with_traceback(None)
