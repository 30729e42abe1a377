"""Collections, identities, references, and the sequence of their changes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "collection",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("created_at", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "identity",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("collection_key", sa.BigInteger, sa.ForeignKey("collection.key", ondelete="CASCADE"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.UniqueConstraint("collection_key", "name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "reference",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("reference_id", sa.Text, nullable=False, unique=True),
        sa.Column("identity_key", sa.BigInteger, sa.ForeignKey("identity.key", ondelete="CASCADE"), nullable=False),
        sa.Column("collection_key", sa.BigInteger, nullable=False),
        sa.Column("model_id", sa.Text, nullable=False),
        sa.Column("image_sha256", sa.Text, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("embedding", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.UniqueConstraint("identity_key", "image_sha256"),
        sqlite_autoincrement=True,
    )
    op.create_index("reference_by_collection", "reference", ["collection_key"])
    op.create_index("reference_by_model", "reference", ["model_id"])
    op.create_table(
        "change",
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("reference_key", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "idempotency",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("answer", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
    )
    if op.get_bind().dialect.name != "sqlite":
        return  # where sequence order is not commit order, nothing reads the changes
    # Triggers, so that no path to a reference can forget: deleting an identity or a collection fires them too.
    op.execute(
        "CREATE TRIGGER reference_came AFTER INSERT ON reference "
        "BEGIN INSERT INTO change (reference_key) VALUES (new.key); END"
    )
    op.execute(
        "CREATE TRIGGER reference_went AFTER DELETE ON reference "
        "BEGIN INSERT INTO change (reference_key) VALUES (old.key); END"
    )
