"""What is enrolled: queries and changes as functions of a connection. The caller holds the transaction."""

import base64
import binascii
import itertools
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from app.database import collection, identity, reference
from app.errors import (
    IdentityExists,
    InvalidMetadata,
    InvalidRequest,
    ModelMismatch,
    NoReferences,
    UnknownCollection,
    UnknownIdentity,
    UnknownReference,
)
from app.matching import EmbeddingsF32
from app.weak_spots import Enrolled

MAX_METADATA_BYTES = 16 * 1024


@dataclass(frozen=True)
class NewReference:
    """An embedded image on its way in."""

    filename: str
    image_sha256: str
    embedding_D: EmbeddingsF32


@dataclass(frozen=True)
class StoredReferences:
    """References of one identity, in the order of enrolment: ids, and embeddings `[R, D]`."""

    reference_ids: list[str]
    embeddings_RD: EmbeddingsF32


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- collections -------------------------------------------------------------------------------------------


def collection_key(connection: sa.Connection, name: str) -> int:
    """Raises `UnknownCollection`."""
    key = connection.scalar(sa.select(collection.c.key).where(collection.c.name == name))
    if key is None:
        raise UnknownCollection(
            f"There is no collection {name!r}. One comes to be when something is enrolled into it; "
            "GET /collections lists them."
        )
    return int(key)


def check_model(connection: sa.Connection, model_id: str) -> None:
    """Raises `ModelMismatch` if the gallery holds references of another encoder."""
    # min and max, each a look into the index, whatever the size of the gallery
    for extreme in (sa.func.min, sa.func.max):
        found = connection.scalar(sa.select(extreme(reference.c.model_id)))
        if found is not None and found != model_id:
            raise ModelMismatch(
                f"The gallery was enrolled with model {found}, this is model {model_id}: their embeddings can't be "
                "compared. Serve the checkpoint of that model."
            )


def list_collections(connection: sa.Connection) -> list[dict[str, Any]]:
    """Every collection with its numbers of identities and references, by name."""
    identities = sa.select(sa.func.count()).where(identity.c.collection_key == collection.c.key).scalar_subquery()
    references = sa.select(sa.func.count()).where(reference.c.collection_key == collection.c.key).scalar_subquery()
    rows = connection.execute(
        sa.select(
            collection.c.name.label("collection"),
            identities.label("identities"),
            references.label("references"),
            collection.c.created_at,
        ).order_by(collection.c.name)
    )
    return [dict(row) for row in rows.mappings()]


def delete_collection(connection: sa.Connection, name: str) -> None:
    """Delete a collection with all in it. Raises `UnknownCollection`."""
    key = collection_key(connection, name)
    connection.execute(sa.delete(collection).where(collection.c.key == key))


def searched(connection: sa.Connection, key: int) -> tuple[int, int]:
    """How many identities with references, and how many references, a search of the collection covers."""
    counts = sa.select(sa.func.count(reference.c.identity_key.distinct()), sa.func.count())
    identities, references = connection.execute(counts.where(reference.c.collection_key == key)).one()
    return int(identities), int(references)


# --- identities --------------------------------------------------------------------------------------------


def identity_key(connection: sa.Connection, collection_name: str, name: str) -> int:
    """Raises `UnknownCollection` or `UnknownIdentity`."""
    within = collection_key(connection, collection_name)
    key = connection.scalar(
        sa.select(identity.c.key).where(identity.c.collection_key == within, identity.c.name == name)
    )
    if key is None:
        raise UnknownIdentity(f"There is no identity {name!r} in the collection {collection_name!r}.")
    return int(key)


