"""The nearest identities to a probe: an index proposes references, their distances are taken anew and exactly.

On SQLite FAISS proposes, on PostgreSQL pgvector; everything here happens in one transaction, at one moment.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import sqlalchemy as sa

from app import gallery
from app.engines import Engine
from app.gallery import Filter, meets
from app.index import GalleryIndex
from app.matching import EmbeddingsF32, distances
from app.statements import Statement
from app.tables import embedding, identity, reference, unpacked

# What an index orders by rounded numbers may swap with its neighbours when taken exactly.
SLACK = 8
# References of an identity that a search reckons with at first; it looks further where that was too few.
MOST_EACH = 20
# So many references that a filter leaves are all compared; a search among more asks the index first.
FEW = 20_000
# A search that had to look at more than this reads everything instead of asking on.
WIDEST = 16_384


@dataclass(frozen=True)
class Hit:
    """The nearest reference of one identity, and its exact distance."""

    identity: str
    metadata: dict[str, Any]
    reference_id: str
    distance: float


# Of `CANDIDATES`.
Rows = Sequence[Sequence[Any]]


class Proposer(Protocol):
    """What knows which references are likely the nearest."""

    def rows(
        self,
        connection: sa.Connection,
        model_key: int,
        collection_key: int,
        probe_D: EmbeddingsF32,
        reach: int,
        condition: sa.ColumnElement[bool] | None,
    ) -> tuple[Rows, bool]:
        """The nearest `reach` references, of which those that meet the condition are left; and whether these are all
        there are."""


CANDIDATES = sa.select(embedding.c.vector, embedding.c.reference_key, embedding.c.identity_key)
ALL_CANDIDATES = CANDIDATES.where(
    embedding.c.model_key == sa.bindparam("model_key"), embedding.c.collection_key == sa.bindparam("collection_key")
)
_AMONG: sa.Select[Any] = sa.select(sa.column("value")).select_from(sa.func.json_each(sa.bindparam("keys")))
PROPOSED = Statement(CANDIDATES.where(embedding.c.key.in_(_AMONG)))
_ABOUT = sa.select(reference.c.reference_id, identity.c.name, identity.c.metadata, reference.c.key).join(
    identity, identity.c.key == reference.c.identity_key
)
ABOUT = Statement(_ABOUT.where(reference.c.key == sa.bindparam("key")))
ABOUT_ALL = _ABOUT.where(reference.c.key.in_(sa.bindparam("keys", expanding=True)))


def _meeting(query: sa.Select[Any], condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return query.join(identity, identity.c.key == embedding.c.identity_key).where(condition)


class ByFaiss:
    """The cache of a gallery in SQLite."""

    def __init__(self, index: GalleryIndex) -> None:
        self.index = index

    def rows(
        self,
        connection: sa.Connection,
        model_key: int,
        collection_key: int,
        probe_D: EmbeddingsF32,
        reach: int,
        condition: sa.ColumnElement[bool] | None,
    ) -> tuple[Rows, bool]:
        keys = self.index.propose(connection, model_key, collection_key, probe_D, reach)
        proposed, complete = json.dumps(keys.tolist()), len(keys) < reach
        if condition is None:
            return PROPOSED.all(connection, keys=proposed), complete
        query = _meeting(CANDIDATES.where(embedding.c.key.in_(_AMONG)), condition)
        return connection.execute(query, {"keys": proposed}).all(), complete


class ByPgvector:
    """The index of a gallery in PostgreSQL; where it proposes too few, every reference is compared."""

    def __init__(self, engine: Engine, embedding_dim: int) -> None:
        self._engine, self._dim = engine, embedding_dim

    def rows(
        self,
        connection: sa.Connection,
        model_key: int,
        collection_key: int,
        probe_D: EmbeddingsF32,
        reach: int,
        condition: sa.ColumnElement[bool] | None,
    ) -> tuple[Rows, bool]:
        # The model as a literal: the planner can't match a parameter with a partial index.
        one_model = embedding.c.model_key == sa.literal_column(str(int(model_key)))
        query = CANDIDATES.where(one_model, embedding.c.collection_key == collection_key).limit(reach)
        if condition is not None:
            query = _meeting(query, condition)
        probe = sa.literal(probe_D, embedding.c.vector.type)
        rows = connection.execute(query.order_by(self._engine.away(embedding.c.vector, probe, self._dim))).all()
        if len(rows) < reach:
            rows = connection.execute(query.order_by(sa.func.l2_distance(embedding.c.vector, probe))).all()
        return rows, len(rows) < reach


def find(
    connection: sa.Connection,
    proposer: Proposer,
    model_key: int | None,
    collection_key: int,
    probe_D: EmbeddingsF32,
    identities: int,
    where: Filter | None = None,
) -> list[Hit]:
    """The nearest `identities` identities of a collection, nearest first; fewer if there are fewer.

    `where` restricts them to those whose metadata has, under each of its keys, one of the values given.
    """
    if model_key is None:
        return []
    condition = None if where is None else meets(connection, where)
    reach = expected_reach(connection, collection_key, identities)
    if condition is not None:
        every, those = _meeting(ALL_CANDIDATES, condition), {"model_key": model_key, "collection_key": collection_key}
        rows: Rows = connection.execute(every.limit(FEW + 1), those).all()
        if len(rows) <= FEW:
            return _described(connection, _ranked(rows, probe_D)[:identities])
    while True:
        rows, complete = proposer.rows(connection, model_key, collection_key, probe_D, reach, condition)
        ranked = _ranked(rows, probe_D)
        if len(ranked) >= identities or complete:
            return _described(connection, ranked[:identities])
        if condition is not None and reach > WIDEST:
            return _described(connection, _ranked(connection.execute(every, those).all(), probe_D)[:identities])
        # One identity with many references may fill the front.
        reach *= 4


def expected_reach(connection: sa.Connection, collection_key: int, identities: int) -> int:
    """How many references it takes to see so many identities, if each has as many as they have on average."""
    searchable, references = gallery.searched(connection, collection_key)
    each = references / max(1, searchable)
    return math.ceil(identities * min(each, MOST_EACH)) + SLACK


def _ranked(rows: Rows, probe_D: EmbeddingsF32) -> list[tuple[int, float]]:
    """Each identity's nearest reference, by key, and its distance, nearest first; the older one of two as near."""
    if not rows:
        return []
    vectors, reference_keys, identity_keys = zip(*rows, strict=True)
    embeddings_ND = unpacked(vectors) if isinstance(vectors[0], bytes) else np.stack(vectors)
    exact = distances(probe_D, embeddings_ND)
    nearest: dict[int, tuple[int, float]] = {}
    for at in np.lexsort((reference_keys, exact)).tolist():
        nearest.setdefault(identity_keys[at], (reference_keys[at], float(exact[at])))
    return list(nearest.values())


def _described(connection: sa.Connection, nearest: Sequence[tuple[int, float]]) -> list[Hit]:
    keys = [key for key, _ in nearest]
    if connection.dialect.name == "sqlite":  # where asking costs less than putting the question together
        rows: list[Any] = [ABOUT.first(connection, key=key) for key in keys]
    else:
        rows = list(connection.execute(ABOUT_ALL, {"keys": keys}))
    hits = {}
    for reference_id, name, metadata, key in rows:
        hits[key] = (name, json.loads(metadata) if isinstance(metadata, str) else metadata, reference_id)
    return [Hit(*hits[key], distance) for key, distance in nearest]
