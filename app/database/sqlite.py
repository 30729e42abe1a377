"""SQLite in WAL mode with full sync: the gallery in one file.

Brings its own SQLite (pysqlite3): versions before 3.51.3 can corrupt a WAL database when several connections
reset the log at once (https://sqlite.org/wal.html#walresetbug).
"""

import fcntl
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pysqlite3
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from app.database.transactions import Database
from app.errors import GalleryDamaged, GalleryInUse, StorageUnavailable, UsageError

log = logging.getLogger("uvicorn.error")

BUSY_SECONDS = 10
# The first that resets its log safely. Where there is no wheel, pysqlite3 is built with the system's.
SAFE_VERSION = (3, 51, 3)
CACHE_KIB = 16 * 1024

# What SQLite says, and what it means to whoever runs the service.
REFUSALS = {
    "database is locked": "The gallery's database is locked by another process. Nothing was changed; try again.",
    "disk is full": "The disk with the gallery's database is full. Nothing was changed; make room on it.",
    "readonly database": "The gallery's database is read-only. Nothing was changed; check its mount and its owner.",
    "unable to open": "The gallery's database can't be opened. Check that its directory is there and may be written.",
    "disk i/o error": "The disk refused the gallery's database: full, over a quota, or failing. Nothing was changed.",
}
DAMAGE = ("malformed", "not a database")
# Beside the database while a backup takes its place.
RESTORING = ".restoring"


class SQLite(Database):
    """Connections to one file, which all processes on this machine may share."""

    name = "sqlite"

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # embeddings are nobody else's business
        except OSError as problem:
            raise UsageError(
                f"The data directory {path.parent} can't be made: {problem.strerror}. "
                "Choose another with DIPTYCH_DATA_DIR."
            ) from None
        if pysqlite3.sqlite_version_info < SAFE_VERSION:
            log.warning(
                "SQLite %s can damage a gallery that several processes write to (fixed in 3.51.3): use one worker, and "
                "stop it before commands that write",
                pysqlite3.sqlite_version,
            )
        self.path = path
        self._in_use = in_use(path, exclusively=False)
        if not path.exists() and path.with_name(RESTORING).exists():
            if self._in_use is not None:
                self._in_use.close()
            raise UsageError(f"A restore into {path.parent} was interrupted: run the same diptych restore again.")
        engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)),
            module=pysqlite3,
            connect_args={"timeout": BUSY_SECONDS},
            hide_parameters=True,  # in what is logged
            pool_size=64,
            max_overflow=0,
        )
        sa.event.listen(engine, "connect", _prepare)
        sa.event.listen(engine, "begin", _begin)
        super().__init__(engine, str(path))
        self._writing = engine.execution_options(writes=True)

    def refusal(self, problem: BaseException | None) -> StorageUnavailable | None:
        if isinstance(problem, pysqlite3.IntegrityError | pysqlite3.ProgrammingError):
            return None
        said = str(problem).lower()
        if any(words in said for words in DAMAGE):
            return GalleryDamaged(
                f"The gallery's database is damaged ({problem}). Stop the service and restore a backup: "
                "diptych restore."
            )
        for words, meaning in REFUSALS.items():
            if words in said:
                return StorageUnavailable(meaning)
        return StorageUnavailable(f"The gallery's database can't be used just now ({problem}).")

    def collided(self, problem: StorageUnavailable) -> bool:
        return False  # one writer at a time, and it waited for its turn

    def is_writable(self) -> None:
        disk = os.statvfs(self.path.parent)
        if disk.f_flag & os.ST_RDONLY:
            self.trouble = StorageUnavailable(REFUSALS["readonly database"])
            raise self.trouble

    def check(self) -> None:
        """Read every page. Raises `GalleryDamaged` naming what is wrong; takes seconds a gigabyte."""
        with self.read() as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if found != "ok":
            self.trouble = GalleryDamaged(
                f"The gallery's database is damaged ({found}). Stop the service and restore a backup: diptych restore."
            )
            raise self.trouble

    def copy_to(self, path: Path) -> None:
        """Write a copy, as the database is at one moment, to a new file; others may read and write meanwhile."""
        with self._translated(), self._engine.connect() as connection:
            rows(connection, "VACUUM INTO ?", (str(path),))

    def _reader(self) -> sa.Engine:
        return self._engine

    def _writer(self) -> sa.Engine:
        return self._writing

    def _lock_schema(self, connection: sa.Connection) -> None:
        pass  # whoever writes is alone

    def close(self) -> None:
        super().close()
        if self._in_use is not None:
            self._in_use.close()


def in_use(path: Path, *, exclusively: bool) -> IO[bytes] | None:
    """Hold a lock beside the database, shared by all who use it, so that nobody replaces it beneath them.

    None where there can't be one (a read-only directory; SQLite says so itself). Raises `GalleryInUse`.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        held: IO[bytes] = lock.open("ab")
    except OSError:
        try:
            held = lock.open("rb")  # another user's: locking takes no more
        except OSError:
            return None
    try:
        fcntl.flock(held, (fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise GalleryInUse(
            f"The gallery {path} is in use by another process. Stop the service first."
            if exclusively
            else f"The gallery {path} is being restored just now. Start again when that is done."
        ) from None
    return held


def _prepare(connection: Any, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin`, not guessed by the driver
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "secure_delete = ON",
        f"cache_size = -{CACHE_KIB}",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _begin(connection: sa.Connection) -> None:
    # A transaction that starts as a reader can fail when it comes to write; one that will write says so.
    writes = connection.get_execution_options().get("writes", False)
    rows(connection, "BEGIN IMMEDIATE" if writes else "BEGIN", ())


def rows(connection: sa.Connection, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """What the driver itself answers, in the same transaction, with its errors as SQLAlchemy raises them."""
    driver: Any = connection.connection.driver_connection
    try:
        found: list[tuple[Any, ...]] = driver.execute(sql, values).fetchall()
    except pysqlite3.Error as problem:
        raise DBAPIError.instance(sql, None, problem, pysqlite3.Error) from problem
    return found
