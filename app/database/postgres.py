"""PostgreSQL with pgvector: a gallery that replicas on several machines share."""

from typing import Any

import sqlalchemy as sa

from app.database.pgvector import SETTINGS
from app.database.transactions import Database
from app.errors import StorageUnavailable, UsageError

CONNECT_SECONDS = 5
STATEMENT_MILLISECONDS = 30_000
# Mistakes in how the database was set up, not in a statement: no permission, no such schema, table or type.
SET_UP = frozenset({"42501", "3F000", "42P01", "42704"})
# Serialization failure and deadlock: other transactions were in the way.
COLLISIONS = frozenset({"40001", "40P01"})
# Any number that no other advisory lock has: one replica migrates at a time.
MIGRATION_LOCK = 0x6469707479636801


class PostgreSQL(Database):
    """Connections to one server, which all replicas share."""

    name = "postgresql"
    attempts = 8

    def __init__(self, url: str, *, hurried: bool = True) -> None:
        """Statements that are `hurried` give up after half a minute: a client waits for those of a service.

        Raises `UsageError` for what is not a URL.
        """
        try:
            where = sa.make_url(url)
        except (sa.exc.ArgumentError, ValueError):
            raise UsageError(
                "DIPTYCH_DATABASE_URL is not a URL: use postgresql+psycopg://USER:PASSWORD@HOST/DB."
            ) from None
        engine = sa.create_engine(
            where,
            hide_parameters=True,  # in what is logged
            pool_pre_ping=True,  # after a restart of the server, new connections instead of errors
            pool_size=32,
            max_overflow=32,
            pool_timeout=CONNECT_SECONDS,
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "options": f"-c statement_timeout={STATEMENT_MILLISECONDS * hurried} -c client_encoding=utf8",
            },
        )
        # Imported by the engine: a gallery in SQLite does without its eight megabytes.
        self._psycopg: Any = engine.dialect.dbapi
        super().__init__(engine, f"{where.host or 'local'}/{where.database}")
        self._connected = False
        self._reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        sa.event.listen(engine, "connect", self._prepare)

    def _prepare(self, connection: Any, _: sa.pool.ConnectionPoolEntry) -> None:
        with connection.cursor() as cursor:
            for setting in SETTINGS:
                cursor.execute(setting)
        connection.commit()
        self._connected = True

    def refusal(self, problem: BaseException | None) -> StorageUnavailable | None:
        state = getattr(problem, "sqlstate", None)
        if state is None and (not self._connected or not isinstance(problem, self._psycopg.ProgrammingError)):
            return StorageUnavailable(
                f"The gallery's database at {self.where} can't be reached. The service will reconnect by itself."
            )
        driver = self._psycopg
        mistakes = driver.DataError | driver.IntegrityError | driver.ProgrammingError
        if isinstance(problem, mistakes) and state not in SET_UP:
            return None
        return StorageUnavailable(f"The gallery's database at {self.where} reports: {_first_line(problem)}")

    def cause_for_operator(self, problem: StorageUnavailable) -> str:
        cause = problem.__cause__
        return "" if cause is None or getattr(cause, "sqlstate", None) else f" {_first_line(cause)}"

    def collided(self, problem: StorageUnavailable) -> bool:
        return getattr(problem.__cause__, "sqlstate", None) in COLLISIONS

    def is_writable(self) -> None:
        with self.read() as connection:
            if connection.scalar(sa.text("SELECT pg_is_in_recovery()")):
                raise StorageUnavailable(
                    "The gallery's database is a standby and refuses writes. Set DIPTYCH_DATABASE_URL to the primary."
                )

    def _reader(self) -> sa.Engine:
        return self._reading

    def _writer(self) -> sa.Engine:
        return self._engine

    def _lock_schema(self, connection: sa.Connection) -> None:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))


def _first_line(problem: BaseException | None) -> str:
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)
