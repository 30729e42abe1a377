"""Which identities a search covers: a filter on their metadata, from a form field to a condition in SQL."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from app.database.tables import identity
from app.errors import InvalidMetadata
from app.gallery.names import parse_metadata

FILTER_KEYS, FILTER_VALUES = 16, 100

# For each of these metadata keys, the values of which one must match.
Filter = dict[str, list[Any]]


def parse_filter(text: str | None) -> Filter | None:
    """The filter in a form field; None if the field is absent. Raises `InvalidMetadata`.

    >>> parse_filter('{"script": ["Tibetan", "Kannada"], "year": 2015}')
    {'script': ['Tibetan', 'Kannada'], 'year': [2015]}
    """
    if text is None:
        return None
    parsed: Filter = {}
    for key, wanted in parse_metadata(text, "filter").items():
        values = wanted if isinstance(wanted, list) else [wanted]
        if not values or not all(isinstance(value, str | bool | int | float) for value in values):
            raise InvalidMetadata(
                f"The value of {key[:40]!r} in `filter` must be text, a number, true, false, or a list of these."
            )
        if any(isinstance(value, int) and abs(value) >= 2**63 for value in values):
            raise InvalidMetadata(f"`filter` gives {key[:40]!r} a number that is too large: use less than 2^63.")
        if len(values) > FILTER_VALUES:
            raise InvalidMetadata(
                f"`filter` gives {key[:40]!r} {len(values)} values; at most {FILTER_VALUES} are allowed."
            )
        parsed[key] = values
    if len(parsed) > FILTER_KEYS:
        raise InvalidMetadata(f"`filter` has {len(parsed)} keys; at most {FILTER_KEYS} are allowed.")
    return parsed


def matches_filter(connection: sa.Connection, wanted: Filter) -> sa.ColumnElement[bool]:
    """The condition on an identity's metadata, in the SQL of the connection's database."""
    if connection.dialect.name == "postgresql":
        metadata = sa.type_coerce(identity.c.metadata, postgresql.JSONB())
        return sa.and_(
            sa.true(),
            *(sa.or_(*(metadata.contains({key: value}) for value in values)) for key, values in wanted.items()),
        )
    conditions: list[sa.ColumnElement[bool]] = [sa.true()]
    for key, values in wanted.items():
        entry = sa.func.json_each(identity.c.metadata).table_valued("key", "value", "type").alias()
        one_of = sa.or_(
            *(sa.and_(entry.c.type.in_(_json_types(value)), entry.c.value == _sql_value(value)) for value in values)
        )
        conditions.append(sa.exists(sa.select(1).select_from(entry).where(entry.c.key == key, one_of)))
    return sa.and_(*conditions)


def _json_types(value: object) -> list[str]:
    """SQLite's names of the JSON types that may equal the value: true is not 1."""
    if isinstance(value, bool):
        return ["true" if value else "false"]
    return ["text"] if isinstance(value, str) else ["integer", "real"]


def _sql_value(value: object) -> sa.ColumnElement[Any]:
    return sa.literal(int(value) if isinstance(value, bool) else value)
