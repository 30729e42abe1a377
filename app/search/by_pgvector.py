"""The references nearest to a probe, proposed by pgvector: the search itself is one SQL query."""

import sqlalchemy as sa

from app.arrays import EmbeddingsF32
from app.database.pgvector import indexed_distance
from app.database.tables import embedding
from app.search.nearest import CANDIDATES, Rows, filtered


class ByPgvector:
    """The index of a gallery in PostgreSQL; where it proposes too few, every reference is compared."""

    def __init__(self, embedding_dim: int) -> None:
        self._dim = embedding_dim

    def propose_rows(
        self,
        connection: sa.Connection,
        model_key: int,
        collection_key: int,
        probe_D: EmbeddingsF32,
        reach: int,
        identities: int,
        condition: sa.ColumnElement[bool] | None,
    ) -> tuple[Rows, bool]:
        # The model as a literal: the planner can't match a parameter with a partial index.
        one_model = embedding.c.model_key == sa.literal_column(str(int(model_key)))
        query = CANDIDATES.where(one_model, embedding.c.collection_key == collection_key).limit(reach)
        if condition is not None:
            query = filtered(query, condition)
        probe = sa.literal(probe_D, embedding.c.vector.type)
        rows = connection.execute(query.order_by(indexed_distance(embedding.c.vector, probe, self._dim))).all()
        if len(rows) < reach:
            rows = connection.execute(query.order_by(sa.func.l2_distance(embedding.c.vector, probe))).all()
        return rows, len(rows) < reach
