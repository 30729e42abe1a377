"""References: enrolled images and their embeddings, as functions of a connection. The caller holds the transaction."""

import itertools
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa

from app.arrays import EmbeddingsF32
from app.database.statements import Statement
from app.database.tables import LIVE, collection, embedding, identity, leftover, reference
from app.errors import NoReferences, UnknownReference
from app.gallery import collections as gallery
from app.gallery import encoders as models
from app.gallery.encoders import Loaded

# Values in one `IN (...)`; SQLite allows 32,766.
CHUNK = 1000
# So many images are looked up and inserted one by one; more of them together.
FEW = 4

HELD = Statement(
    sa.select(reference.c.reference_id, reference.c.original_id).where(
        reference.c.identity_key == sa.bindparam("key"), reference.c.image_sha256 == sa.bindparam("sha256")
    )
)
_REFERENCE = ("reference_id", "identity_key", "collection_key", "image_sha256", "filename", "original_id", "created_at")
NEW = Statement(
    sa.insert(reference).values({name: sa.bindparam(name) for name in _REFERENCE}).returning(reference.c.key)
)
_EMBEDDING = ("reference_key", "model_key", "identity_key", "collection_key", "vector")
EMBEDDED = Statement(sa.insert(embedding).values({name: sa.bindparam(name) for name in _EMBEDDING}))
GROWN = Statement(
    sa.update(identity)
    .where(identity.c.key == sa.bindparam("of"))
    .values(reference_count=identity.c.reference_count + sa.bindparam("came"))
    .returning(identity.c.reference_count)
)


