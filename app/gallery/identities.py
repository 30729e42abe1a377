"""Identities: queries and changes as functions of a connection. The caller holds the transaction."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from app.database.statements import Statement, chunks
from app.database.tables import identity, reference, timestamp
from app.errors import IdentityExists, InvalidRequest, UnknownIdentity
from app.gallery.collections import adjust_counts, collection_key, forget_originals
from app.gallery.idempotency import empty_answers_of_identity
from app.gallery.names import check_metadata_size

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


def identity_key(connection: sa.Connection, collection_name: str, name: str, *, lock: bool = False) -> int:
    """The key of an identity. With `lock`, nobody else changes its collection before the transaction ends.

    Raises `UnknownCollection` or `UnknownIdentity`.
    """
    within = collection_key(connection, collection_name, lock=lock)
    row = IDENTITY.first(connection, within=within, name=name)
    if row is None:
        raise UnknownIdentity(f"There is no identity {name!r} in the collection {collection_name!r}.")
    return int(row[0])


def ensure_identity(
    connection: sa.Connection, collection_key: int, name: str, metadata: dict[str, Any] | None = None
) -> int:
    """The key of the identity of that name in a locked collection, created if necessary; metadata is merged in.

    Raises `InvalidMetadata` where the merged metadata is too large.
    """
    row = IDENTITY.first(connection, within=collection_key, name=name)
    if row is None:
        row = NEW_IDENTITY.first(
            connection, collection_key=collection_key, name=name, metadata={}, created_at=timestamp()
        )
    assert row is not None  # noqa: S101  an insert answers its key
    key = int(row[0])
    if metadata:
        _merge_metadata(connection, key, metadata)
    return key


def ensure_identities(
    connection: sa.Connection, collection_key: int, names: Sequence[str], metadata: Mapping[str, dict[str, Any]]
) -> dict[str, int]:
    """`ensure_identity` for many: their keys by name. Only new ones get their metadata."""

    def find_keys() -> dict[str, int]:
        columns = sa.select(identity.c.name, identity.c.key).where(identity.c.collection_key == collection_key)
        return {
            row.name: row.key
            for chunk in chunks(names)
            for row in connection.execute(columns.where(identity.c.name.in_(chunk)))
        }

    keys = find_keys()
    new = {"collection_key": collection_key, "created_at": timestamp()}
    missing = [{**new, "name": name, "metadata": metadata.get(name, {})} for name in names if name not in keys]
    if missing:
        connection.execute(sa.insert(identity), missing)
        keys = find_keys()
    return keys


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
        query = query.where(identity.c.name > _name_in(cursor))
    rows = [dict(row) for row in connection.execute(query).mappings()]
    if len(rows) <= limit:
        return rows, None
    last = str(rows[limit - 1]["identity"])
    return rows[:limit], base64.urlsafe_b64encode(last.encode()).decode()


def _name_in(cursor: str) -> str:
    try:
        name = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        name = "\0"
    if "\0" in name:
        raise InvalidRequest("`cursor` is not valid. Use `next_cursor` of a page, or leave it out for the first page.")
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
        "references": [dict(entry) for entry in references.mappings()],
    }


def change_identity(
    connection: sa.Connection,
    collection_name: str,
    name: str,
    new_name: str | None,
    metadata: dict[str, Any] | None,
) -> None:
    """Rename an identity, merge into its metadata, or both.

    Raises `UnknownCollection`, `UnknownIdentity`, `IdentityExists` where the new name is taken, and `InvalidMetadata`
    where the merged metadata is too large.
    """
    key = identity_key(connection, collection_name, name, lock=True)
    if metadata:
        _merge_metadata(connection, key, metadata)
    if new_name is not None and new_name != name:
        within = collection_key(connection, collection_name)
        if IDENTITY.first(connection, within=within, name=new_name) is not None:
            raise IdentityExists(f"The collection {collection_name!r} already has an identity {new_name!r}.")
        connection.execute(sa.update(identity).where(identity.c.key == key).values(name=new_name))


def delete_identity(connection: sa.Connection, collection_name: str, name: str) -> None:
    """Delete an identity with its references. Raises `UnknownCollection` or `UnknownIdentity`."""
    key = identity_key(connection, collection_name, name, lock=True)
    empty_answers_of_identity(connection, key)
    forget_originals(connection, reference.c.identity_key == key)
    held = sa.select(identity.c.collection_key, identity.c.reference_count).where(identity.c.key == key)
    within, references = connection.execute(held).one()
    connection.execute(sa.delete(identity).where(identity.c.key == key))
    adjust_counts(connection, within, references=-references, searchable=-int(references > 0))


def _merge_metadata(connection: sa.Connection, key: int, new: dict[str, Any]) -> None:
    """Top-level keys replace; null removes (RFC 7396, one level deep)."""
    old = connection.scalar(sa.select(identity.c.metadata).where(identity.c.key == key)) or {}
    merged = {name: value for name, value in {**old, **new}.items() if value is not None}
    check_metadata_size(len(json.dumps(merged, ensure_ascii=False).encode()))
    connection.execute(sa.update(identity).where(identity.c.key == key).values(metadata=merged))
