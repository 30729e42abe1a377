"""The nearest identities to a probe: an index proposes references, whose exact distances are measured again.

On SQLite FAISS proposes, on PostgreSQL pgvector; everything here happens in one transaction, at one moment.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import sqlalchemy as sa

from app.arrays import EmbeddingsF32, Ints
from app.checkpoint.matching import distances
from app.database.statements import Statement
from app.database.tables import embedding, identity, reference, unpacked
from app.gallery.collections import count_searched
from app.gallery.filters import Filter, matches_filter
from app.search.changes import unlabelled
from app.search.index import GalleryIndex
from app.search.vectors import TOLERANCE

# Candidates beyond those asked for: an index orders by rounded distances, exact ones may swap neighbours.
SLACK = 8
# References of an identity that a search expects at most at first; it asks for more where that was too few.
MOST_EACH = 20
# If a filter leaves up to this many references, all are compared; if more, the index is asked first.
FEW = 20_000
# A search with a filter that needs more candidates than this compares all references instead.
WIDEST = 16_384


@dataclass(frozen=True)
class Hit:
    """The nearest reference of one identity, and its exact distance."""

    identity: str
    metadata: dict[str, Any]
    reference_id: str
    distance: float


# Of `CANDIDATES`, or of `PROPOSED`.
Rows = Sequence[Sequence[Any]]


class Proposer(Protocol):
    """Proposes the references that are probably the nearest."""

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
        """Of the nearest `reach` references, those that meet the condition, or fewer where these suffice for the
        nearest `identities`. And whether the collection has no others."""


CANDIDATES = sa.select(embedding.c.vector, embedding.c.reference_key, embedding.c.identity_key)
COMPARED = 3  # its columns; rows with more hold what is answered too
ALL_CANDIDATES = CANDIDATES.where(
    embedding.c.model_key == sa.bindparam("model_key"), embedding.c.collection_key == sa.bindparam("collection_key")
)
_AMONG: sa.Select[Any] = sa.select(sa.column("value")).select_from(sa.func.json_each(sa.bindparam("keys")))
# The plus, as SQLite has it, says that rows are found by their keys.
_OF_MODEL = sa.literal_column("+embedding.model_key") == sa.bindparam("model_key", type_=sa.Integer)
_ABOUT = (reference.c.reference_id, identity.c.name, identity.c.metadata)
# With what is answered about them: of so few rows, one statement costs less than two.
PROPOSED = Statement(
    CANDIDATES.add_columns(*_ABOUT)
    .join(reference, reference.c.key == embedding.c.reference_key)
    .join(identity, identity.c.key == embedding.c.identity_key)
    .where(embedding.c.key.in_(_AMONG), _OF_MODEL)
)
ABOUT = (
    sa.select(*_ABOUT, reference.c.key)
    .join(identity, identity.c.key == reference.c.identity_key)
    .where(reference.c.key.in_(sa.bindparam("keys", expanding=True)))
)


def filtered(query: sa.Select[Any], condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return query.join(identity, identity.c.key == embedding.c.identity_key).where(condition)


class ByFaiss:
    """The cache of a gallery in SQLite."""

    def __init__(self, index: GalleryIndex) -> None:
        self.index = index

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
        distances_N, labels = self.index.propose(connection, model_key, collection_key, probe_D, reach)
        identity_keys, keys = unlabelled(labels)
        complete = len(keys) < reach
        if condition is None:
            few = contenders(distances_N, identity_keys, identities)
            rows = PROPOSED.all(connection, model_key=model_key, keys=json.dumps(keys[few].tolist()))
            if len(rows) < len(few):
                # The cache is ahead of this transaction: rows that it proposed are not there yet, or no longer.
                rows = PROPOSED.all(connection, model_key=model_key, keys=json.dumps(keys.tolist()))
            return rows, complete
        query = filtered(CANDIDATES.where(embedding.c.key.in_(_AMONG)), condition)
        return connection.execute(query, {"keys": json.dumps(keys.tolist())}).all(), complete


def contenders(proposed_N: EmbeddingsF32, identity_N: Ints, identities: int) -> list[int]:
    """Which of the proposed references, nearest first, may be an identity's nearest among the nearest `identities`.

    Each of these distances is within `TOLERANCE` of the exact one. So the exact nearest identities are among those
    that lie at most twice that beyond the last of the nearest as proposed.
    """
    contending: list[int] = []
    best: dict[int, float] = {}
    limit = math.inf
    for at, (identity_key, distance) in enumerate(zip(identity_N.tolist(), proposed_N.tolist(), strict=True)):
        nearest = best.setdefault(identity_key, distance)
        if len(best) == identities and limit == math.inf:
            limit = distance + 2 * TOLERANCE
        if nearest <= limit and distance <= nearest + 2 * TOLERANCE:
            contending.append(at)
    return contending


def find_nearest(
    connection: sa.Connection,
    proposer: Proposer,
    model_key: int | None,
    collection_key: int,
    probe_D: EmbeddingsF32,
    identities: int,
    wanted: Filter | None = None,
) -> list[Hit]:
    """The nearest `identities` identities of a collection, nearest first; fewer if there are fewer.

    The filter `wanted` restricts them to those whose metadata has, for each of its keys, one of the values given.
    """
    if model_key is None:
        return []
    condition = None if wanted is None else matches_filter(connection, wanted)
    reach = expected_reach(connection, collection_key, identities)
    if condition is not None:
        all_rows, scope = (
            filtered(ALL_CANDIDATES, condition),
            {"model_key": model_key, "collection_key": collection_key},
        )
        rows: Rows = connection.execute(all_rows.limit(FEW + 1), scope).all()
        if len(rows) <= FEW:
            return _described(connection, _ranked(rows, probe_D)[:identities])
    while True:
        rows, complete = proposer.propose_rows(
            connection, model_key, collection_key, probe_D, reach, identities, condition
        )
        ranked = _ranked(rows, probe_D)
        if len(ranked) >= identities or complete:
            return _described(connection, ranked[:identities])
        if condition is not None and reach > WIDEST:
            return _described(connection, _ranked(connection.execute(all_rows, scope).all(), probe_D)[:identities])
        # The nearest references may all be of a few identities.
        reach *= 4


def expected_reach(connection: sa.Connection, collection_key: int, identities: int) -> int:
    """How many references to ask for to see this many identities, if each has the average number of references."""
    searchable, references = count_searched(connection, collection_key)
    each = references / max(1, searchable)
    return math.ceil(identities * min(each, MOST_EACH)) + SLACK


def _ranked(rows: Rows, probe_D: EmbeddingsF32) -> list[tuple[Sequence[Any], float]]:
    """Each identity's nearest reference, and its distance, nearest first; of two at the same distance the older."""
    if not rows:
        return []
    vectors, reference_keys, identity_keys, *_ = zip(*rows, strict=True)
    embeddings_ND = unpacked(vectors) if isinstance(vectors[0], bytes) else np.stack(vectors)
    exact = distances(probe_D, embeddings_ND)
    nearest: dict[int, tuple[Sequence[Any], float]] = {}
    for at in np.lexsort((reference_keys, exact)).tolist():
        nearest.setdefault(identity_keys[at], (rows[at], float(exact[at])))
    return list(nearest.values())


def _described(connection: sa.Connection, nearest: Sequence[tuple[Sequence[Any], float]]) -> list[Hit]:
    if nearest and len(nearest[0][0]) > COMPARED:
        described = [(row[COMPARED:], distance) for row, distance in nearest]
        return [
            Hit(name, json.loads(metadata), reference_id, distance)
            for (reference_id, name, metadata), distance in described
        ]
    rows = connection.execute(ABOUT, {"keys": [row[1] for row, _ in nearest]})
    hits = {key: (name, metadata, reference_id) for reference_id, name, metadata, key in rows}
    return [Hit(*hits[row[1]], distance) for row, distance in nearest]
