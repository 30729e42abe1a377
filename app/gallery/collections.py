"""Collections and identities: queries and changes as functions of a connection. The caller holds the transaction.

Whoever changes something in a collection locks its row first, so that changes to one collection follow each other.
"""

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from app.database.statements import Statement
from app.database.tables import DELETED, LIVE, collection, identity, leftover, reference
from app.errors import IdentityExists, InvalidRequest, UnknownCollection, UnknownIdentity
from app.gallery.filters import Filter, matches_filter
from app.gallery.names import check_metadata_size

# References of a large deleted collection that are deleted together.
PURGED_AT_ONCE = 5000


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- collections -------------------------------------------------------------------------------------------


_NAMED = sa.select(collection.c.key).where(collection.c.name == sa.bindparam("name"))
NAMED, NAMED_LOCKED = Statement(_NAMED), Statement(_NAMED.with_for_update())
COUNTS = Statement(
    sa.select(collection.c.searchable_count, collection.c.reference_count).where(
        collection.c.key == sa.bindparam("key")
    )
)
COUNT = Statement(
    sa.update(collection)
    .where(collection.c.key == sa.bindparam("of"))
    .values(
        reference_count=collection.c.reference_count + sa.bindparam("references"),
        searchable_count=collection.c.searchable_count + sa.bindparam("searchable"),
    )
)
IDENTITY = Statement(
    sa.select(identity.c.key).where(
        identity.c.collection_key == sa.bindparam("within"), identity.c.name == sa.bindparam("name")
    )
)
NEW_IDENTITY = Statement(
    sa.insert(identity)
    .values({name: sa.bindparam(name) for name in ("collection_key", "name", "metadata", "created_at")})
    .returning(identity.c.key)
)


def collection_key(connection: sa.Connection, name: str, *, lock: bool = False) -> int:
    """With `lock`, nobody else changes the collection before the transaction ends. Raises `UnknownCollection`."""
    row = (NAMED_LOCKED if lock else NAMED).first(connection, name=name)
    if row is None:
        raise UnknownCollection(
            f"There is no collection {name!r}. One comes to be when something is enrolled into it; "
            "GET /collections lists them."
        )
    return int(row[0])


def ensure_collection(connection: sa.Connection, name: str) -> int:
    """The locked collection of that name, made if need be."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    for _ in range(10):
        try:
            return collection_key(connection, name, lock=True)
        except UnknownCollection:
            connection.execute(insert(collection).values(name=name, created_at=now()).on_conflict_do_nothing())
    raise AssertionError(f"the collection {name!r} goes as often as it comes")


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
    """Delete a collection with all in it: at once, or, of a large one, the name at once and the rest by `purge`.

    Raises `UnknownCollection`.
    """
    key = collection_key(connection, name, lock=True)
    _, references = searched(connection, key)
    if references > PURGED_AT_ONCE:
        gone = sa.update(collection).where(collection.c.key == key).values(name=f"{DELETED}{key}")
        connection.execute(gone)
        return
    within = sa.select(identity.c.key).where(identity.c.collection_key == key)
    forget_originals(connection, reference.c.identity_key.in_(within))
    connection.execute(sa.delete(collection).where(collection.c.key == key))


def has_deleted(connection: sa.Connection) -> bool:
    """Whether there is something to purge."""
    return connection.scalar(sa.select(collection.c.key).where(~LIVE).limit(1)) is not None


def purge(connection: sa.Connection) -> bool:
    """Delete some of what large deleted collections left; whether there may be more. Each time a short transaction."""
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


def searched(connection: sa.Connection, key: int, where: Filter | None = None) -> tuple[int, int]:
    """How many identities with references, and how many references, a search of the collection covers."""
    if where is not None:
        those = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(identity.c.reference_count), 0)).where(
            identity.c.collection_key == key, identity.c.reference_count > 0, matches_filter(connection, where)
        )
        identities, references = connection.execute(those).one()
        return int(identities), int(references)
    row = COUNTS.first(connection, key=key)
    return (int(row[0]), int(row[1])) if row else (0, 0)


def sizes(connection: sa.Connection) -> tuple[int, int]:
    """Identities with references, and references, in all collections."""
    sums = (
        sa.func.coalesce(sa.func.sum(of), 0) for of in (collection.c.searchable_count, collection.c.reference_count)
    )
    identities, references = connection.execute(sa.select(*sums).where(LIVE)).one()
    return int(identities), int(references)


def count(connection: sa.Connection, collection_key: int, *, references: int, searchable: int) -> None:
    """Note that so many references, and identities with references, came (or went, if negative)."""
    COUNT.run(connection, of=collection_key, references=references, searchable=searchable)


def forget_originals(connection: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    """Note kept images that lose their references, for `originals` to delete once that is certain."""
    kept = sa.select(reference.c.original_id).where(which, reference.c.original_id.is_not(None))
    connection.execute(sa.insert(leftover).from_select(["original_id"], kept))


# --- identities --------------------------------------------------------------------------------------------


def identity_key(connection: sa.Connection, collection_name: str, name: str, *, lock: bool = False) -> int:
    """With `lock`, nobody else changes its collection. Raises `UnknownCollection` or `UnknownIdentity`."""
    within = collection_key(connection, collection_name, lock=lock)
    row = IDENTITY.first(connection, within=within, name=name)
    if row is None:
        raise UnknownIdentity(f"There is no identity {name!r} in the collection {collection_name!r}.")
    return int(row[0])


def ensure_identity(
    connection: sa.Connection, collection_key: int, name: str, metadata: dict[str, Any] | None = None
) -> int:
    """The identity of that name in a locked collection, made if need be, with metadata merged in."""
    row = IDENTITY.first(connection, within=collection_key, name=name)
    if row is None:
        row = NEW_IDENTITY.first(connection, collection_key=collection_key, name=name, metadata={}, created_at=now())
    assert row is not None  # noqa: S101  an insert answers its key
    key = int(row[0])
    if metadata:
        _merge_metadata(connection, key, metadata)
    return key


def list_identities(
    connection: sa.Connection, collection_name: str, limit: int, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of identities by name, and the cursor of the next. Raises `UnknownCollection`, `InvalidRequest`."""
    within = collection_key(connection, collection_name)
    query = (
        sa.select(
            identity.c.name.label("identity"),
            identity.c.metadata,
            identity.c.reference_count.label("references"),
            identity.c.created_at,
        )
        .where(identity.c.collection_key == within)
        .order_by(identity.c.name)
        .limit(limit + 1)
    )
    if cursor is not None:
        query = query.where(identity.c.name > _after(cursor))
    rows = [dict(row) for row in connection.execute(query).mappings()]
    if len(rows) <= limit:
        return rows, None
    last = str(rows[limit - 1]["identity"])
    return rows[:limit], base64.urlsafe_b64encode(last.encode()).decode()


