"""Embeddings in a table of their own, so that those of a second encoder can grow beside the first's; counts."""

import secrets
from datetime import UTC, datetime

import numpy as np
import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.database.tables import Embedding

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

CHUNK = 10_000
KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    connection = op.get_bind()
    sqlite = connection.dialect.name == "sqlite"
    if not sqlite:
        op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "model",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("model_id", sa.Text, nullable=False, unique=True),
        sa.Column("embedding_dim", sa.Integer, nullable=False),
        sa.Column("checkpoint", sa.Text, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "embedding",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("reference_key", sa.BigInteger, sa.ForeignKey("reference.key", ondelete="CASCADE"), nullable=False),
        sa.Column("model_key", sa.BigInteger, sa.ForeignKey("model.key", ondelete="CASCADE"), nullable=False),
        sa.Column("identity_key", sa.BigInteger, nullable=False),
        sa.Column("collection_key", sa.BigInteger, nullable=False),
        sa.Column("vector", Embedding, nullable=False),
        sa.UniqueConstraint("reference_key", "model_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("embedding_by_collection", "embedding", ["model_key", "collection_key"])
    op.create_table("leftover", sa.Column("original_id", sa.Text, primary_key=True))
    op.create_table("about", sa.Column("gallery_id", sa.Text, primary_key=True))
    connection.execute(sa.text("INSERT INTO about (gallery_id) VALUES (:id)"), {"id": secrets.token_hex(8)})
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])
    for table, column in (
        ("collection", "reference_count"),
        ("collection", "searchable_count"),
        ("identity", "reference_count"),
    ):
        op.add_column(table, sa.Column(column, sa.Integer, nullable=False, server_default="0"))
    op.add_column("reference", sa.Column("original_id", sa.Text))
    kept = sa.text("original_id IS NOT NULL")
    op.create_index("reference_by_original", "reference", ["original_id"], sqlite_where=kept, postgresql_where=kept)
    if not sqlite:
        op.alter_column(
            "identity",
            "metadata",
            type_=postgresql.JSONB(),
            postgresql_using="metadata::jsonb",
            existing_nullable=False,
        )
        op.create_index(
            "identity_by_metadata", "identity", ["metadata"], postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
        )  # fmt: skip
    _move(connection)
    if sqlite:
        op.execute("DROP TRIGGER reference_came")
        op.execute("DROP TRIGGER reference_went")
    op.drop_table("change")
    op.drop_index("reference_by_model", "reference")
    op.drop_index("reference_by_collection", "reference")
    op.drop_column("reference", "embedding")
    op.drop_column("reference", "model_id")
    if sqlite:
        _feed()


def _move(connection: sa.Connection) -> None:
    """Embeddings to their new table, and what is counted from now on."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    found = connection.execute(sa.text("SELECT model_id, embedding FROM reference GROUP BY model_id")).all() if (
        connection.dialect.name == "sqlite"
    ) else []  # fmt: skip
    for row in found:
        connection.execute(
            sa.text("INSERT INTO model (model_id, embedding_dim, checkpoint, active, created_at) "
                    "VALUES (:id, :dim, '', :active, :now)"),
            {"id": row.model_id, "dim": len(row.embedding) // 4, "active": row is found[0], "now": now},
        )  # fmt: skip
    new = sa.table(
        "embedding", sa.column("reference_key"), sa.column("model_key"), sa.column("identity_key"),
        sa.column("collection_key"),
        sa.column("vector", Embedding),
    )  # fmt: skip
    after = 0
    while rows := connection.execute(
        sa.text("SELECT r.key, m.key, r.identity_key, r.collection_key, r.embedding FROM reference r JOIN model m "
                "ON m.model_id = r.model_id WHERE r.key > :after ORDER BY r.key LIMIT :some"),
        {"after": after, "some": CHUNK},
    ).all():  # fmt: skip
        connection.execute(
            sa.insert(new),
            [
                {
                    "reference_key": r,
                    "model_key": m,
                    "identity_key": i,
                    "collection_key": c,
                    "vector": np.frombuffer(blob, dtype="<f4"),
                }
                for r, m, i, c, blob in rows
            ],
        )
        after = rows[-1][0]
    op.execute(
        "UPDATE identity SET reference_count = "
        "(SELECT count(*) FROM reference WHERE reference.identity_key = identity.key)"
    )
    op.execute(
        "UPDATE collection SET "
        "reference_count = (SELECT count(*) FROM reference WHERE reference.collection_key = collection.key), "
        "searchable_count = (SELECT count(*) FROM identity WHERE identity.collection_key = collection.key "
        "AND identity.reference_count > 0)"
    )


def _feed() -> None:
    """Triggers, so that no path to an embedding can forget: deleting what it belongs to fires them too."""
    op.create_table(
        "change",
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("embedding_key", sa.Integer, nullable=False),
        sa.Column("model_key", sa.Integer, nullable=False),
        sa.Column("collection_key", sa.Integer, nullable=False),
        sa.Column("identity_key", sa.Integer, nullable=False),
        sa.Column("token", sa.LargeBinary, nullable=False, server_default=sa.text("(randomblob(8))")),
        sqlite_autoincrement=True,
    )
    for name, when, row in (("came", "INSERT", "new"), ("went", "DELETE", "old")):
        op.execute(
            f"CREATE TRIGGER embedding_{name} AFTER {when} ON embedding "  # noqa: S608
            "BEGIN INSERT INTO change (embedding_key, model_key, collection_key, identity_key) "
            f"VALUES ({row}.key, {row}.model_key, {row}.collection_key, {row}.identity_key); END"
        )
    # Never empty, so that every cache has a place in the sequence to come from.
    op.execute("INSERT INTO change (embedding_key, model_key, collection_key, identity_key) VALUES (0, 0, 0, 0)")
