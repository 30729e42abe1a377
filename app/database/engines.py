"""What differs between engines that speak PostgreSQL's dialect: the vector index, and which failures are tried again.

Only PostgreSQL with pgvector is tested. The others are written down from their documentation: CockroachDB has a
vector index of its own and no `halfvec`; YugabyteDB calls HNSW `ybhnsw`; Citus is PostgreSQL, and our tables stay on
its coordinator, since unique keys of a distributed table have to hold the column that it is distributed by, and
`reference_id` alone is unique here.
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pgvector.sqlalchemy import HALFVEC, VECTOR

SERIALIZATION_FAILURE, DEADLOCK = "40001", "40P01"


@dataclass(frozen=True)
class Engine:
    """`kind` is the type that embeddings are cast to where they are ordered, in the index and in the search alike."""

    name: str
    kind: type[HALFVEC] | type[VECTOR] | None
    index: str
    settings: tuple[str, ...] = ()
    retried: frozenset[str] = frozenset({SERIALIZATION_FAILURE, DEADLOCK})

    def index_ddl(self, model_key: int, dim: int) -> str:
        """The index over one encoder's embeddings, of `dim` numbers each."""
        return self.index.format(key=model_key, dim=dim)

    def away(self, vector: sa.ColumnElement[Any], probe: sa.ColumnElement[Any], dim: int) -> sa.ColumnElement[Any]:
        """What to order by, nearest first, so that the index is used."""
        if self.kind is not None:
            vector, probe = sa.cast(vector, self.kind(dim)), sa.cast(probe, self.kind(dim))
        return vector.op("<->")(probe)


# More candidates than the default 40, for recall; `relaxed_order`, since hits are sorted anew by exact distance.
PGVECTOR = ("SET hnsw.ef_search = 100", "SET hnsw.iterative_scan = relaxed_order")

POSTGRESQL = Engine(
    "PostgreSQL",
    HALFVEC,
    "CREATE INDEX IF NOT EXISTS embedding_near_{key} ON embedding USING hnsw ((vector::halfvec({dim})) halfvec_l2_ops) "
    "WITH (m = 16, ef_construction = 64) WHERE model_key = {key}",
    PGVECTOR,
)
YUGABYTE = Engine(
    "YugabyteDB",
    VECTOR,
    "CREATE INDEX NONCONCURRENTLY IF NOT EXISTS embedding_near_{key} ON embedding USING ybhnsw "
    "((vector::vector({dim})) vector_l2_ops) WHERE model_key = {key}",
)
COCKROACH = Engine(
    "CockroachDB",
    None,
    "CREATE VECTOR INDEX IF NOT EXISTS embedding_near_{key} ON embedding (vector) WHERE model_key = {key}",
)


def engine_of(version: str) -> Engine:
    """The engine behind what `SELECT version()` says."""
    if "CockroachDB" in version:
        return COCKROACH
    return YUGABYTE if "-YB-" in version else POSTGRESQL
