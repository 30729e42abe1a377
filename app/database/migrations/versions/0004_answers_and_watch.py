"""Stored answers that a deletion can find and empty, hashes of requests with a key; `watch` as a scope of its own."""

import hashlib
import hmac
import json
import secrets
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    secret = secrets.token_hex(32)
    op.add_column("about", sa.Column("secret", sa.Text, nullable=False, server_default=""))
    connection.execute(sa.text("UPDATE about SET secret = :secret"), {"secret": secret})
    answers = connection.execute(sa.text("SELECT key, fingerprint, answer, created_at FROM idempotency")).all()
    op.drop_table("idempotency")
    table = op.create_table(
        "idempotency",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("answer", sa.JSON(none_as_null=True)),
        sa.Column("identity_key", sa.BigInteger),
        sa.Column("collection_key", sa.BigInteger),
        sa.Column("created_at", sa.Text, nullable=False),
    )
    for column in ("created_at", "identity_key", "collection_key"):
        op.create_index(f"ix_idempotency_{column}", "idempotency", [column])
    for key, request, stored, created_at in answers:
        answer = json.loads(stored) if isinstance(stored, str) else stored
        identity_key, collection_key = _enrolled(connection, answer)
        connection.execute(
            sa.insert(table).values(
                key=key,
                fingerprint=hmac.new(bytes.fromhex(secret), request.encode(), hashlib.sha256).hexdigest(),
                answer=None if identity_key is None else answer,
                identity_key=identity_key,
                collection_key=collection_key,
                created_at=created_at,
            )
        )
    _keep_watching(connection)


def _enrolled(connection: sa.Connection, answer: dict[str, Any]) -> tuple[int | None, int | None]:
    """Keys of the identity and collection that an answer names; None if any of its references was deleted."""
    keys: tuple[int | None, int | None] = (None, None)
    query = sa.text(
        "SELECT r.identity_key, r.collection_key FROM reference r JOIN collection c ON c.key = r.collection_key "
        "WHERE r.reference_id = :id AND substr(c.name, 1, 1) <> :deleted"
    )
    for entry in answer["references"]:
        row = connection.execute(query, {"id": entry["reference_id"], "deleted": "\x7f"}).one_or_none()
        if row is None:
            return None, None
        keys = (row[0], row[1])
    return keys


def _keep_watching(connection: sa.Connection) -> None:
    """`verify` and `enroll` contained `watch`. Keys for all collections keep it; /metrics is about all of them."""
    table = sa.table("api_key", sa.column("key"), sa.column("scopes", sa.JSON), sa.column("collections", sa.JSON))
    for key, scopes, collections in connection.execute(sa.select(table)).all():
        if collections is None and {"verify", "enroll"} & set(scopes):
            watching = sorted({*scopes, "watch"})
            connection.execute(sa.update(table).where(table.c.key == key).values(scopes=watching))
