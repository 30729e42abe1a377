"""The gallery's truth: SQLite in WAL mode with full sync, its tables, its transactions, its migrations.

Brings its own SQLite (pysqlite3): versions before 3.51.3 can corrupt a WAL database when several connections
reset the log at once (https://sqlite.org/wal.html#walresetbug).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pysqlite3
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from app.errors import StorageUnavailable, UsageError

BUSY_SECONDS = 10
REVISIONS = ("0001",)  # those in app/migrations, oldest first; a test holds them together
SCHEMA = REVISIONS[-1]

tables = sa.MetaData()

collection = sa.Table(
    "collection",
    tables,
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

identity = sa.Table(
    "identity",
    tables,
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("collection_key", sa.Integer, sa.ForeignKey("collection.key", ondelete="CASCADE"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.UniqueConstraint("collection_key", "name"),
    sqlite_autoincrement=True,
)

# Keys are never used twice, so a cached key can only mean what it meant.
reference = sa.Table(
    "reference",
    tables,
    sa.Column("key", sa.Integer, primary_key=True),
    sa.Column("reference_id", sa.Text, nullable=False, unique=True),
    sa.Column("identity_key", sa.Integer, sa.ForeignKey("identity.key", ondelete="CASCADE"), nullable=False),
    sa.Column("collection_key", sa.Integer, nullable=False),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("image_sha256", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("embedding", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.UniqueConstraint("identity_key", "image_sha256"),
    sa.Index("reference_by_collection", "collection_key"),
    sa.Index("reference_by_model", "model_id"),
    sqlite_autoincrement=True,
)

# One row for each reference that came or went, written by triggers, in the order of commits. Whoever
# caches references has seen everything up to some `sequence`, and reads on from there.
change = sa.Table(
    "change",
    tables,
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("reference_key", sa.Integer, nullable=False),
    sqlite_autoincrement=True,
)

idempotency = sa.Table(
    "idempotency",
    tables,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("answer", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
)


class Database:
    """Connections to one SQLite file. `read` and `write` are the only ways in."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UsageError(
                f"The data directory {path.parent} can't be made: {problem.strerror}. "
                "Choose another with DIPTYCH_DATA_DIR."
            ) from None
        self.path = path
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)),
            module=pysqlite3,
            connect_args={"timeout": BUSY_SECONDS},
            pool_size=64,
            max_overflow=0,
        )
        sa.event.listen(self._engine, "connect", _prepare)
        sa.event.listen(self._engine, "begin", _begin)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A snapshot: everything read inside belongs to one moment."""
        with _translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction, alone among all processes, on disk when the block has been left.

        Raises `StorageUnavailable` if the file is locked for `BUSY_SECONDS`, full or read-only.
        """
        with (
            _translated(),
            self._engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    def migrate(self) -> None:
        """Bring the schema up to `SCHEMA`. Raises `UsageError` for a file of a newer Diptych or no database."""
        try:
            with self.write() as connection:
                found = self._revision(connection)
                if found == SCHEMA:
                    return
                # Alembic takes a fifth of a second to import; most starts have nothing to migrate.
                from app.migrations.run import upgrade

                upgrade(connection)
        except StorageUnavailable as problem:
            raise UsageError(f"The gallery {self.path} can't be opened: {problem.__cause__}.") from None

    def _revision(self, connection: sa.Connection) -> str | None:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        if found is not None and found not in REVISIONS:
            raise UsageError(
                f"The gallery {self.path} has schema {found!r}, which this version of Diptych does not know (it knows "
                f"up to {SCHEMA}). Use the Diptych that wrote it, or another data directory."
            )
        return found

    def close(self) -> None:
        self._engine.dispose()


def _prepare(connection: Any, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin`, not guessed by the driver
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "secure_delete = ON",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _begin(connection: sa.Connection) -> None:
    # A transaction that starts as a reader can fail when it comes to write; one that will write says so.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DBAPIError as problem:
        if isinstance(problem, sa.exc.IntegrityError | sa.exc.ProgrammingError):
            raise
        raise StorageUnavailable(
            "The gallery's database is locked, full, read-only or damaged. Nothing was changed; try again."
        ) from problem.orig
