"""Many images to embeddings, as fast as the encoder goes: read and decode in threads, embed in batches."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from app.arrays import EmbeddingsF32, ImageU8
from app.checkpoint.encoder import Encoder
from app.errors import DiptychError, ImageError
from app.image.policy import SERVED_FORMATS, decode

BATCH = 32
# One's own files, however large; beyond this many pixels Pillow refuses by itself.
MAX_BYTES, MAX_PIXELS = 2**30, 178_956_970

Key = TypeVar("Key")


@dataclass(frozen=True)
class Item(Generic[Key]):
    """One image on its way: who asks for it, the sha256 of its bytes, where they are kept, if they are; what is wrong
    with it, or its embedding."""

    key: Key
    sha256: str
    original_id: str | None = None
    problem: DiptychError | None = None
    embedding_D: EmbeddingsF32 | None = None


def threads() -> int:
    return os.cpu_count() or 1


def embed_all(
    encoder: Encoder,
    images: Iterable[tuple[Key, Callable[[], bytes]]],
    skip: Callable[[Key, str], bool] = lambda key, sha256: False,
    keep: Callable[[bytes], str | None] = lambda data: None,
    formats: tuple[str, ...] = SERVED_FORMATS,
) -> Iterator[Item[Key]]:
    """Every image, in order, with its embedding or what is wrong with it; neither where `skip(key, sha256)`.

    Bytes are held only while they are decoded; `keep` takes those of images that can be.
    """

    def prepared(key: Key, read: Callable[[], bytes]) -> tuple[Item[Key], ImageU8 | None]:
        try:
            data = read()
        except OSError as problem:
            return Item(key, "", problem=ImageError(f"It can't be read: {problem.strerror}.")), None
        sha256 = hashlib.sha256(data).hexdigest()
        if skip(key, sha256):
            return Item(key, sha256), None
        try:
            pixels = decode(
                data,
                encoder.preprocessing,
                max_bytes=MAX_BYTES,
                max_pixels=MAX_PIXELS,
                formats=formats,
                refuse_blank=True,
            )
        except ImageError as problem:
            return Item(key, sha256, problem=problem), None
        return Item(key, sha256, keep(data)), pixels

    waiting: deque[Future[tuple[Item[Key], ImageU8 | None]]] = deque()
    with ThreadPoolExecutor(threads(), thread_name_prefix="decode") as pool:
        try:
            batch: list[tuple[Item[Key], ImageU8 | None]] = []
            for key, read in images:
                waiting.append(pool.submit(prepared, key, read))
                if len(waiting) > 2 * BATCH:
                    batch.append(waiting.popleft().result())
                if len(batch) == BATCH:
                    yield from _embedded(encoder, batch)
                    batch = []
            batch += [one.result() for one in waiting]
            for start in range(0, len(batch), BATCH):
                yield from _embedded(encoder, batch[start : start + BATCH])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _embedded(encoder: Encoder, batch: list[tuple[Item[Key], ImageU8 | None]]) -> Iterator[Item[Key]]:
    images = [pixels for _, pixels in batch if pixels is not None]
    embeddings = iter(encoder.embed(np.stack(images)) if images else ())
    for item, pixels in batch:
        if pixels is None:
            yield item
        else:
            yield replace(item, embedding_D=next(embeddings))
