"""Turns: who waits, who is refused, and what is finished."""

import asyncio
import gc
import sys
import threading
from contextlib import suppress

import pytest

from app.checkpoint.encoder import Encoder
from app.checkpoint.store import load_checkpoint
from app.errors import ImageError, Overloaded
from app.serving.metrics import Metrics
from app.serving.pipeline import Pipeline
from app.settings import Settings
from tests.files import GOLDEN


def pipeline(**settings: float) -> Pipeline:
    return Pipeline(Settings(**{"concurrency": 1, "queue_length": 1, **settings}), Metrics())


def test_who_finds_no_place_is_refused_at_once_and_the_others_are_answered() -> None:
    """One works, one waits, the third is sent away; afterwards there is room again."""
    turns, go = pipeline(), threading.Event()

    async def story() -> None:
        first, second = (asyncio.ensure_future(turns.turn(lambda: go.wait(5))) for _ in range(2))
        await asyncio.sleep(0)
        assert turns.is_full
        with pytest.raises(Overloaded):
            await turns.turn(lambda: True)
        go.set()
        assert await first and await second
        assert not turns.is_full
        assert await turns.turn(lambda: 7) == 7

    asyncio.run(story())
    turns.close()


def test_who_waits_too_long_is_refused_and_what_is_begun_is_finished() -> None:
    """The wait ends, the work does not."""
    turns, begun, go = pipeline(queue_seconds=0.1), threading.Event(), threading.Event()

    def work() -> bool:
        begun.set()
        return go.wait(5)

    async def story() -> None:
        first = asyncio.ensure_future(turns.turn(work))
        await asyncio.to_thread(begun.wait, 5)
        done: list[int] = []
        with pytest.raises(Overloaded):
            await turns.turn(lambda: done.append(1))
        assert not first.done()
        go.set()
        assert await first
        await turns.turn(lambda: None)
        assert not done  # refused means not done

    asyncio.run(story())
    turns.close()


def test_what_the_work_raises_is_raised_and_gives_its_place_back() -> None:
    """Also a hundred times."""
    turns = pipeline()

    def work() -> None:
        raise ValueError("no")

    async def story() -> None:
        for _ in range(100):
            with pytest.raises(ValueError, match="no"):
                await turns.turn(work)
        assert not turns.is_full

    asyncio.run(story())
    turns.close()


def test_refused_uploads_are_gone_with_their_answer() -> None:
    """An error refers to the frames that it went through, and these to the uploads: it lets go of them."""
    turns, encoder = pipeline(), Encoder(load_checkpoint(GOLDEN))
    uploads = {"image_a": b"no image", "image_b": b"\x89PNG\r\n\x1a\n"}
    before = [sys.getrefcount(data) for data in uploads.values()]

    async def story() -> None:
        with suppress(ImageError):
            await turns.turn(lambda: turns.embed(encoder, **uploads))

    gc.disable()
    try:
        asyncio.run(story())
        assert [sys.getrefcount(data) for data in uploads.values()] == before
    finally:
        gc.enable()
    turns.close()
