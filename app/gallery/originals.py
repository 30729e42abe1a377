"""Kept images: the bytes as they were uploaded, each under an id of its own, in a directory or a bucket.

Off by default: an embedding shows little of an image, the image shows all. An id says which kind of store holds the
image and which gallery it was put there for: several galleries may share a bucket, and none deletes what it can't know
to be its own. An image is on disk before the reference that names it is committed, and deleted after its reference is
gone: `leftover` remembers what a crash in between would forget.
"""

import itertools
import logging
import os
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

from app.database.tables import about, leftover, reference
from app.database.transactions import Database
from app.errors import StorageUnavailable, UsageError

log = logging.getLogger("uvicorn.error")

DIRECTORY = "originals"
# Images at a time that are compared with the database, or deleted.
CHUNK = 1000
ID = re.compile(r"(?P<store>file|s3)-(?P<gallery>[0-9a-f]{16})-[0-9a-f]{32}")


class Store(ABC):
    """Where images are. Raises `StorageUnavailable` where it can't be reached or written to."""

    name: str

    def new_id(self, gallery_id: str) -> str:
        return f"{self.name}-{gallery_id}-{uuid.uuid4().hex}"

    @abstractmethod
    def put(self, original_id: str, data: bytes) -> None:
        """On disk when this returns."""

    @abstractmethod
    def get(self, original_id: str) -> bytes | None:
        """None if it is not there."""

    @abstractmethod
    def delete(self, original_ids: Iterable[str]) -> None:
        """What is gone already is no error."""

    @abstractmethod
    def all(self, gallery_id: str) -> Iterator[str]:
        """The ids of what was put there for this gallery, of half-written ones too."""


