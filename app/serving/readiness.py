"""Whether the service can do what it is there for, check by check: for /readyz, and for Prometheus."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.database.sqlite import SQLite
from app.database.transactions import SCHEMA
from app.errors import ModelMismatch, StorageUnavailable, Unavailable
from app.gallery.encoders import find_model_key
from app.serving.resources import Resources


@dataclass(frozen=True)
class Check:
    """One thing that has to be so. `detail` says what was found, `problem` what is wrong if something is."""

    name: str
    detail: str
    problem: Unavailable | None = None


@dataclass(frozen=True)
class _Seen:
    """What one look into the database showed: a server that does not answer is waited for once."""

    schema: str | None = None
    moved: Unavailable | None = None
    problem: Unavailable | None = None


def checks(resources: Resources) -> list[Check]:
    """All of them, each made now; what is first is what a caller should be told first."""
    seen = _look(resources)
    return [
        _made("encoder", lambda: _encoder(resources)),
        _made("accepting", lambda: _accepting(resources)),
        _made("gallery", lambda: _gallery(resources, seen)),
        _made("schema", lambda: _schema(seen)),
        _made("model", lambda: _model(resources, seen)),
        _made("images", lambda: _images(resources)),
        _made("disk", lambda: _disk(resources)),
    ]


def _made(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, check())
    except Unavailable as problem:
        return Check(name, problem.detail, problem)


def _look(resources: Resources) -> _Seen:
    moved: Unavailable | None = None
    try:
        with resources.database.read() as connection:
            schema = resources.database.schema(connection)
            try:
                find_model_key(connection, resources.keeper.serving.loaded)
            except ModelMismatch as mismatch:
                moved = Unavailable(mismatch.detail)
            return _Seen(schema, moved)
    except Unavailable as problem:
        return _Seen(problem=problem)


def _encoder(resources: Resources) -> str:
    if not resources.ready:
        raise Unavailable("The encoder is warming up.")
    return "has embedded an image"


def _accepting(resources: Resources) -> str:
    if resources.draining:
        raise Unavailable("The service is stopping: it answers what it has. Ask another one.")
    return "takes requests"


def _gallery(resources: Resources, seen: _Seen) -> str:
    database = resources.database
    if database.trouble is not None:
        raise type(database.trouble)(database.trouble.detail)
    if seen.problem is not None:
        raise seen.problem
    database.is_writable()
    return "can be read and written"


def _schema(seen: _Seen) -> str:
    if seen.problem is not None:
        raise seen.problem
    if seen.schema != SCHEMA:
        raise Unavailable(
            f"The gallery has schema {seen.schema}, and this version of Diptych has {SCHEMA}: another version migrated "
            "it. Start the service again, with that version."
        )
    return f"is {SCHEMA}, as it should be"


def _model(resources: Resources, seen: _Seen) -> str:
    keeper = resources.keeper
    if keeper.stranded is not None:
        raise type(keeper.stranded)(keeper.stranded.detail)
    if (wrong := seen.problem or seen.moved) is not None:
        raise wrong
    return f"{keeper.serving.model_id} is the gallery's"


def _images(resources: Resources) -> str:
    trouble = resources.originals.trouble
    if trouble is not None:
        raise type(trouble)(trouble.detail)
    return "are kept" if resources.originals.keeps else "are not kept"


def _disk(resources: Resources) -> str:
    least = resources.settings.min_free_bytes
    free = {place: bytes_free(path) for place, path in places(resources)}
    for place, left in free.items():
        if left < least:
            raise StorageUnavailable(
                f"The disk with the {PLACES[place]} has {_mib(left)} left, and {_mib(least)} are needed; make room "
                "on it."
            )
    return "; ".join(f"{PLACES[place]}: {_mib(left)} left" for place, left in free.items()) or "nothing is kept here"


PLACES = {"gallery": "gallery's database", "images": "kept images"}


def places(resources: Resources) -> Iterator[tuple[str, Path]]:
    """What takes room on this machine, and where."""
    if isinstance(resources.database, SQLite):
        yield "gallery", resources.database.path.parent
    if resources.settings.keep_images == "yes":
        yield "images", resources.settings.data_dir


def bytes_free(place: Path) -> int:
    """To an ordinary user. What is not there yet will be made where its nearest folder is. Raises `StorageUnavailable`
    where that can't be looked at."""
    there = next((folder for folder in (place, *place.absolute().parents) if folder.exists()), place)
    try:
        disk = os.statvfs(there)
    except OSError as problem:
        raise StorageUnavailable(f"{place} can't be looked at: {problem.strerror}.") from None
    return disk.f_bavail * disk.f_frsize


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
