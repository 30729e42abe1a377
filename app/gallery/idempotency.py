"""Answers given under an Idempotency-Key: a repeated request gets the same answer, and changes nothing.

What an answer names may be deleted before the answer expires. Then the row keeps the key, a keyed hash of the request
and its time, and nothing else: a repetition is told that it was deleted, and enrolls nothing. The hash is keyed with a
secret of the gallery, so that nobody can test guesses of names against a copied table. Rows point to an identity by
its key, which a new name does not change.
"""

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app.database.tables import about, idempotency, reference, timestamp
from app.errors import DeletedSince, IdempotencyKeyReused

KEPT = timedelta(hours=24)
EMPTY = {"answer": None, "identity_key": None, "collection_key": None}


def claim_key(connection: sa.Connection, key: str) -> None:
    """Let nobody else answer under this key before the transaction ends, where others write at the same time."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(key, 0))))


def recall_answer(connection: sa.Connection, key: str, request: str) -> dict[str, Any] | None:
    """The answer given before under this Idempotency-Key to this request, a hash of it; None if there is none.

    Raises `IdempotencyKeyReused` for another request, and `DeletedSince` where what the answer names was deleted.
    """
    row = connection.execute(
        sa.select(idempotency.c.fingerprint, idempotency.c.answer).where(
            idempotency.c.key == key, idempotency.c.created_at >= _oldest()
        )
    ).one_or_none()
    if row is None:
        return None
    if not hmac.compare_digest(row.fingerprint, _fingerprint(connection, request)):
        raise IdempotencyKeyReused(
            "This Idempotency-Key was used before with another identity, collection, metadata or images. "
            "Use a new key for a new request."
        )
    if row.answer is None:
        raise DeletedSince(
            "This request was answered before, and what it enrolled has since been deleted. Nothing was enrolled. "
            "To enroll it again, use a new Idempotency-Key."
        )
    answer: dict[str, Any] = row.answer
    return answer


def remember_answer(connection: sa.Connection, key: str, request: str, answer: dict[str, Any]) -> None:
    """Keep an answer for a day, in the transaction that enrolls what it names. `request` is a hash of the request."""
    enrolled = answer["references"][0]["reference_id"]
    columns = sa.select(reference.c.identity_key, reference.c.collection_key)
    identity_key, collection_key = connection.execute(columns.where(reference.c.reference_id == enrolled)).one()
    connection.execute(sa.delete(idempotency).where(idempotency.c.key == key))  # one that expired
    connection.execute(
        sa.insert(idempotency).values(
            key=key,
            fingerprint=_fingerprint(connection, request),
            answer=answer,
            identity_key=identity_key,
            collection_key=collection_key,
            created_at=timestamp(),
        )
    )


def empty_answers_of_collection(connection: sa.Connection, collection_key: int) -> None:
    """To be called by whoever deletes a collection."""
    connection.execute(sa.update(idempotency).where(idempotency.c.collection_key == collection_key).values(EMPTY))


def empty_answers_of_identity(connection: sa.Connection, identity_key: int) -> None:
    """To be called by whoever deletes an identity."""
    connection.execute(sa.update(idempotency).where(idempotency.c.identity_key == identity_key).values(EMPTY))


def empty_answers_of_reference(connection: sa.Connection, identity_key: int, reference_id: str) -> None:
    """To be called by whoever deletes a reference of this identity."""
    answers = sa.select(idempotency.c.key, idempotency.c.answer).where(idempotency.c.identity_key == identity_key)
    for key, answer in connection.execute(answers).all():
        if any(entry["reference_id"] == reference_id for entry in answer["references"]):
            connection.execute(sa.update(idempotency).where(idempotency.c.key == key).values(EMPTY))


def has_expired_answers(connection: sa.Connection) -> bool:
    """Whether `expire_answers` has something to delete."""
    expired = sa.select(idempotency.c.key).where(idempotency.c.created_at < _oldest())
    return connection.scalar(expired.limit(1)) is not None


def expire_answers(connection: sa.Connection) -> int:
    """Delete the answers that are older than a day, with their keys; how many."""
    return connection.execute(sa.delete(idempotency).where(idempotency.c.created_at < _oldest())).rowcount


def _fingerprint(connection: sa.Connection, request: str) -> str:
    secret = str(connection.scalar(sa.select(about.c.secret)))
    return hmac.new(bytes.fromhex(secret), request.encode(), hashlib.sha256).hexdigest()


def _oldest() -> str:
    return (datetime.now(UTC) - KEPT).isoformat(timespec="seconds")