class Directory(Store):
    """Files that only their owner can read, spread over 256 directories."""

    name = "file"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, original_id: str) -> Path:
        """Raises `StorageUnavailable` for what is no id: it may lead anywhere."""
        if not ID.fullmatch(original_id):
            raise StorageUnavailable("The gallery's database names a kept image as none is named.")
        return self.directory / original_id[-2:] / original_id

    def put(self, original_id: str, data: bytes) -> None:
        path = self.path(original_id)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            writing = path.with_name(f".{path.name}")
            with os.fdopen(os.open(writing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            writing.replace(path)
            for parent in (path.parent, self.directory, self.directory.parent):
                sync(parent)
        except OSError as problem:
            raise StorageUnavailable(
                f"The image could not be kept ({problem.strerror}), so nothing was enrolled."
            ) from None

    def get(self, original_id: str) -> bytes | None:
        try:
            return self.path(original_id).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise StorageUnavailable(f"A kept image can't be read: {problem.strerror}.") from None

    def delete(self, original_ids: Iterable[str]) -> None:
        for original_id in original_ids:
            try:
                path = self.path(original_id)
                path.unlink(missing_ok=True)
                path.with_name(f".{path.name}").unlink(missing_ok=True)
            except OSError as problem:
                raise StorageUnavailable(f"A kept image can't be deleted: {problem.strerror}.") from None

    def all(self, gallery_id: str) -> Iterator[str]:
        for path in self.directory.glob(f"??/*{self.name}-{gallery_id}-*"):
            yield path.name.removeprefix(".")


class Bucket(Store):
    """Any S3-compatible bucket, by `obstore`; credentials and endpoint come from the usual AWS_... variables."""

    name = "s3"

    def __init__(self, url: str) -> None:
        import obstore  # few have a bucket, and it takes a while to load
        from obstore.store import S3Store

        self._obstore = obstore
        allow_http = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", "")).startswith("http://")
        try:
            self._bucket = S3Store.from_url(
                url, client_options={"allow_http": allow_http, "timeout": "20s"}, retry_config={"max_retries": 2}
            )
        except Exception as problem:  # noqa: BLE001  the library has no base class for what a setting may be wrong in
            raise UsageError(f"DIPTYCH_KEEP_IMAGES can't be {url!r}: {str(problem).splitlines()[0]}") from None

    def put(self, original_id: str, data: bytes) -> None:
        with self._reached("kept, so nothing was enrolled"):
            self._obstore.put(self._bucket, self._key(original_id), data)

    def get(self, original_id: str) -> bytes | None:
        with self._reached("read"):
            try:
                return bytes(self._obstore.get(self._bucket, self._key(original_id)).bytes())
            except FileNotFoundError:
                return None
        raise AssertionError("unreachable")

    def delete(self, original_ids: Iterable[str]) -> None:
        some = [self._key(original_id) for original_id in original_ids]
        if some:
            with self._reached("deleted"), suppress(FileNotFoundError):
                self._obstore.delete(self._bucket, some)

    def all(self, gallery_id: str) -> Iterator[str]:
        with self._reached("listed"):
            for page in self._obstore.list(self._bucket, prefix=gallery_id):
                for entry in page:
                    yield entry["path"].rpartition("/")[2]

    @staticmethod
    def _key(original_id: str) -> str:
        """A folder for each gallery, so that one can be listed without the others."""
        return f"{original_id.split('-')[1]}/{original_id}"

    @staticmethod
    def _reached(what: str) -> "_Reached":
        return _Reached(what)


class _Reached:
    """Names what a bucket refused."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, _: object) -> None:
        if isinstance(problem, Exception) and not isinstance(problem, StorageUnavailable):
            first = (str(problem).splitlines() or [type(problem).__name__])[0][:200]
            raise StorageUnavailable(
                f"An image in the bucket could not be {self._what}. Look at DIPTYCH_KEEP_IMAGES, the AWS_... variables "
                f"and the bucket: {first}"
            ) from None


class Originals:
    """The kept images of a gallery. `keeps` says whether new ones are; what was kept before can always be deleted."""

    def __init__(self, data_dir: Path, keep_images: str, database: Database) -> None:
        with database.read() as connection:
            self._gallery_id = str(connection.scalar(sa.select(about.c.gallery_id)))
        self._database = database
        directory = Directory(data_dir / DIRECTORY)
        self._stores: dict[str, Store] = {directory.name: directory}
        self._new: Store | None = None
        self._suspects: set[str] = set()
        # Why the last image could not be kept; None after one that could.
        self.trouble: StorageUnavailable | None = None
        if keep_images == "yes":
            self._new = directory
        elif keep_images != "no":
            self._new = Bucket(keep_images)
            self._stores[self._new.name] = self._new

    @property
    def keeps(self) -> bool:
        return self._new is not None

    def keep(self, data: bytes) -> str | None:
        """The id under which it is kept from now on; None where none are."""
        if self._new is None:
            return None
        original_id = self._new.new_id(self._gallery_id)
        try:
            self._new.put(original_id, data)
        except StorageUnavailable as problem:
            self.trouble = problem
            raise
        self.trouble = None
        return original_id

    def recover(self) -> None:
        """Where keeping one failed, see whether it works again. Raises `StorageUnavailable` if not."""
        if self.trouble is not None and self._new is not None:
            original_id = self.keep(b"")
            self._new.delete([original_id] if original_id else [])

    def get(self, original_id: str) -> bytes | None:
        """None if it is gone, or in a bucket that the settings don't name."""
        store = self._stores.get(original_id.partition("-")[0])
        return store.get(original_id) if store else None

    def sweep(self) -> int:
        """Delete the images of references that are gone; how many.

        Raises `StorageUnavailable` if some are where the settings no longer lead: they wait, the others do not.
        """
        swept = 0
        for store in self._stores.values():
            here = leftover.c.original_id.startswith(f"{store.name}-")
            while gone := self._left(here, CHUNK):
                store.delete(gone)
                swept += len(gone)
                done = sa.delete(leftover).where(leftover.c.original_id.in_(gone))
                self._database.write(lambda connection, done=done: connection.execute(done))  # type: ignore[misc]
        # Not simply all: since a moment ago there may be more of those that are known.
        elsewhere = sa.and_(*(~leftover.c.original_id.startswith(f"{name}-") for name in self._stores))
        if self._left(elsewhere, 1):
            raise StorageUnavailable(
                "Images of deleted references are in a bucket that DIPTYCH_KEEP_IMAGES does not name, and stay there "
                "until it does."
            )
        return swept

    def _left(self, which: sa.ColumnElement[bool], most: int) -> Sequence[str]:
        with self._database.read() as connection:
            return connection.scalars(sa.select(leftover.c.original_id).where(which).limit(most)).all()

    def sweep_orphans(self) -> int:
        """Delete images of this gallery that no reference names and none named at the last call either; how many.

        One that is new belongs to an enrolment under way; one that stays was left by an interrupted one. No clock is
        asked, since clocks jump.
        """
        suspects: set[str] = set()
        swept = 0
        for store in self._stores.values():
            for some in _chunks(store.all(self._gallery_id)):
                named_by = sa.select(reference.c.original_id).where(reference.c.original_id.in_(some))
                with self._database.read() as connection:
                    orphans = set(some) - set(connection.scalars(named_by))
                store.delete(orphans & self._suspects)
                swept += len(orphans & self._suspects)
                suspects |= orphans - self._suspects
        self._suspects = suspects
        return swept


def _chunks(ids: Iterator[str]) -> Iterator[list[str]]:
    while some := list(itertools.islice(ids, CHUNK)):
        yield some


def sync(path: Path) -> None:
    """What a file holds, or a directory lists, is on disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
