"""Statements of the hot paths: compiled once, and on SQLite run by the driver itself.

SQLAlchemy takes some 70 microseconds for a statement, SQLite 5 for most of these.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from app.database.sqlite import rows

_DIALECT = sqlite.dialect(paramstyle="qmark")


class Statement:
    """A statement with named parameters, the same on both databases.

    Rows are as the driver gives them: fit for numbers and text; what SQLite keeps in another form (JSON, truth,
    embeddings) comes in that form.
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
        return rows(connection, self._sql, self._values(parameters))

    def first(self, connection: sa.Connection, **parameters: Any) -> Sequence[Any] | None:
        """The first row, if there is one."""
        found = self.all(connection, **parameters)
        return found[0] if found else None

    def run(self, connection: sa.Connection, **parameters: Any) -> None:
        """For what it does."""
        if connection.dialect.name != "sqlite":
            connection.execute(self._statement, parameters)
        else:
            rows(connection, self._sql, self._values(parameters))

    def _values(self, parameters: dict[str, Any]) -> list[Any]:
        values = []
        for name, default, process in self._binds:
            value = parameters.get(name, default)
            values.append(value if process is None else process(value))
        return values
