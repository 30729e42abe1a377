"""What pgvector needs: the type of embeddings in PostgreSQL, their index, and the order that the index serves."""

from typing import Any

import sqlalchemy as sa
from pgvector.sqlalchemy import HALFVEC, VECTOR

# For each connection. More candidates than the default 40, for recall; `relaxed_order`, since hits are sorted again by
# exact distance.
SETTINGS = ("SET hnsw.ef_search = 100", "SET hnsw.iterative_scan = relaxed_order")


class Vector(VECTOR):
    """pgvector's `vector`; results are read by `tables.Embedding`."""

    cache_ok = True

    def result_processor(self, dialect: sa.Dialect, coltype: Any) -> Any:
        return None


def index_ddl(model_key: int, dim: int) -> str:
    """The statement that creates the index over one encoder's embeddings, of `dim` numbers each."""
    return (
        f"CREATE INDEX IF NOT EXISTS embedding_near_{model_key} ON embedding USING hnsw "
        f"((vector::halfvec({dim})) halfvec_l2_ops) WITH (m = 16, ef_construction = 64) WHERE model_key = {model_key}"
    )


def indexed_distance(vector: sa.ColumnElement[Any], probe: sa.ColumnElement[Any], dim: int) -> sa.ColumnElement[Any]:
    """What to order by, nearest first, so that the index is used: the distance of float16 numbers."""
    return sa.cast(vector, HALFVEC(dim)).op("<->")(sa.cast(probe, HALFVEC(dim)))