def _after(cursor: str) -> str:
    try:
        name = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        name = "\0"
    if "\0" in name:
        raise InvalidRequest("`cursor` is none that this service gave. Leave it out to start anew.")
    return name


def get_identity(connection: sa.Connection, collection_name: str, name: str) -> dict[str, Any]:
    """One identity with its metadata and references. Raises `UnknownCollection` or `UnknownIdentity`."""
    key = identity_key(connection, collection_name, name)
    row = connection.execute(sa.select(identity.c.metadata, identity.c.created_at).where(identity.c.key == key)).one()
    references = connection.execute(
        sa.select(reference.c.reference_id, reference.c.filename, reference.c.created_at)
        .where(reference.c.identity_key == key)
        .order_by(reference.c.key)
    )
    return {
        "collection": collection_name,
        "identity": name,
        "metadata": row.metadata,
        "created_at": row.created_at,
        "references": [dict(found) for found in references.mappings()],
    }


def change_identity(
    connection: sa.Connection,
    collection_name: str,
    name: str,
    new_name: str | None,
    metadata: dict[str, Any] | None,
) -> None:
    """Rename an identity, merge into its metadata, or both. Raises `IdentityExists`, `UnknownIdentity`."""
    key = identity_key(connection, collection_name, name, lock=True)
    if metadata:
        _merge_metadata(connection, key, metadata)
    if new_name is not None and new_name != name:
        taken = sa.select(identity.c.key).where(
            identity.c.collection_key == collection_key(connection, collection_name),
            identity.c.name == new_name,
        )
        if connection.scalar(taken) is not None:
            raise IdentityExists(f"The collection {collection_name!r} has an identity {new_name!r} already.")
        connection.execute(sa.update(identity).where(identity.c.key == key).values(name=new_name))


def delete_identity(connection: sa.Connection, collection_name: str, name: str) -> None:
    """Delete an identity with its references. Raises `UnknownCollection` or `UnknownIdentity`."""
    key = identity_key(connection, collection_name, name, lock=True)
    forget_originals(connection, reference.c.identity_key == key)
    held = sa.select(identity.c.collection_key, identity.c.reference_count).where(identity.c.key == key)
    within, references = connection.execute(held).one()
    connection.execute(sa.delete(identity).where(identity.c.key == key))
    count(connection, within, references=-references, searchable=-int(references > 0))


def _merge_metadata(connection: sa.Connection, key: int, new: dict[str, Any]) -> None:
    """Top-level keys replace; null removes (RFC 7396, one level deep)."""
    old = connection.scalar(sa.select(identity.c.metadata).where(identity.c.key == key)) or {}
    merged = {name: value for name, value in {**old, **new}.items() if value is not None}
    check_metadata_size(len(json.dumps(merged, ensure_ascii=False).encode()))
    connection.execute(sa.update(identity).where(identity.c.key == key).values(metadata=merged))
