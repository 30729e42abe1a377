"""Whether the service can do what it is there for, check by check: for /readyz, and for Prometheus."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app import models
from app.database import SCHEMA
from app.dependencies import Resources
from app.errors import DiptychError, ModelMismatch, StorageUnavailable, Unavailable
from app.sqlite import SQLite


@dataclass(frozen=True)
class Check:
    """One thing that has to be so. `detail` says what was found, `problem` what is wrong if something is."""

    name: str
    detail: str
    problem: Unavailable | None = None


def checks(resources: Resources) -> list[Check]:
    """All of them, each made now; what is first is what a caller should be told first."""
    return [
        _made(name, check, resources)
        for name, check in (
            ("encoder", _encoder),
            ("accepting", _accepting),
            ("gallery", _gallery),
            ("schema", _schema),
            ("model", _model),
            ("images", _images),
            ("disk", _disk),
        )
    ]


def _made(name: str, check: Callable[[Resources], str], resources: Resources) -> Check:
    try:
        return Check(name, check(resources))
    except Unavailable as problem:
        return Check(name, problem.detail, problem)
    except DiptychError as problem:
        return Check(name, problem.detail, Unavailable(problem.detail))


def _encoder(resources: Resources) -> str:
    if not resources.ready:
        raise Unavailable("The encoder is warming up.")
    return "has embedded an image"


def _accepting(resources: Resources) -> str:
    if resources.draining:
        raise Unavailable("The service is stopping: it answers what it has. Ask another one.")
    return "takes requests"


def _gallery(resources: Resources) -> str:
    database = resources.database
    if database.trouble is not None:
        raise type(database.trouble)(database.trouble.detail)
    with database.read() as connection:
        database.schema(connection)
    database.is_writable()
    return "can be read and written"


def _schema(resources: Resources) -> str:
    with resources.database.read() as connection:
        found = resources.database.schema(connection)
    if found != SCHEMA:
        raise Unavailable(
            f"The gallery has schema {found}, and this version of Diptych has {SCHEMA}: another version migrated it. "
            "Start the service again, with that version."
        )
    return f"is {found}, as it should be"


def _model(resources: Resources) -> str:
    keeper = resources.keeper
    if keeper.stranded is not None:
        raise type(keeper.stranded)(keeper.stranded.detail)
    with resources.database.read() as connection:
        try:
            models.key_of(connection, keeper.serving.loaded)
        except ModelMismatch as mismatch:
            raise Unavailable(mismatch.detail) from None
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
    """To an ordinary user. Raises `StorageUnavailable` where there is no such place."""
    try:
        disk = os.statvfs(place)
    except OSError as problem:
        raise StorageUnavailable(f"{place} can't be looked at: {problem.strerror}.") from None
    return disk.f_bavail * disk.f_frsize


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
