"""Enrolment: images and their embeddings into the gallery, in the transaction of the caller.

A request enrolls few images, a command hundreds at once. Few are inserted one by one with statements that the driver
runs itself, since that saves a sixth of a whole request; many together.
"""

import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from app.arrays import EmbeddingsF32
from app.database.statements import Statement, chunks
from app.database.tables import embedding, identity, leftover, reference, timestamp
from app.gallery.collections import adjust_counts, ensure_collection
from app.gallery.encoders import Loaded, adopt_model
from app.gallery.identities import ensure_identities, ensure_identity

# Up to this many images are few.
FEW = 4

HELD = Statement(
    sa.select(reference.c.reference_id, reference.c.original_id).where(
        reference.c.identity_key == sa.bindparam("key"), reference.c.image_sha256 == sa.bindparam("sha256")
    )
)
_REFERENCE = ("reference_id", "identity_key", "collection_key", "image_sha256", "filename", "original_id", "created_at")
NEW_REFERENCE = Statement(
    sa.insert(reference).values({name: sa.bindparam(name) for name in _REFERENCE}).returning(reference.c.key)
)
_EMBEDDING = ("reference_key", "model_key", "identity_key", "collection_key", "vector")
NEW_EMBEDDING = Statement(sa.insert(embedding).values({name: sa.bindparam(name) for name in _EMBEDDING}))
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
        if len(new) <= FEW:
            for reference_id, row in new.items():
                key_row = NEW_REFERENCE.first(connection, **row)
                assert key_row is not None  # noqa: S101  an insert answers its key
                columns = {"identity_key": row["identity_key"], "collection_key": within, "model_key": model_key}
                NEW_EMBEDDING.run(connection, reference_key=key_row[0], vector=embeddings[reference_id], **columns)
        else:
            connection.execute(sa.insert(reference), list(new.values()))
            add_embeddings(connection, model_key, embeddings)
        _count_new(connection, within, [row["identity_key"] for row in new.values()])
    return entries


def _find_held(
    connection: sa.Connection, by_identity: Mapping[int, Sequence[NewReference]]
) -> dict[tuple[int, str], tuple[str, str | None]]:
    """For each identity and image that is enrolled already: its reference_id, and the id of its kept image."""
    if sum(map(len, by_identity.values())) <= FEW:
        wanted = {(key, image.image_sha256) for key, images in by_identity.items() for image in images}
        rows = {pair: HELD.first(connection, key=pair[0], sha256=pair[1]) for pair in wanted}
        return {pair: (row[0], row[1]) for pair, row in rows.items() if row is not None}
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
        # Locked against deletion, where others write at the same time: an embedding needs its reference.
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
