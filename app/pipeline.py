"""Uploads to embeddings: read, decode, embed, with a bound on how many requests do so at once."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import BoundedSemaphore

import numpy as np
from fastapi import UploadFile

from app.decoder import Decoder
from app.encoder import Encoder
from app.errors import ImageError, Overloaded, TooManyBytes
from app.image import ImageU8
from app.matching import EmbeddingsF32
from app.metrics import Metrics
from app.settings import Settings

# Images that go through the encoder together; more would cost memory and gain nothing on a CPU.
BATCH = 8


@dataclass(frozen=True)
class Embedded:
    """One upload's embedding `[D]` and the sha256 of its bytes."""

    embedding_D: EmbeddingsF32
    sha256: str


class Pipeline:
    """bytes -> image -> embedding, for `concurrency` requests at a time; up to `queue_length` wait their turn.

    The work has threads of its own, so that the memory which an allocator keeps for each thread is bounded too.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._decoder = Decoder(settings)
        self._workers = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="embed")
        self._places = BoundedSemaphore(settings.concurrency + settings.queue_length)

    def embed(self, encoder: Encoder, *uploads: tuple[str, UploadFile]) -> list[Embedded]:
        """Embeddings of (field, upload) pairs. Raises the first `ImageError`, naming its field."""
        results = self.embed_each(encoder, [upload for _, upload in uploads])
        for (field, _), result in zip(uploads, results, strict=True):
            if isinstance(result, ImageError):
                result.extra.setdefault("field", field)
                raise result
        return [result for result in results if isinstance(result, Embedded)]

    def embed_each(self, encoder: Encoder, uploads: Sequence[UploadFile]) -> list[Embedded | ImageError]:
        """For each upload its embedding, or what is wrong with it. Raises `Overloaded`."""
        results = self._in_turn(encoder, uploads)
        for result in results:
            if isinstance(result, ImageError):
                self._metrics.refusals.labels(result.code).inc()
        return results

    def _embed_batch(self, encoder: Encoder, uploads: Sequence[UploadFile]) -> Iterator[Embedded | ImageError]:
        decoded = []
        for upload in uploads:
            with self._metrics.stages.labels("decode").time():
                decoded.append(self._decode(encoder, upload))
        images = [image for image in decoded if not isinstance(image, ImageError)]
        embeddings_ND: Iterator[EmbeddingsF32] = iter(())
        if images:
            with self._metrics.stages.labels("embed").time():
                embeddings_ND = iter(encoder.embed(np.stack([pixels for pixels, _ in images])))
        for image in decoded:
            yield image if isinstance(image, ImageError) else Embedded(next(embeddings_ND), image[1])

    def _decode(self, encoder: Encoder, upload: UploadFile) -> tuple[ImageU8, str] | ImageError:
        limit = self._settings.max_image_bytes
        try:
            if upload.size is not None and upload.size > limit:
                raise TooManyBytes(f"The image has {upload.size:,} bytes; at most {limit:,} are allowed.")
            data = upload.file.read(limit + 1)
            pixels = self._decoder.decode(
                data,
                encoder.preprocessing,
                max_bytes=limit,
                max_pixels=self._settings.max_image_pixels,
                refuse_blank=True,
            )
        except ImageError as problem:
            return problem
        return pixels, hashlib.sha256(data).hexdigest()

    def _in_turn(self, encoder: Encoder, uploads: Sequence[UploadFile]) -> list[Embedded | ImageError]:
        if not self._places.acquire(blocking=False):
            raise Overloaded("Too many requests are waiting for the encoder. Try again in a moment.")
        asked = time.perf_counter()

        def work_begun() -> list[Embedded | ImageError]:
            self._metrics.stages.labels("wait").observe(time.perf_counter() - asked)
            return self._embed_all(encoder, uploads)

        try:
            work = self._workers.submit(work_begun)
            try:
                return work.result(self._settings.queue_seconds)
            except TimeoutError:
                if work.cancel():
                    raise Overloaded("The encoder was busy for too long. Try again in a moment.") from None
                return work.result()  # its turn has come; what is begun is finished
        finally:
            self._places.release()

    def _embed_all(self, encoder: Encoder, uploads: Sequence[UploadFile]) -> list[Embedded | ImageError]:
        results: list[Embedded | ImageError] = []
        for start in range(0, len(uploads), BATCH):
            results += self._embed_batch(encoder, uploads[start : start + BATCH])
        return results

    def close(self) -> None:
        self._workers.shutdown(cancel_futures=True)
        self._decoder.close()
