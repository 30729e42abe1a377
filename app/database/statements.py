"""Statements that every request runs: compiled once, and on SQLite run by the driver itself.

SQLAlchemy takes some 70 microseconds for a statement, SQLite 5 for most of these. What that is worth for a whole
request is in docs/decisions/run-the-statements-of-every-request-by-the-driver.md.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from app.database.sqlite import driver_rows

# Values in one `IN (...)`; SQLite allows 32,766.
CHUNK = 1000
_DIALECT = sqlite.dialect(paramstyle="qmark")


class Statement:
    """A statement with named parameters, the same on both databases.

    Rows are as the driver returns them: numbers and text are as in the table; JSON, booleans and embeddings are in the
    form in which SQLite stores them.
    """

    def __init__(self, statement: sa.Executable) -> None:
        self._statement = statement
        compiled: Any = statement.compile(dialect=_DIALECT)  # type: ignore[attr-defined]
        self._sql = str(compiled)
        self._binds = [
            (
                name,
                compiled.binds[name].value,
                compiled.binds[name].type.dialect_impl(_DIALECT).bind_processor(_DIALECT),
            )
            for name in compiled.positiontup
        ]

    def all(self, connection: sa.Connection, **parameters: Any) -> Sequence[Sequence[Any]]:
        """All rows."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self._statement, parameters).all()
        return driver_rows(connection, self._sql, self._values(parameters))

    def first(self, connection: sa.Connection, **parameters: Any) -> Sequence[Any] | None:
        """The first row; None if there is none."""
        fetched = self.all(connection, **parameters)
        return fetched[0] if fetched else None

    def run(self, connection: sa.Connection, **parameters: Any) -> None:
        """Execute a statement that returns nothing."""
        if connection.dialect.name != "sqlite":
            connection.execute(self._statement, parameters)
        else:
            driver_rows(connection, self._sql, self._values(parameters))

    def _values(self, parameters: dict[str, Any]) -> list[Any]:
        values = []
        for name, default, process in self._binds:
            value = parameters.get(name, default)
            values.append(value if process is None else process(value))
        return values


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The values in pieces that fit in one `IN (...)`."""
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
