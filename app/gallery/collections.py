"""Collections: queries and changes as functions of a connection. The caller holds the transaction.

Whoever changes something in a collection locks its row first, so that changes to one collection follow each other.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from app.database.statements import Statement
from app.database.tables import DELETED, LIVE, collection, identity, leftover, reference, timestamp
from app.errors import UnknownCollection
from app.gallery.filters import Filter, matches_filter
from app.gallery.idempotency import empty_answers_of_collection

# References of a large deleted collection that are deleted in one transaction.
PURGED_AT_ONCE = 5000

_NAMED = sa.select(collection.c.key).where(collection.c.name == sa.bindparam("name"))
NAMED, NAMED_LOCKED = Statement(_NAMED), Statement(_NAMED.with_for_update())
COUNTS = Statement(
    sa.select(collection.c.searchable_count, collection.c.reference_count).where(
        collection.c.key == sa.bindparam("key")
    )
)
ADJUST_COUNTS = Statement(
    sa.update(collection)
    .where(collection.c.key == sa.bindparam("of"))
    .values(
        reference_count=collection.c.reference_count + sa.bindparam("references"),
        searchable_count=collection.c.searchable_count + sa.bindparam("searchable"),
    )
)


def collection_key(connection: sa.Connection, name: str, *, lock: bool = False) -> int:
    """The key of a collection. With `lock`, nobody else changes it before the transaction ends.

    Raises `UnknownCollection` where there is none of that name.
    """
    row = (NAMED_LOCKED if lock else NAMED).first(connection, name=name)
    if row is None:
        raise UnknownCollection(
            f"There is no collection {name!r}. Enrolling into a collection creates it; GET /collections lists them."
        )
    return int(row[0])


def ensure_collection(connection: sa.Connection, name: str) -> int:
    """The key of the collection of that name, locked, and created if necessary."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    for _ in range(10):
        try:
            return collection_key(connection, name, lock=True)
        except UnknownCollection:
            connection.execute(insert(collection).values(name=name, created_at=timestamp()).on_conflict_do_nothing())
    raise AssertionError(f"the collection {name!r} was deleted each time it was created")


def list_collections(connection: sa.Connection) -> list[dict[str, Any]]:
    """Every collection with its numbers of identities and references, by name."""
    identities = sa.select(sa.func.count()).where(identity.c.collection_key == collection.c.key).scalar_subquery()
    rows = connection.execute(
        sa.select(
            collection.c.name.label("collection"),
            identities.label("identities"),
            collection.c.reference_count.label("references"),
            collection.c.created_at,
        )
        .where(LIVE)
        .order_by(collection.c.name)
    )
    return [dict(row) for row in rows.mappings()]


def delete_collection(connection: sa.Connection, name: str) -> None:
    """Delete a collection and everything in it. A large one loses its name at once, the rest goes with
    `purge_collections`.

    Raises `UnknownCollection`.
    """
    key = collection_key(connection, name, lock=True)
    empty_answers_of_collection(connection, key)
    _, references = count_searched(connection, key)
    if references > PURGED_AT_ONCE:
        renamed = sa.update(collection).where(collection.c.key == key).values(name=f"{DELETED}{key}")
        connection.execute(renamed)
        return
    within = sa.select(identity.c.key).where(identity.c.collection_key == key)
    forget_originals(connection, reference.c.identity_key.in_(within))
    connection.execute(sa.delete(collection).where(collection.c.key == key))


def has_deleted_collections(connection: sa.Connection) -> bool:
    """Whether a deleted collection waits to be purged."""
    return connection.scalar(sa.select(collection.c.key).where(~LIVE).limit(1)) is not None


def purge_collections(connection: sa.Connection) -> bool:
    """Delete a part of what large deleted collections left, in a short transaction. Whether there may be more."""
    key = connection.scalar(sa.select(collection.c.key).where(~LIVE).limit(1).with_for_update())
    if key is None:
        return False
    identities = connection.scalars(
        sa.select(identity.c.key).where(identity.c.collection_key == key).limit(PURGED_AT_ONCE // 10)
    ).all()
    references = connection.scalars(
        sa.select(reference.c.key).where(reference.c.identity_key.in_(identities)).limit(PURGED_AT_ONCE)
    ).all()
    if references:
        forget_originals(connection, reference.c.key.in_(references))
        connection.execute(sa.delete(reference).where(reference.c.key.in_(references)))
    elif identities:
        connection.execute(sa.delete(identity).where(identity.c.key.in_(identities)))
    else:
        connection.execute(sa.delete(collection).where(collection.c.key == key))
    return True


def count_searched(connection: sa.Connection, key: int, wanted: Filter | None = None) -> tuple[int, int]:
    """How many identities with references, and how many references, a search of the collection covers."""
    if wanted is not None:
        filtered = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(identity.c.reference_count), 0)).where(
            identity.c.collection_key == key, identity.c.reference_count > 0, matches_filter(connection, wanted)
        )
        identities, references = connection.execute(filtered).one()
        return int(identities), int(references)
    row = COUNTS.first(connection, key=key)
    return (int(row[0]), int(row[1])) if row else (0, 0)


def count_enrolled(connection: sa.Connection) -> tuple[int, int]:
    """Identities with references, and references, in all collections."""
    sums = (
        sa.func.coalesce(sa.func.sum(column), 0)
        for column in (collection.c.searchable_count, collection.c.reference_count)
    )
    identities, references = connection.execute(sa.select(*sums).where(LIVE)).one()
    return int(identities), int(references)


def adjust_counts(connection: sa.Connection, collection_key: int, *, references: int, searchable: int) -> None:
    """Add to a collection's numbers of references and of identities with references; subtract if negative."""
    ADJUST_COUNTS.run(connection, of=collection_key, references=references, searchable=searchable)


def forget_originals(connection: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    """List the kept images of these references in `leftover`. `originals` deletes them once this is committed."""
    kept = sa.select(reference.c.original_id).where(which, reference.c.original_id.is_not(None))
    connection.execute(sa.insert(leftover).from_select(["original_id"], kept))