def new_id() -> str:
    """An id that nobody guesses, and that sorts by its time: an index of random ones is written all over."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


@dataclass(frozen=True)
class NewReference:
    """An embedded image on its way in; `original_id` says under which name it is kept, if it is."""

    filename: str
    image_sha256: str
    embedding_D: EmbeddingsF32
    original_id: str | None = None
    reference_id: str = field(default_factory=new_id)
    created_at: str | None = None


@dataclass(frozen=True)
class StoredReferences:
    """References of one identity, in the order of enrolment: ids, and embeddings `[R, D]`."""

    reference_ids: list[str]
    embeddings_RD: EmbeddingsF32


@dataclass(frozen=True)
class Enrolled:
    """A reference: where it stands, and its embedding `[D]`."""

    collection: str
    identity: str
    reference_id: str
    filename: str
    embedding_D: EmbeddingsF32


def enroll(
    connection: sa.Connection,
    collection_name: str,
    name: str,
    metadata: dict[str, Any],
    images: Sequence[NewReference],
    loaded: Loaded,
) -> list[dict[str, str]]:
    """Add references to an identity, making it and its collection if need be; one entry per image.

    An image that the identity holds already (the same bytes) answers with the reference it has.
    Raises `ModelMismatch` if the gallery belongs to another encoder.
    """
    model_key = models.adopt(connection, loaded)
    within = gallery.ensure_collection(connection, collection_name)
    key = gallery.ensure_identity(connection, within, name, metadata)
    return _add(connection, model_key, within, {key: images})


def enroll_many(
    connection: sa.Connection,
    collection_name: str,
    by_identity: Mapping[str, Sequence[NewReference]],
    loaded: Loaded,
    metadata: Mapping[str, dict[str, Any]] | None = None,
) -> list[dict[str, str]]:
    """`enroll` for many identities of a collection at once; those that are new get their metadata."""
    model_key = models.adopt(connection, loaded)
    within = gallery.ensure_collection(connection, collection_name)
    return _add(connection, model_key, within, _identities(connection, within, by_identity, metadata or {}))


def _identities(
    connection: sa.Connection,
    within: int,
    by_identity: Mapping[str, Sequence[NewReference]],
    metadata: Mapping[str, dict[str, Any]],
) -> dict[int, Sequence[NewReference]]:
    def known() -> dict[str, int]:
        columns = sa.select(identity.c.name, identity.c.key)
        return {
            row.name: row.key
            for some in chunks(list(by_identity))
            for row in connection.execute(columns.where(identity.c.collection_key == within, identity.c.name.in_(some)))
        }

    found = known()
    new = {"collection_key": within, "created_at": gallery.now()}
    missing = [{**new, "name": name, "metadata": metadata.get(name, {})} for name in by_identity if name not in found]
    if missing:
        connection.execute(sa.insert(identity), missing)
        found = known()
    return {found[name]: images for name, images in by_identity.items()}


def _add(
    connection: sa.Connection, model_key: int, within: int, by_identity: Mapping[int, Sequence[NewReference]]
) -> list[dict[str, str]]:
    """Insert what the identities do not hold yet; what they hold without its image being kept gains that."""
    now, entries = gallery.now(), []
    new: dict[str, dict[str, Any]] = {}
    embeddings: dict[str, EmbeddingsF32] = {}
    unused: list[dict[str, str]] = []
    holds = _held(connection, by_identity)
    for key, images in by_identity.items():
        for image in images:
            reference_id, original_id = holds.get((key, image.image_sha256), (None, None))
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
            holds[key, image.image_sha256] = (reference_id, original_id or image.original_id)
            entries.append({"reference_id": reference_id, "filename": image.filename})
    if unused:
        connection.execute(sa.insert(leftover), unused)
    if len(new) <= FEW:
        for reference_id, row in new.items():
            made = NEW.first(connection, **row)
            assert made is not None  # noqa: S101  an insert answers its key
            where = {"model_key": model_key, "identity_key": row["identity_key"], "collection_key": within}
            EMBEDDED.run(connection, reference_key=made[0], vector=embeddings[reference_id], **where)
            grown = GROWN.first(connection, of=row["identity_key"], came=1)
            gallery.count(connection, within, references=1, searchable=int(grown is not None and grown[0] == 1))
    else:
        connection.execute(sa.insert(reference), list(new.values()))
        add_embeddings(connection, model_key, embeddings)
        _count(connection, within, [row["identity_key"] for row in new.values()])
    return entries


def _held(
    connection: sa.Connection, by_identity: Mapping[int, Sequence[NewReference]]
) -> dict[tuple[int, str], tuple[str, str | None]]:
    """By identity and image: the reference that holds it, and under which name it is kept."""
    if sum(len(images) for images in by_identity.values()) <= FEW:
        asked = ((key, image.image_sha256) for key, images in by_identity.items() for image in images)
        found = ((one, HELD.first(connection, key=one[0], sha256=one[1])) for one in asked)
        return {one: (row[0], row[1]) for one, row in found if row is not None}
    held: dict[tuple[int, str], tuple[str, str | None]] = {}
    columns = (reference.c.identity_key, reference.c.image_sha256, reference.c.reference_id, reference.c.original_id)
    for keys in chunks(list(by_identity)):
        # Of few identities the images alone are asked for: one of them may have a thousand.
        for some in chunks([image.image_sha256 for key in keys for image in by_identity[key]]):
            query = sa.select(*columns).where(reference.c.identity_key.in_(keys), reference.c.image_sha256.in_(some))
            held |= {(row[0], row[1]): (row[2], row[3]) for row in connection.execute(query)}
    return held


def add_embeddings(connection: sa.Connection, model_key: int, by_id: Mapping[str, EmbeddingsF32]) -> None:
    """Embeddings of one model for references that have none of it yet, by reference_id."""
    for some in chunks(list(by_id)):
        has = sa.exists().where(embedding.c.reference_key == reference.c.key, embedding.c.model_key == model_key)
        found = sa.select(
            reference.c.key, reference.c.reference_id, reference.c.identity_key, reference.c.collection_key
        )
        # Locked against deletion, where others write meanwhile: an embedding needs its reference.
        wanted = found.where(reference.c.reference_id.in_(some), ~has).with_for_update(
            read=True, key_share=True, of=reference
        )
        rows = connection.execute(wanted).all()
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


def _count(connection: sa.Connection, within: int, identity_keys: Sequence[int]) -> None:
    keys, came = np.unique(np.asarray(identity_keys, dtype=np.int64), return_counts=True)
    empty = 0
    for some in chunks(keys.tolist()):
        query = sa.select(sa.func.count()).where(identity.c.key.in_(some), identity.c.reference_count == 0)
        empty += connection.scalar(query) or 0
    connection.execute(
        sa.update(identity)
        .where(identity.c.key == sa.bindparam("of"))
        .values(reference_count=identity.c.reference_count + sa.bindparam("came")),
        [{"of": int(key), "came": int(n)} for key, n in zip(keys, came, strict=True)],
    )
    gallery.count(connection, within, references=len(identity_keys), searchable=empty)


def references_of(connection: sa.Connection, collection_name: str, name: str, loaded: Loaded) -> StoredReferences:
    """Raises `UnknownCollection`, `UnknownIdentity`, `ModelMismatch`, or `NoReferences` if there are none left."""
    key = gallery.identity_key(connection, collection_name, name)
    model_key = models.key_of(connection, loaded)
    rows = connection.execute(
        sa.select(reference.c.reference_id, embedding.c.vector)
        .join(embedding, embedding.c.reference_key == reference.c.key)
        .where(reference.c.identity_key == key, embedding.c.model_key == model_key)
        .order_by(reference.c.key)
    ).all()
    if not rows:
        raise NoReferences(f"The identity {name!r} has no references left. Enroll an image of it first.")
    return StoredReferences([row.reference_id for row in rows], np.stack([row.vector for row in rows]))


def references_by_collection(connection: sa.Connection, loaded: Loaded) -> Iterator[list[Enrolled]]:
    """All references, one collection at a time, by name. Raises `ModelMismatch`."""
    model_key = models.key_of(connection, loaded)
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
    for _, of_one in itertools.groupby(rows, key=lambda row: row.collection):
        yield [Enrolled(r.collection, r.identity, r.reference_id, r.filename, r.vector) for r in of_one]


def delete_reference(connection: sa.Connection, collection_name: str, name: str, reference_id: str) -> None:
    """Raises `UnknownCollection`, `UnknownIdentity` or `UnknownReference`."""
    key = gallery.identity_key(connection, collection_name, name, lock=True)
    if "\0" in reference_id:  # which PostgreSQL can't even be asked for
        raise UnknownReference(f"The identity {name!r} has no reference {reference_id!r}.")
    this = sa.and_(reference.c.identity_key == key, reference.c.reference_id == reference_id)
    gallery.forget_originals(connection, this)
    if not connection.execute(sa.delete(reference).where(this)).rowcount:
        raise UnknownReference(f"The identity {name!r} has no reference {reference_id!r}.")
    fewer = sa.update(identity).where(identity.c.key == key).values(reference_count=identity.c.reference_count - 1)
    within, left = connection.execute(fewer.returning(identity.c.collection_key, identity.c.reference_count)).one()
    gallery.count(connection, within, references=-1, searchable=-int(left == 0))


def those_known(connection: sa.Connection, reference_ids: Sequence[str]) -> set[str]:
    """Which of these ids references have."""
    known = sa.select(reference.c.reference_id)
    return {
        found
        for some in chunks(reference_ids)
        for found in connection.scalars(known.where(reference.c.reference_id.in_(some)))
    }


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
