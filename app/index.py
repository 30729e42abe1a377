"""The FAISS cache over the gallery: which references are nearest to a probe.

The database is the truth. Before every search the cache reads on in the sequence of changes, so a restart, a
crash or another process leaves nothing to repair. Holds one exact index for each collection.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock

import faiss
import numpy as np
import sqlalchemy as sa

from app.database import Database, change, reference
from app.matching import EmbeddingsF32, distances

# What FAISS orders by float32 expansions may swap with its neighbour when re-scored exactly.
SLACK = 8


@dataclass(frozen=True)
class Hit:
    """The nearest reference of one identity, by keys of the database, and its exact distance."""

    identity_key: int
    reference_key: int
    distance: float


@dataclass
class _Cached:
    faiss: faiss.IndexIDMap2
    identity_of: dict[int, int] = field(default_factory=dict)


class GalleryIndex:
    """All references of one model_id, found by embedding. Changing it excludes searching it."""

    def __init__(self, database: Database, model_id: str, embedding_dim: int) -> None:
        self._database = database
        self._model_id = model_id
        self._dim = embedding_dim
        self._lock = Lock()
        self._sequence = 0
        self._collections: dict[int, _Cached] = {}
        self._collection_of: dict[int, int] = {}

    def search(self, collection_key: int, probe_D: EmbeddingsF32, identities: int) -> list[Hit]:
        """The nearest `identities` identities of a collection, nearest first; fewer if there are fewer.

        Sees everything that any process committed before the call.
        """
        with self._lock:
            self._catch_up()
            cached = self._collections.get(collection_key)
            if cached is None:
                return []
            return _nearest(cached, probe_D, identities)

    def _catch_up(self) -> None:
        with self._database.read() as connection:
            head = connection.scalar(sa.select(sa.func.max(change.c.sequence))) or 0
            if head == self._sequence:
                return
            try:
                self._apply_changes(connection)
            except BaseException:
                # Half applied is worse than nothing: start again from the truth.
                self._sequence = 0
                self._collections.clear()
                self._collection_of.clear()
                raise
            self._sequence = head

    def _apply_changes(self, connection: sa.Connection) -> None:
        """Take out every reference that changed since, then take in those that exist now."""
        current = sa.select(
            reference.c.key, reference.c.collection_key, reference.c.identity_key, reference.c.embedding
        ).where(reference.c.model_id == self._model_id)
        if self._sequence:
            changed = sa.select(change.c.reference_key).where(change.c.sequence > self._sequence).distinct()
            self._forget(connection.scalars(changed))
            current = current.where(reference.c.key.in_(changed))
        added: dict[int, tuple[list[int], list[bytes]]] = {}
        for key, collection_key, identity_key, embedding in connection.execute(current):
            keys, vectors = added.setdefault(collection_key, ([], []))
            keys.append(key)
            vectors.append(embedding)
            self._cached(collection_key).identity_of[key] = identity_key
            self._collection_of[key] = collection_key
        for collection_key, (keys, vectors) in added.items():
            embeddings_ND = np.frombuffer(b"".join(vectors), dtype="<f4").reshape(-1, self._dim)
            self._cached(collection_key).faiss.add_with_ids(embeddings_ND, np.array(keys, dtype=np.int64))

    def _cached(self, collection_key: int) -> _Cached:
        if collection_key not in self._collections:
            self._collections[collection_key] = _Cached(faiss.IndexIDMap2(faiss.IndexFlatL2(self._dim)))
        return self._collections[collection_key]

    def _forget(self, keys: Iterable[int]) -> None:
        gone: dict[int, list[int]] = {}
        for key in keys:
            collection_key = self._collection_of.pop(key, None)
            if collection_key is not None:
                gone.setdefault(collection_key, []).append(key)
                del self._collections[collection_key].identity_of[key]
        for collection_key, some in gone.items():
            cached = self._collections[collection_key]
            cached.faiss.remove_ids(np.array(some, dtype=np.int64))  # type: ignore[arg-type]
            if not cached.identity_of:
                del self._collections[collection_key]


def _nearest(cached: _Cached, probe_D: EmbeddingsF32, identities: int) -> list[Hit]:
    """Widen the search until it holds enough identities: one with many references may fill the front."""
    total = cached.faiss.ntotal
    reach = min(total, 2 * identities + SLACK)
    while True:
        _, found = cached.faiss.search(probe_D[None, :], reach)
        keys = found[0][found[0] >= 0]
        exact = distances(probe_D, cached.faiss.reconstruct_batch(keys))
        hits: dict[int, Hit] = {}
        for position in np.lexsort((keys, exact)):
            key = int(keys[position])
            identity_key = cached.identity_of[key]
            hits.setdefault(identity_key, Hit(identity_key, key, float(exact[position])))
        if len(hits) >= identities or reach == total:
            return list(hits.values())[:identities]
        reach = min(total, 4 * reach)
