"""What a built index leaves on disk, so that a restart need not build it again: one file for each collection.

A file that is incomplete, or of another history, another encoder or another version of FAISS, is ignored, never
repaired. It is named after its collection's key, and starts with a line of JSON that says what it holds.
"""

import fcntl
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import faiss

from app.files import replacing
from app.search.vectors import Approximate

log = logging.getLogger(__name__)

FORMAT = 2
# A temporary file that was not written to for this long was left by a process that is gone.
ABANDONED_SECONDS = 600
# After a failure: another attempt at once would fill the disk and fail again.
AGAIN_AFTER_SECONDS = 300


@dataclass(frozen=True)
class Moment:
    """A place in the sequence of changes; the token tells it from the same place in another history.

    A model that was deleted and registered again has another key, so that what was saved under the old key is not used.
    """

    sequence: int
    token: str
    model_key: int


@dataclass(frozen=True)
class Header:
    """The first line of a snapshot."""

    model_id: str
    moment: Moment
    built_with: int
    count: int
    sha256: str
    format: int = FORMAT
    faiss: str = faiss.__version__


class Snapshots:
    """Files in `directory`, which several processes may write and read."""

    def __init__(self, directory: Path, model_id: str) -> None:
        self._directory = directory
        self._model_id = model_id
        self._not_before = 0.0

    def _path(self, collection_key: int) -> Path:
        return self._directory / f"{collection_key}.snapshot"

    def save(self, collection_key: int, vectors: Approximate, moment: Moment) -> bool:
        """Write a snapshot in place of the one before. False where the disk refuses: then the one before stays."""
        if time.monotonic() < self._not_before:
            return False
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".writing-") as body:
                faiss.write_index(vectors.faiss, body.name)
                header = Header(self._model_id, moment, vectors.built_with, len(vectors), _digest(body.name))
                partial = Path(f"{body.name}-whole")
                with replacing(self._path(collection_key), private=True, partial=partial) as whole:
                    whole.write(json.dumps(asdict(header)).encode() + b"\n")
                    with Path(body.name).open("rb") as written:
                        shutil.copyfileobj(written, whole, 2**20)
        except (OSError, RuntimeError) as problem:
            log.warning("could not write a snapshot of the index: %s", problem)
            self._not_before = time.monotonic() + AGAIN_AFTER_SECONDS
            return False
        return True

    def has(self, collection_key: int) -> bool:
        """Whether there is a file, good or bad."""
        return self._path(collection_key).exists()

    def load_snapshot(self, collection_key: int) -> tuple[Approximate, Moment] | None:
        """The snapshot and its moment; None if there is no file, or one that is not whole."""
        path = self._path(collection_key)
        try:
            with path.open("rb") as file:
                header = _header(file)
                if header is None or header.model_id != self._model_id:
                    return None
                start = file.tell()
                if hashlib.file_digest(file, "sha256").hexdigest() != header.sha256:
                    log.warning("ignoring the index snapshot %s: it is incomplete or altered", path.name)
                    return None
                file.seek(start)
                reader = faiss.PyCallbackIOReader(file.read, 2**20)
                return Approximate(faiss.read_index(reader), header.built_with), header.moment
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, AttributeError) as problem:
            log.warning("ignoring the index snapshot %s, which can't be read: %s", path.name, problem)
            return None

    def drop(self, collection_key: int) -> None:
        """Remove a snapshot that holds something which was deleted since."""
        with suppress(OSError):
            self._path(collection_key).unlink(missing_ok=True)

    def drop_others(self, collection_keys: set[int]) -> None:
        """Remove snapshots of collections that are gone, and temporary files that a killed process left."""
        for path in self._directory.glob("*.snapshot"):
            stem = path.name.removesuffix(".snapshot")
            if not (stem.isdecimal() and int(stem) in collection_keys):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
        for path in self._directory.glob(".writing-*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink(missing_ok=True)

    @contextmanager
    def building(self) -> Iterator[bool]:
        """Whether this process may build now: one at a time does, and the others load what it saved."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            lock = (self._directory / "building.lock").open("ab")
        except OSError:
            yield True
            return
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True


def _header(file: IO[bytes]) -> Header | None:
    try:
        fields = json.loads(file.readline(4096))
        header = Header(**{**fields, "moment": Moment(**fields["moment"])})
    except (ValueError, TypeError, KeyError):
        return None
    return header if (header.format, header.faiss) == (FORMAT, faiss.__version__) else None


def _digest(name: str) -> str:
    with Path(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
