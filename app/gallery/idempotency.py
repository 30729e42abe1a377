"""Answers given under an Idempotency-Key: a repeated request gets the same one, and changes nothing."""

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from app.database.tables import idempotency
from app.errors import IdempotencyKeyReused

KEPT = timedelta(hours=24)


def claim(connection: sa.Connection, key: str) -> None:
    """Let nobody else answer under this key before the transaction ends, where others write at the same time."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(key, 0))))


def recall(connection: sa.Connection, key: str, fingerprint: str) -> dict[str, Any] | None:
    """The answer given before under this Idempotency-Key. Raises `IdempotencyKeyReused` for another request."""
    row = connection.execute(
        sa.select(idempotency.c.fingerprint, idempotency.c.answer).where(
            idempotency.c.key == key, idempotency.c.created_at >= _oldest()
        )
    ).one_or_none()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise IdempotencyKeyReused(
            "This Idempotency-Key came before with another identity, collection, metadata or images. "
            "Use a new key for a new request."
        )
    answer: dict[str, Any] = row.answer
    return answer


def remember(connection: sa.Connection, key: str, fingerprint: str, answer: dict[str, Any]) -> None:
    """Keep an answer for a day, in the transaction that it answers for."""
    now = datetime.now(UTC)
    connection.execute(sa.delete(idempotency).where(idempotency.c.created_at < _oldest()))
    connection.execute(
        sa.insert(idempotency).values(
            key=key, fingerprint=fingerprint, answer=answer, created_at=now.isoformat(timespec="seconds")
        )
    )


def _oldest() -> str:
    return (datetime.now(UTC) - KEPT).isoformat(timespec="seconds")
