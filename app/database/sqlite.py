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

log = logging.getLogger(__name__)

BUSY_SECONDS = 10
# The first version that resets its log safely. Where there is no wheel, pysqlite3 is built with the system's SQLite.
SAFE_VERSION = (3, 51, 3)
CACHE_KIB = 16 * 1024

# SQLite's messages, and what callers are told instead.
REFUSALS = {
    "database is locked": "The gallery's database is locked by another process. Nothing was changed. Try again.",
    "disk is full": "The disk with the gallery's database is full. Nothing was changed. Free some space on it.",
    "readonly database": "The gallery's database is read-only. Nothing was changed. Check its permissions.",
    "unable to open": "The gallery's database can't be opened. Check that its directory exists and can be written to.",
    "disk i/o error": "The disk with the gallery's database is full, over a quota, or failing. Nothing was changed.",
}
DAMAGE = ("malformed", "not a database")
# A directory beside the database, as long as a backup is being restored.
RESTORING = ".restoring"


def database_exists(path: Path) -> bool:
    """Whether there is a database file. Raises `UsageError` where its directory can't be read."""
    try:
        return path.is_file()
    except OSError as problem:
        raise UsageError(
            f"The data directory {path.parent} can't be read: {problem.strerror}. Give this user access, or choose "
            "another with DIPTYCH_DATA_DIR or --data-dir."
        ) from None


class SQLite(Database):
    """Connections to one file, which all processes on this machine may share."""

    name = "sqlite"

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # embeddings are private
        except OSError as problem:
            reason = "is a file" if path.parent.is_file() else f"can't be created: {problem.strerror}"
            raise UsageError(
                f"The data directory {path.parent} {reason}. Choose another with DIPTYCH_DATA_DIR or --data-dir."
            ) from None
        if pysqlite3.sqlite_version_info < SAFE_VERSION:
            log.warning(
                "SQLite %s can damage a gallery that several processes write to (fixed in 3.51.3): use one worker, and "
                "stop the service before commands that write",
                pysqlite3.sqlite_version,
            )
        self.path = path
        self._lock = lock_gallery(path, exclusively=False)
        if not database_exists(path) and path.with_name(RESTORING).exists():
            if self._lock is not None:
                self._lock.close()
            raise UsageError(
                f"A restore into {path.parent} was interrupted. Run the same `diptych restore` command again."
            )
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
        message = str(problem).lower()
        if any(words in message for words in DAMAGE):
            return damaged(problem)
        for words, meaning in REFUSALS.items():
            if words in message:
                return StorageUnavailable(meaning)
        return StorageUnavailable(f"The gallery's database can't be used at the moment ({problem}). Try again.")

    def collided(self, problem: StorageUnavailable) -> bool:
        return False  # one process writes at a time, and waits for its turn

    def is_writable(self) -> None:
        disk = os.statvfs(self.path.parent)
        if disk.f_flag & os.ST_RDONLY:
            self.trouble = StorageUnavailable(REFUSALS["readonly database"])
            raise self.trouble

    def check(self) -> None:
        """Read every page, which takes seconds per gigabyte. Raises `GalleryDamaged` that says what is wrong."""
        with self.read() as connection:
            result = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if result != "ok":
            self.trouble = damaged(result)
            raise self.trouble

    def copy_to(self, path: Path) -> None:
        """Write a copy of the database at one moment to a new file. Others may read and write in the meantime."""
        with self._translated(), self._engine.connect() as connection:
            driver_rows(connection, "VACUUM INTO ?", (str(path),))

    def _reader(self) -> sa.Engine:
        return self._engine

    def _writer(self) -> sa.Engine:
        return self._writing

    def _lock_schema(self, connection: sa.Connection) -> None:
        pass  # one process writes at a time

    def close(self) -> None:
        super().close()
        if self._lock is not None:
            self._lock.close()


def damaged(reason: object) -> GalleryDamaged:
    """The error for a database that is damaged for this reason."""
    return GalleryDamaged(
        f"The gallery's database is damaged ({reason}). Stop the service and restore a backup with diptych restore."
    )


def lock_gallery(path: Path, *, exclusively: bool) -> IO[bytes] | None:
    """Lock a file beside the database until it is closed: shared to use the database, exclusively to replace it.

    None where there can't be a lock, as in a read-only directory. Raises `GalleryInUse`.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        held: IO[bytes] = lock.open("ab")
    except OSError:
        try:
            held = lock.open("rb")  # another user's file: reading it is enough to lock it
        except OSError:
            return None
    try:
        fcntl.flock(held, (fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise GalleryInUse(
            f"The gallery {path} is in use by another process. Stop the service, then run the command again."
            if exclusively
            else f"The gallery {path} is being restored. Start again when that is done."
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
    # A transaction that starts as a reader may be refused when it writes; one that will write begins as a writer.
    writes = connection.get_execution_options().get("writes", False)
    driver_rows(connection, "BEGIN IMMEDIATE" if writes else "BEGIN", ())


def driver_rows(connection: sa.Connection, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows from the driver itself, in the connection's transaction, with errors as SQLAlchemy raises them."""
    driver: Any = connection.connection.driver_connection
    try:
        fetched: list[tuple[Any, ...]] = driver.execute(sql, values).fetchall()
    except pysqlite3.Error as problem:
        raise DBAPIError.instance(sql, None, problem, pysqlite3.Error) from problem
    return fetched
