"""The gallery's truth: transactions and migrations, whichever database keeps it."""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from app.errors import GalleryDamaged, StorageUnavailable, UsageError

REVISIONS = ("0001", "0002", "0003", "0004")  # those in migrations/versions, oldest first; a test compares them
SCHEMA = REVISIONS[-1]

T = TypeVar("T")


class Database(ABC):
    """Everything goes through `read`, `write` and `execute`. Each raises `StorageUnavailable` where the database can't
    be used, for the reasons that `refusal` names, and `GalleryDamaged` where it is damaged."""

    name: ClassVar[str]
    # How often a transaction is tried if others get in its way.
    attempts: ClassVar[int] = 1

    def __init__(self, engine: sa.Engine, where: str) -> None:
        self._engine = engine
        self.where = where
        # Why the last write failed; None after one that succeeded.
        self.trouble: StorageUnavailable | None = None

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A snapshot: everything read inside belongs to one moment."""
        with self._translated(), self._reader().connect() as connection, connection.begin():
            yield connection

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Do `work` in one transaction: all of it, or nothing. It is on disk when this returns.

        `work` may be called again if other transactions got in its way, so it must not change anything else.
        """
        for attempt in range(self.attempts):
            try:
                with self._translated(), self._writer().connect() as connection, connection.begin():
                    result = work(connection)
                if not isinstance(self.trouble, GalleryDamaged):
                    self.trouble = None
                return result
            except StorageUnavailable as problem:
                if attempt == self.attempts - 1 or not self.collided(problem):
                    self.trouble = problem
                    raise
            time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311  so that they do not collide again
        raise AssertionError("unreachable")

    def execute(self, statement: sa.Executable) -> int:
        """One statement in a transaction of its own; how many rows it changed."""
        return self.write(lambda connection: connection.execute(statement).rowcount)

    def migrate(self) -> None:
        """Bring the schema up to `SCHEMA`. Raises `UsageError` for one of a newer Diptych, or no database."""
        try:
            self.write(self._migrate)
        except StorageUnavailable as problem:
            cause = self.cause_for_operator(problem)
            raise UsageError(f"{problem.detail}{cause} The database is {self.where}.") from None

    def cause_for_operator(self, problem: StorageUnavailable) -> str:
        """What the log and commands add to an error, and callers are not told."""
        return ""

    def _migrate(self, connection: sa.Connection) -> None:
        self._lock_schema(connection)
        if self._revision(connection) == SCHEMA:
            return
        # Alembic takes a fifth of a second to import; most starts have nothing to migrate.
        from app.database.migrations.run import upgrade

        upgrade(connection)

    def schema(self, connection: sa.Connection) -> str | None:
        """The schema that the gallery has now; another process may have migrated it."""
        revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        return revision

    def _revision(self, connection: sa.Connection) -> str | None:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        revision = self.schema(connection)
        if revision is not None and revision not in REVISIONS:
            raise UsageError(
                f"The gallery {self.where} has schema {revision!r}, and this version of Diptych knows schemas up to "
                f"{SCHEMA}. Use the version that wrote it, or another gallery."
            )
        return revision

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as problem:
            error = self.refusal(problem.orig)
            if error is None:
                raise
            if isinstance(error, GalleryDamaged):
                self.trouble = error
            raise error from problem.orig
        except GalleryDamaged as problem:
            self.trouble = problem
            raise
        except sa.exc.TimeoutError:
            raise StorageUnavailable("All connections to the gallery's database are busy. Try again.") from None

    @abstractmethod
    def refusal(self, problem: BaseException | None) -> StorageUnavailable | None:
        """The error that a caller gets for a driver's error; None for a mistake in our own code: a statement that is
        wrong, or that violates a constraint."""

    @abstractmethod
    def collided(self, problem: StorageUnavailable) -> bool:
        """Whether the transaction failed only because of other transactions, so that a retry may succeed."""

    @abstractmethod
    def is_writable(self) -> None:
        """Raises `StorageUnavailable` if a write would be refused."""

    @abstractmethod
    def _reader(self) -> sa.Engine: ...

    @abstractmethod
    def _writer(self) -> sa.Engine: ...

    @abstractmethod
    def _lock_schema(self, connection: sa.Connection) -> None:
        """Let one process at a time migrate."""

    def reconnect(self) -> None:
        """Open new connections from now on: old ones may remember that the disk was read-only."""
        self._engine.dispose()

    def close(self) -> None:
        self._engine.dispose()
