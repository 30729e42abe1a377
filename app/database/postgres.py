"""PostgreSQL with pgvector: a gallery that replicas on several machines share."""

from typing import Any

import sqlalchemy as sa

from app.database.engines import Engine, engine_of
from app.database.transactions import Database
from app.errors import StorageUnavailable, UsageError

CONNECT_SECONDS = 5
STATEMENT_MILLISECONDS = 30_000
# Mistakes of whoever set the database up, not of a statement: no right to it, no such schema, table or type.
SET_UP = frozenset({"42501", "3F000", "42P01", "42704"})
# Any number that others don't take: one replica migrates at a time.
MIGRATION_LOCK = 0x6469707479636801


class PostgreSQL(Database):
    """Connections to one server, which all replicas share."""

    name = "postgresql"
    attempts = 8

    def __init__(self, url: str, *, hurried: bool = True) -> None:
        """`hurried` statements give up after half a minute: somebody waits for a service's, not for a command's."""
        try:
            where = sa.make_url(url)
        except (sa.exc.ArgumentError, ValueError):
            raise UsageError("DIPTYCH_DATABASE_URL is no URL: postgresql+psycopg://USER:PASSWORD@HOST/DB.") from None
        engine = sa.create_engine(
            where,
            hide_parameters=True,  # in what is logged
            pool_pre_ping=True,  # a server that was restarted is met with new connections, not with errors
            pool_size=32,
            max_overflow=32,
            pool_timeout=CONNECT_SECONDS,
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "options": f"-c statement_timeout={STATEMENT_MILLISECONDS * hurried} -c client_encoding=utf8",
            },
        )
        # Loaded by now; a gallery in SQLite does without its eight megabytes.
        self._psycopg: Any = engine.dialect.dbapi
        super().__init__(engine, f"{where.host or 'local'}/{where.database}")
        self._flavour: Engine | None = None
        self._reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        sa.event.listen(engine, "connect", self._prepare)

    @property
    def flavour(self) -> Engine:
        """Which engine answers; known once connected."""
        if self._flavour is None:
            with self.read() as connection:
                return engine_of(str(connection.scalar(sa.text("SELECT version()"))))
        return self._flavour

    def _prepare(self, connection: Any, _: sa.pool.ConnectionPoolEntry) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT version()")
            self._flavour = engine_of(str(cursor.fetchone()[0]))
            for setting in self._flavour.settings:
                cursor.execute(setting)
        connection.commit()

    def refusal(self, problem: BaseException | None) -> StorageUnavailable | None:
        state = getattr(problem, "sqlstate", None)
        if state is None and (self._flavour is None or not isinstance(problem, self._psycopg.ProgrammingError)):
            return StorageUnavailable(
                f"The gallery's database at {self.where} can't be reached. The service goes on once it is."
            )
        own = self._psycopg
        if isinstance(problem, own.DataError | own.IntegrityError | own.ProgrammingError) and state not in SET_UP:
            return None
        return StorageUnavailable(f"The gallery's database at {self.where} refused: {_first_line(problem)}")

    def said(self, problem: StorageUnavailable) -> str:
        cause = problem.__cause__
        return "" if cause is None or getattr(cause, "sqlstate", None) else f" {_first_line(cause)}"

    def collided(self, problem: StorageUnavailable) -> bool:
        state = getattr(problem.__cause__, "sqlstate", None)
        return self._flavour is not None and state in self._flavour.retried

    def is_writable(self) -> None:
        with self.read() as connection:
            if connection.scalar(sa.text("SELECT pg_is_in_recovery()")):
                raise StorageUnavailable("The gallery's database is a standby and takes no writes.")

    def _reader(self) -> sa.Engine:
        return self._reading

    def _writer(self) -> sa.Engine:
        return self._engine

    def _lock_schema(self, connection: sa.Connection) -> None:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))


def _first_line(problem: BaseException | None) -> str:
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)
