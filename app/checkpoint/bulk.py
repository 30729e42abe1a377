"""Many images to embeddings, as fast as the encoder goes: read and decode in threads, embed in batches.

The one way for commands and for training. The service's pipeline is another: it decodes strangers' uploads in
processes of their own, and a request waits for its turn.
"""

import hashlib
import itertools
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
from app.image.policy import SERVED_FORMATS, Preprocessing, decode

BATCH = 32
# The operator's own files may be large. With more pixels than this, Pillow refuses by itself.
MAX_BYTES, MAX_PIXELS = 2**30, 178_956_970

Key = TypeVar("Key")


@dataclass(frozen=True)
class Item(Generic[Key]):
    """One image: the caller's key, the sha256 of its bytes, the id under which it is kept, if it is; and what is wrong
    with it, its pixels `[H, W, C]`, or its embedding `[D]`."""

    key: Key
    sha256: str
    original_id: str | None = None
    problem: DiptychError | None = None
    pixels_HWC: ImageU8 | None = None
    embedding_D: EmbeddingsF32 | None = None


def threads() -> int:
    return os.cpu_count() or 1


def decode_all(
    images: Iterable[tuple[Key, Callable[[], bytes]]],
    preprocessing: Preprocessing,
    *,
    skip: Callable[[Key, str], bool] = lambda key, sha256: False,
    keep: Callable[[bytes], str | None] = lambda data: None,
    formats: tuple[str, ...] = SERVED_FORMATS,
    refuse_blank: bool = True,
) -> Iterator[Item[Key]]:
    """Every image, in order, with its pixels or what is wrong with it; with neither where `skip(key, sha256)`.

    Each image is a key and a function that reads its bytes, which may raise `OSError` or `ImageError`. Bytes are held
    only until they are decoded, and at most a few batches of pixels wait; `keep` gets the bytes of images that can be
    decoded, and returns their id.
    """

    def decode_one(key: Key, read_bytes: Callable[[], bytes]) -> Item[Key]:
        try:
            data = read_bytes()
        except OSError as problem:
            return Item(key, "", problem=ImageError(f"The file can't be read: {problem.strerror}."))
        except ImageError as problem:
            return Item(key, "", problem=problem)
        sha256 = hashlib.sha256(data).hexdigest()
        if skip(key, sha256):
            return Item(key, sha256)
        limits = {"max_bytes": MAX_BYTES, "max_pixels": MAX_PIXELS}
        try:
            pixels_HWC = decode(data, preprocessing, **limits, formats=formats, refuse_blank=refuse_blank)
        except ImageError as problem:
            return Item(key, sha256, problem=problem)
        return Item(key, sha256, keep(data), pixels_HWC=pixels_HWC)

    waiting: deque[Future[Item[Key]]] = deque()
    with ThreadPoolExecutor(threads(), thread_name_prefix="decode") as pool:
        try:
            for key, read_bytes in images:
                waiting.append(pool.submit(decode_one, key, read_bytes))
                if len(waiting) > 2 * BATCH:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def embed_all(encoder: Encoder, items: Iterable[Item[Key]]) -> Iterator[Item[Key]]:
    """Items of `decode_all`, in order, with embeddings instead of pixels."""
    unembedded = iter(items)
    while batch := list(itertools.islice(unembedded, BATCH)):
        images = [item.pixels_HWC for item in batch if item.pixels_HWC is not None]
        embeddings = iter(encoder.embed(np.stack(images)) if images else ())
        for item in batch:
            embedding_D = None if item.pixels_HWC is None else next(embeddings)
            yield replace(item, pixels_HWC=None, embedding_D=embedding_D)
