"""References: enrolled images and their embeddings, as functions of a connection. The caller holds the transaction."""

import itertools
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa

from app.arrays import EmbeddingsF32
from app.database.statements import Statement, chunks
from app.database.tables import LIVE, collection, embedding, identity, leftover, reference, timestamp
from app.errors import NoReferences, UnknownReference
from app.gallery.collections import adjust_counts, ensure_collection, forget_originals
from app.gallery.encoders import Loaded, adopt_model, find_model_key
from app.gallery.idempotency import empty_answers_of_reference
from app.gallery.identities import ensure_identities, ensure_identity, identity_key

ADD_TO_COUNT = Statement(
    sa.update(identity)
    .where(identity.c.key == sa.bindparam("of"))
    .values(reference_count=identity.c.reference_count + sa.bindparam("added"))
    .returning(identity.c.reference_count)
)


def new_reference_id() -> str:
    """An id that can't be guessed and that sorts by time: an index of random ids would be written to all over."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


@dataclass(frozen=True)
class NewReference:
    """An embedded image that is about to be enrolled; `original_id` is the id of the kept image, if it is kept."""

    filename: str
    image_sha256: str
    embedding_D: EmbeddingsF32
    original_id: str | None = None
    reference_id: str = field(default_factory=new_reference_id)
    created_at: str | None = None


@dataclass(frozen=True)
class StoredReferences:
    """References of one identity, in the order of enrolment: ids, and embeddings `[R, D]`."""

    reference_ids: list[str]
    embeddings_RD: EmbeddingsF32


@dataclass(frozen=True)
class Enrolled:
    """A reference with the names of its collection and identity, and its embedding `[D]`."""

    collection: str
    identity: str
    reference_id: str
    filename: str
    embedding_D: EmbeddingsF32


def enroll_images(
    connection: sa.Connection,
    collection_name: str,
    name: str,
    metadata: dict[str, Any],
    images: Sequence[NewReference],
    loaded: Loaded,
) -> list[dict[str, str]]:
    """Add references to an identity; it and its collection are created if necessary. One entry per image.

    An image that the identity already holds (the same bytes) is answered with the reference that it has.
    Raises `ModelMismatch` if the gallery belongs to another encoder, `InvalidMetadata` if the identity's metadata
    would become too large.
    """
    model_key = adopt_model(connection, loaded)
    within = ensure_collection(connection, collection_name)
    key = ensure_identity(connection, within, name, metadata)
    return _add(connection, model_key, within, {key: images})


def enroll_identities(
    connection: sa.Connection,
    collection_name: str,
    by_identity: Mapping[str, Sequence[NewReference]],
    loaded: Loaded,
    metadata: Mapping[str, dict[str, Any]] | None = None,
) -> list[dict[str, str]]:
    """`enroll_images` for many identities of a collection; new identities get their metadata. Raises the same."""
    model_key = adopt_model(connection, loaded)
    within = ensure_collection(connection, collection_name)
    keys = ensure_identities(connection, within, list(by_identity), metadata or {})
    return _add(connection, model_key, within, {keys[name]: images for name, images in by_identity.items()})


def _add(
    connection: sa.Connection, model_key: int, within: int, by_identity: Mapping[int, Sequence[NewReference]]
) -> list[dict[str, str]]:
    """Insert what the identities do not hold yet. A reference whose image is not kept gains the kept image."""
    now, entries = timestamp(), []
    new: dict[str, dict[str, Any]] = {}
    embeddings: dict[str, EmbeddingsF32] = {}
    unused: list[dict[str, str]] = []
    held = _find_held(connection, by_identity)
    for key, images in by_identity.items():
        for image in images:
            reference_id, original_id = held.get((key, image.image_sha256), (None, None))
            if reference_id is None:
                reference_id = image.reference_id
                embeddings[reference_id] = image.embedding_D
                new[reference_id] = {
                    "reference_id": reference_id,
                    "identity_key": key,
                    "collection_key": within,
                    "image_sha256": image.image_sha256,
                    "filename": image.filename,
                    "original_id": image.original_id,
                    "created_at": image.created_at or now,
                }
            elif image.original_id is not None and original_id is not None:
                unused.append({"original_id": image.original_id})
            elif image.original_id is not None:
                gains = sa.update(reference).where(reference.c.reference_id == reference_id)
                connection.execute(gains.values(original_id=image.original_id))
            held[key, image.image_sha256] = (reference_id, original_id or image.original_id)
            entries.append({"reference_id": reference_id, "filename": image.filename})
    if unused:
        connection.execute(sa.insert(leftover), unused)
    if new:
        connection.execute(sa.insert(reference), list(new.values()))
        add_embeddings(connection, model_key, embeddings)
        _count_new(connection, within, [row["identity_key"] for row in new.values()])
    return entries


def _find_held(
    connection: sa.Connection, by_identity: Mapping[int, Sequence[NewReference]]
) -> dict[tuple[int, str], tuple[str, str | None]]:
    """For each identity and image that is enrolled already: its reference_id, and the id of its kept image."""
    held: dict[tuple[int, str], tuple[str, str | None]] = {}
    columns = (reference.c.identity_key, reference.c.image_sha256, reference.c.reference_id, reference.c.original_id)
    for keys in chunks(list(by_identity)):
        # Asked for by image too: an identity may have a thousand.
        for hashes in chunks([image.image_sha256 for key in keys for image in by_identity[key]]):
            query = sa.select(*columns).where(reference.c.identity_key.in_(keys), reference.c.image_sha256.in_(hashes))
            held |= {(row[0], row[1]): (row[2], row[3]) for row in connection.execute(query)}
    return held


def add_embeddings(connection: sa.Connection, model_key: int, by_id: Mapping[str, EmbeddingsF32]) -> None:
    """Embeddings `[D]` of one model, by reference_id, for the references that exist and have none of it yet."""
    for ids in chunks(list(by_id)):
        has = sa.exists().where(embedding.c.reference_key == reference.c.key, embedding.c.model_key == model_key)
        columns = (reference.c.key, reference.c.reference_id, reference.c.identity_key, reference.c.collection_key)
        # Locked against deletion, where others write meanwhile: an embedding needs its reference.
        wanted = sa.select(*columns).where(reference.c.reference_id.in_(ids), ~has)
        rows = connection.execute(wanted.with_for_update(read=True, key_share=True, of=reference)).all()
        if rows:
            new = [
                {
                    "reference_key": row.key,
                    "model_key": model_key,
                    "identity_key": row.identity_key,
                    "collection_key": row.collection_key,
                    "vector": by_id[row.reference_id],
                }
                for row in rows
            ]
            connection.execute(sa.insert(embedding), new)


def _count_new(connection: sa.Connection, within: int, identity_keys: Sequence[int]) -> None:
    first = 0
    for key, added in Counter(identity_keys).items():
        count = ADD_TO_COUNT.first(connection, of=key, added=added)
        first += count is not None and count[0] == added
    adjust_counts(connection, within, references=len(identity_keys), searchable=first)


def references_of(connection: sa.Connection, collection_name: str, name: str, loaded: Loaded) -> StoredReferences:
    """The references of one identity.

    Raises `UnknownCollection`, `UnknownIdentity`, `ModelMismatch`, or `NoReferences` if all were deleted.
    """
    key = identity_key(connection, collection_name, name)
    model_key = find_model_key(connection, loaded)
    rows = connection.execute(
        sa.select(reference.c.reference_id, embedding.c.vector)
        .join(embedding, embedding.c.reference_key == reference.c.key)
        .where(reference.c.identity_key == key, embedding.c.model_key == model_key)
        .order_by(reference.c.key)
    ).all()
    if not rows:
        raise NoReferences(f"The identity {name!r} has no references. Enroll an image of it first.")
    return StoredReferences([row.reference_id for row in rows], np.stack([row.vector for row in rows]))


def references_by_collection(connection: sa.Connection, loaded: Loaded) -> Iterator[list[Enrolled]]:
    """All references, one collection at a time, by name. Raises `ModelMismatch`."""
    model_key = find_model_key(connection, loaded)
    rows = connection.execute(
        sa.select(
            collection.c.name.label("collection"),
            identity.c.name.label("identity"),
            reference.c.reference_id,
            reference.c.filename,
            embedding.c.vector,
        )
        .join(reference, reference.c.key == embedding.c.reference_key)
        .join(identity, identity.c.key == reference.c.identity_key)
        .join(collection, collection.c.key == reference.c.collection_key)
        .where(embedding.c.model_key == model_key, LIVE)
        .order_by(collection.c.name, reference.c.key)
    )
    for _, of_collection in itertools.groupby(rows, key=lambda row: row.collection):
        yield [Enrolled(r.collection, r.identity, r.reference_id, r.filename, r.vector) for r in of_collection]


def delete_reference(connection: sa.Connection, collection_name: str, name: str, reference_id: str) -> None:
    """Delete one reference; its identity stays. Raises `UnknownCollection`, `UnknownIdentity`, `UnknownReference`."""
    key = identity_key(connection, collection_name, name, lock=True)
    if "\0" in reference_id:  # which PostgreSQL can't even be asked for
        raise UnknownReference(f"The identity {name!r} has no reference {reference_id!r}.")
    condition = sa.and_(reference.c.identity_key == key, reference.c.reference_id == reference_id)
    forget_originals(connection, condition)
    if not connection.execute(sa.delete(reference).where(condition)).rowcount:
        raise UnknownReference(f"The identity {name!r} has no reference {reference_id!r}.")
    empty_answers_of_reference(connection, key, reference_id)
    fewer = sa.update(identity).where(identity.c.key == key).values(reference_count=identity.c.reference_count - 1)
    within, left = connection.execute(fewer.returning(identity.c.collection_key, identity.c.reference_count)).one()
    adjust_counts(connection, within, references=-1, searchable=-int(left == 0))


def find_known_references(connection: sa.Connection, reference_ids: Sequence[str]) -> set[str]:
    """Those of these ids that are ids of references."""
    known = sa.select(reference.c.reference_id)
    return {
        reference_id
        for ids in chunks(reference_ids)
        for reference_id in connection.scalars(known.where(reference.c.reference_id.in_(ids)))
    }