def list_identities(
    connection: sa.Connection, collection_name: str, limit: int, cursor: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of identities by name, and the cursor of the next. Raises `UnknownCollection`, `InvalidRequest`."""
    within = collection_key(connection, collection_name)
    references = sa.select(sa.func.count()).where(reference.c.identity_key == identity.c.key).scalar_subquery()
    query = (
        sa.select(
            identity.c.name.label("identity"),
            identity.c.metadata,
            references.label("references"),
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
        return base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        raise InvalidRequest("`cursor` is none that this service gave. Leave it out to start anew.") from None


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
    key = identity_key(connection, collection_name, name)
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
    key = identity_key(connection, collection_name, name)
    connection.execute(sa.delete(identity).where(identity.c.key == key))


def _merge_metadata(connection: sa.Connection, key: int, new: dict[str, Any]) -> None:
    """Top-level keys replace; null removes (RFC 7396, one level deep)."""
    old = connection.scalar(sa.select(identity.c.metadata).where(identity.c.key == key)) or {}
    merged = {name: value for name, value in {**old, **new}.items() if value is not None}
    size = len(json.dumps(merged, ensure_ascii=False).encode())
    if size > MAX_METADATA_BYTES:
        raise InvalidMetadata(
            f"The identity's metadata would take {size:,} bytes; at most {MAX_METADATA_BYTES:,} are allowed."
        )
    connection.execute(sa.update(identity).where(identity.c.key == key).values(metadata=merged))


# --- references --------------------------------------------------------------------------------------------


def enroll(
    connection: sa.Connection,
    collection_name: str,
    name: str,
    metadata: dict[str, Any],
    images: Sequence[NewReference],
    model_id: str,
) -> list[dict[str, str]]:
    """Add references to an identity, making it and its collection if need be; one entry per image.

    An image that the identity holds already (the same bytes) answers with the reference it has.
    Raises `ModelMismatch` if the collection belongs to another encoder.
    """
    now = _now()
    connection.execute(insert(collection).values(name=collection_name, created_at=now).on_conflict_do_nothing())
    within = collection_key(connection, collection_name)
    check_model(connection, model_id)
    connection.execute(
        insert(identity).values(collection_key=within, name=name, metadata={}, created_at=now).on_conflict_do_nothing()
    )
    key = identity_key(connection, collection_name, name)
    if metadata:
        _merge_metadata(connection, key, metadata)
    entries = []
    for image in images:
        connection.execute(
            insert(reference)
            .values(
                reference_id=uuid.uuid4().hex,
                identity_key=key,
                collection_key=within,
                model_id=model_id,
                image_sha256=image.image_sha256,
                filename=image.filename,
                embedding=np.ascontiguousarray(image.embedding_D, dtype="<f4").tobytes(),
                created_at=now,
            )
            .on_conflict_do_nothing(index_elements=["identity_key", "image_sha256"])
        )
        reference_id = connection.scalar(
            sa.select(reference.c.reference_id).where(
                reference.c.identity_key == key, reference.c.image_sha256 == image.image_sha256
            )
        )
        entries.append({"reference_id": str(reference_id), "filename": image.filename})
    return entries


def references_of(connection: sa.Connection, collection_name: str, name: str, model_id: str) -> StoredReferences:
    """Raises `UnknownCollection`, `UnknownIdentity`, `ModelMismatch`, or `NoReferences` if there are none left."""
    key = identity_key(connection, collection_name, name)
    check_model(connection, model_id)
    rows = connection.execute(
        sa.select(reference.c.reference_id, reference.c.embedding)
        .where(reference.c.identity_key == key)
        .order_by(reference.c.key)
    ).all()
    if not rows:
        raise NoReferences(f"The identity {name!r} has no references left. Enroll an image of it first.")
    embeddings_RD = np.stack([np.frombuffer(row.embedding, dtype="<f4") for row in rows])
    return StoredReferences([row.reference_id for row in rows], embeddings_RD)


def references_by_collection(connection: sa.Connection, model_id: str) -> Iterator[list[Enrolled]]:
    """All references, one collection at a time, by name. Raises `ModelMismatch`."""
    check_model(connection, model_id)
    rows = connection.execute(
        sa.select(
            collection.c.name.label("collection"),
            identity.c.name.label("identity"),
            reference.c.reference_id,
            reference.c.filename,
            reference.c.embedding,
        )
        .join(identity, identity.c.key == reference.c.identity_key)
        .join(collection, collection.c.key == reference.c.collection_key)
        .order_by(collection.c.name, reference.c.key)
    )
    for _, of_one in itertools.groupby(rows, key=lambda row: row.collection):
        yield [
            Enrolled(r.collection, r.identity, r.reference_id, r.filename, np.frombuffer(r.embedding, dtype="<f4"))
            for r in of_one
        ]


def describe(connection: sa.Connection, reference_keys: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Identity, metadata and reference_id behind references of the index; those deleted since are left out."""
    rows = connection.execute(
        sa.select(reference.c.key, identity.c.name.label("identity"), identity.c.metadata, reference.c.reference_id)
        .join(identity, identity.c.key == reference.c.identity_key)
        .where(reference.c.key.in_(reference_keys))
    )
    return {
        row.key: {"identity": row.identity, "metadata": row.metadata, "reference_id": row.reference_id} for row in rows
    }


def delete_reference(connection: sa.Connection, collection_name: str, name: str, reference_id: str) -> None:
    """Raises `UnknownCollection`, `UnknownIdentity` or `UnknownReference`."""
    key = identity_key(connection, collection_name, name)
    deleted = connection.execute(
        sa.delete(reference).where(reference.c.identity_key == key, reference.c.reference_id == reference_id)
    )
    if not deleted.rowcount:
        raise UnknownReference(f"The identity {name!r} has no reference {reference_id!r}.")
