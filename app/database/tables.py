"""The gallery's tables, the same in SQLite and PostgreSQL. Keys are never used twice, so that a cached key can't come
to mean something else."""

import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles

from app.arrays import EmbeddingsF32
from app.database.pgvector import Vector
from app.errors import GalleryDamaged

CRC_BYTES, CRC_RESIDUE = 4, 0x2144DF1C
SENT_HEAD = 4  # its number of dimensions, and two bytes unused

tables = sa.MetaData()


class Embedding(sa.TypeDecorator[EmbeddingsF32]):
    """A float32 embedding `[D]`: pgvector's `vector` in PostgreSQL; its bytes and their CRC-32 in SQLite, whose pages
    carry no checksums. Reading raises `GalleryDamaged` if they disagree."""

    impl = sa.LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(Vector() if dialect.name == "postgresql" else sa.LargeBinary())

    def process_bind_param(self, value: EmbeddingsF32 | None, dialect: sa.Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else packed(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> EmbeddingsF32 | None:
        if value is None:
            return None
        if dialect.name == "postgresql":
            return np.frombuffer(value, dtype=">f4", offset=SENT_HEAD).astype(np.float32)
        embedding_D: EmbeddingsF32 = unpacked([value])[0]
        return embedding_D

    def column_expression(self, column: Any) -> Any:
        return _Sent(column, type_=self)


class _Sent(sa.sql.functions.FunctionElement[Any]):
    """A column of embeddings as it is read: PostgreSQL sends `vector` in binary, which is read ten times as fast."""

    inherit_cache = True
    name = "sent"

    def __init__(self, column: Any, type_: Embedding) -> None:
        super().__init__(column)
        self.type = type_


@compiles(_Sent)
def _as_it_is(element: _Sent, compiler: Any, **options: Any) -> str:
    return str(compiler.process(next(iter(element.clauses)), **options))


@compiles(_Sent, "postgresql")
def _in_binary(element: _Sent, compiler: Any, **options: Any) -> str:
    return f"vector_send({compiler.process(next(iter(element.clauses)), **options)})"


def packed(embedding_D: EmbeddingsF32) -> bytes:
    """Little-endian float32 numbers and the CRC-32 of their bytes."""
    numbers = np.ascontiguousarray(embedding_D, dtype="<f4").tobytes()
    return numbers + zlib.crc32(numbers).to_bytes(CRC_BYTES, "little")


def unpacked(stored: Sequence[bytes]) -> EmbeddingsF32:
    """Embeddings `[N, D]`. Raises `GalleryDamaged` where what is stored is not what was written."""
    words_NW = np.frombuffer(b"".join(stored), dtype="<u4").reshape(len(stored), -1)
    # The CRC-32 of bytes followed by their own CRC-32 is the same for all bytes.
    if any(zlib.crc32(row) != CRC_RESIDUE for row in stored):
        raise GalleryDamaged(
            "An embedding in the gallery's database is damaged (its CRC is wrong). Stop the service and restore a "
            "backup with diptych restore."
        )
    return words_NW[:, :-1].view("<f4")


def timestamp() -> str:
    """The time now, as it is stored: UTC, ISO 8601, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _key() -> sa.Column[int]:
    return sa.Column("key", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True)


def _points_to(table: str) -> sa.Column[int]:
    return sa.Column(f"{table}_key", sa.BigInteger, sa.ForeignKey(f"{table}.key", ondelete="CASCADE"), nullable=False)


# Encoders that the gallery has embeddings of. The active one answers; another is being prepared, or was replaced.
model = sa.Table(
    "model",
    tables,
    _key(),
    sa.Column("model_id", sa.Text, nullable=False, unique=True),
    sa.Column("embedding_dim", sa.Integer, nullable=False),
    sa.Column("checkpoint", sa.Text, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

# `searchable_count` is the number of identities that have references. The counts are kept up to date with each change:
# counting a million rows for each search would take longer than the search.
collection = sa.Table(
    "collection",
    tables,
    _key(),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("reference_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("searchable_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("created_at", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

# A collection whose name begins so is deleted, and waits to be purged. A caller's name can't hold this character.
DELETED = "\x7f"
LIVE = ~collection.c.name.startswith(DELETED)

identity = sa.Table(
    "identity",
    tables,
    _key(),
    _points_to("collection"),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("metadata", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
    sa.Column("reference_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.UniqueConstraint("collection_key", "name"),
    sqlite_autoincrement=True,
)

# `original_id` names the kept image; null where none is kept.
reference = sa.Table(
    "reference",
    tables,
    _key(),
    sa.Column("reference_id", sa.Text, nullable=False, unique=True),
    _points_to("identity"),
    sa.Column("collection_key", sa.BigInteger, nullable=False),
    sa.Column("image_sha256", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("original_id", sa.Text),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.UniqueConstraint("identity_key", "image_sha256"),
    sa.Index(
        "reference_by_original",
        "original_id",
        sqlite_where=sa.text("original_id IS NOT NULL"),
        postgresql_where=sa.text("original_id IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

# A table of its own, so that a second encoder's embeddings can grow beside those that answer.
embedding = sa.Table(
    "embedding",
    tables,
    _key(),
    _points_to("reference"),
    _points_to("model"),
    # Copies of its reference's, so that a search reads no other table for what it compares.
    sa.Column("identity_key", sa.BigInteger, nullable=False),
    sa.Column("collection_key", sa.BigInteger, nullable=False),
    sa.Column("vector", Embedding, nullable=False),
    sa.UniqueConstraint("reference_key", "model_key"),
    sa.Index("embedding_by_collection", "model_key", "collection_key"),
    sqlite_autoincrement=True,
)

# SQLite only: one row for each embedding that was added or deleted, written by triggers, in the order of commits. A
# cache has seen everything up to some row, and reads on from there if that row is still the same: the random token
# tells it from a row of another history, such as that after a backup was restored.
change = sa.Table(
    "change",
    tables,
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("embedding_key", sa.Integer, nullable=False),
    sa.Column("model_key", sa.Integer, nullable=False),
    sa.Column("collection_key", sa.Integer, nullable=False),
    sa.Column("identity_key", sa.Integer, nullable=False),
    sa.Column("token", sa.LargeBinary, nullable=False, server_default=sa.text("(randomblob(8))")),
    sqlite_autoincrement=True,
)

# Kept images of deleted references, until the images are deleted too.
leftover = sa.Table("leftover", tables, sa.Column("original_id", sa.Text, primary_key=True))

idempotency = sa.Table(
    "idempotency",
    tables,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
    # These three are null once what the answer names was deleted.
    sa.Column("answer", sa.JSON(none_as_null=True)),
    sa.Column("identity_key", sa.BigInteger, index=True),
    sa.Column("collection_key", sa.BigInteger, index=True),
    sa.Column("created_at", sa.Text, nullable=False, index=True),
)

# One row. Images in a bucket or a directory carry the gallery's id, since other galleries may keep theirs there too.
# The secret keys the hashes of requests in `idempotency`.
about = sa.Table(
    "about",
    tables,
    sa.Column("gallery_id", sa.Text, primary_key=True),
    sa.Column("secret", sa.Text, nullable=False, server_default=""),
)

# Keys for the service. `scopes` is a list; so is `collections`, null for all.
api_key = sa.Table(
    "api_key",
    tables,
    _key(),
    sa.Column("key_id", sa.Text, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("collections", sa.JSON(none_as_null=True)),
    sa.Column("created_at", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
