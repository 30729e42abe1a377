"""References: what is enrolled, as functions of a connection. The caller holds the transaction."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from app.arrays import EmbeddingsF32
from app.database.statements import chunks
from app.database.tables import LIVE, collection, embedding, identity, reference
from app.errors import NoReferences, UnknownReference
from app.gallery.collections import adjust_counts, forget_originals
from app.gallery.encoders import Loaded, find_model_key
from app.gallery.idempotency import empty_answers_of_reference
from app.gallery.identities import identity_key


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
