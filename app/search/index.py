"""The FAISS cache over a gallery in SQLite: which embeddings are nearest to a probe.

The database is the truth. Before every search the cache of that collection reads on in the sequence of changes, so a
restart, a crash or another process leaves nothing to repair. What it proposes is looked up in the same transaction, so
that what was deleted is never found, even if the cache still has it.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import sqlalchemy as sa

from app.arrays import EmbeddingsF32, Ints
from app.database.sqlite import SQLite
from app.database.tables import LIVE, collection
from app.search.changes import (
    CHUNK,
    changed_labels,
    embedding_keys,
    is_in_history,
    last_moment,
    read_embeddings,
    unlabelled,
)
from app.search.snapshots import Moment, Snapshots
from app.search.tuning import build_index, sample_keys
from app.search.vectors import EXACT_UP_TO, Approximate, Exact, Proposed, Vectors

log = logging.getLogger(__name__)

# A snapshot is written again after this many changes.
STALE_AFTER = 50_000
BEGINNING = Moment(0, "", 0)


@dataclass
class _Cached:
    vectors: Vectors
    moment: Moment
    snapshot_at: int | None = None  # the sequence that the file on disk shows; None: there is none
    lock: Lock = field(default_factory=Lock)


class GalleryIndex:
    """All embeddings of one model, by collection. Changing a collection's cache excludes searching it."""

    def __init__(self, database: SQLite, model_id: str, embedding_dim: int, directory: Path) -> None:
        self._database = database
        self._dim = embedding_dim
        self._snapshots = Snapshots(directory, model_id)
        self._lock = Lock()
        self._collections: dict[int, _Cached] = {}
        self._tended = BEGINNING

    def propose(
        self, connection: sa.Connection, model_key: int, collection_key: int, probe_D: EmbeddingsF32, reach: int
    ) -> Proposed:
        """The nearest `reach` embeddings of a collection, nearly; never fewer than there are.

        Their distances, each within `TOLERANCE`, ascending; and labels (see `labelled`). Sees everything that any
        process committed before the transaction of `connection` began.
        """
        cached = self._cached(collection_key)
        with cached.lock:
            self._catch_up(connection, model_key, collection_key, cached)
            squared, labels = cached.vectors.propose(probe_D, reach)
        return np.sqrt(np.maximum(squared, 0)), labels

    # --- reading on -------------------------------------------------------------------------------------------

    def _cached(self, collection_key: int) -> _Cached:
        with self._lock:
            return self._collections.setdefault(collection_key, _Cached(Exact(self._dim), BEGINNING))

    def _catch_up(self, connection: sa.Connection, model_key: int, collection_key: int, cached: _Cached) -> None:
        head = last_moment(connection, model_key)
        if head.sequence <= cached.moment.sequence and cached.moment.model_key == model_key:
            return  # an older transaction than the one before it
        try:
            if cached.moment is BEGINNING or not is_in_history(connection, cached.moment, model_key):
                self._load(connection, model_key, collection_key, cached)
            self._apply(connection, model_key, collection_key, cached, cached.vectors)
        except BaseException:
            # A half-applied change would give wrong answers: start again from the database.
            cached.vectors, cached.moment, cached.snapshot_at = Exact(self._dim), BEGINNING, None
            raise
        cached.moment = head

    def _load(self, connection: sa.Connection, model_key: int, collection_key: int, cached: _Cached) -> None:
        loaded = self._snapshots.load_snapshot(collection_key)
        if loaded is not None and is_in_history(connection, loaded[1], model_key):
            cached.vectors, cached.moment = loaded
            cached.snapshot_at = cached.moment.sequence
            return
        if loaded is not None:
            log.warning(
                "ignoring the index snapshot of collection %d: it is out of date, or of another gallery", collection_key
            )
        exact = Exact(self._dim)
        for labels, embeddings_ND in read_embeddings(
            connection, model_key, embedding_keys(connection, model_key, collection_key)
        ):
            exact.add(labels, embeddings_ND)
        cached.vectors, cached.moment, cached.snapshot_at = exact, last_moment(connection, model_key), None

    def _apply(
        self, connection: sa.Connection, model_key: int, collection_key: int, cached: _Cached, vectors: Vectors
    ) -> None:
        """Remove every embedding that changed since, then add those that exist now."""
        changed = changed_labels(connection, model_key, collection_key, cached.moment.sequence)
        if not len(changed):
            return
        existing = 0
        vectors.remove(changed)
        for labels, embeddings_ND in read_embeddings(connection, model_key, np.sort(unlabelled(changed)[1])):
            vectors.add(labels, embeddings_ND)
            existing += len(labels)
        if existing < len(changed) and cached.snapshot_at is not None:
            self._snapshots.drop(collection_key)
            cached.snapshot_at = None

    # --- in the background ------------------------------------------------------------------------------------

    def tend(self, model_key: int, *, closing: bool = False) -> None:
        """Catch up, so that the next search need not; build indexes of collections that have grown; save snapshots.

        Small collections that nobody has searched are left for the first search.
        """
        with self._database.read() as connection:
            head = last_moment(connection, model_key)
            if head == self._tended and not closing and not self._unsaved():
                return
            rows = connection.execute(sa.select(collection.c.key, collection.c.reference_count).where(LIVE))
            counts = {row.key: row.reference_count for row in rows}
        with self._lock:
            for deleted in self._collections.keys() - counts.keys():
                del self._collections[deleted]
            known = set(self._collections)
        if closing:
            counts = {key: count for key, count in counts.items() if key in known}
        else:
            self._snapshots.drop_others(set(counts))
        for collection_key in (key for key, count in counts.items() if key in known or count > EXACT_UP_TO):
            self._tend(model_key, collection_key, counts[collection_key], closing)
        self._tended = head

    def _unsaved(self) -> bool:
        with self._lock:
            caches = list(self._collections.values())
        return any(
            cached.vectors.is_outgrown or (isinstance(cached.vectors, Approximate) and cached.snapshot_at is None)
            for cached in caches
        )

    def _tend(self, model_key: int, collection_key: int, count: int, closing: bool) -> None:
        cached = self._cached(collection_key)
        before = cached.moment
        if before is BEGINNING and count > EXACT_UP_TO and not self._snapshots.has(collection_key):
            if not closing:
                self._renew(model_key, collection_key, cached, count)  # without reading it all into memory first
            return
        with self._database.read() as connection, cached.lock:
            self._catch_up(connection, model_key, collection_key, cached)
        if cached.vectors.is_outgrown and not closing:
            self._renew(model_key, collection_key, cached, len(cached.vectors))
        elif isinstance(cached.vectors, Approximate):
            quiet = cached.moment == before
            if closing or quiet or cached.snapshot_at is not None:
                self._save_snapshot(collection_key, cached, closing)

    def _save_snapshot(self, collection_key: int, cached: _Cached, closing: bool) -> None:
        """Save a snapshot if there is none, if much has changed since the last one, or when the service stops."""
        with cached.lock:
            behind = cached.moment.sequence - (cached.snapshot_at or 0)
            due = cached.snapshot_at is None or behind > STALE_AFTER or (closing and behind)
            if (
                due
                and isinstance(cached.vectors, Approximate)
                and self._snapshots.save(collection_key, cached.vectors, cached.moment)
            ):
                cached.snapshot_at = cached.moment.sequence

    def _renew(self, model_key: int, collection_key: int, cached: _Cached, count: int) -> None:
        """Build a new index beside the one that answers, and swap them. Other processes load its snapshot."""
        with self._snapshots.building() as ours:
            if not ours:
                return
            adopted = self._adoptable(model_key, collection_key, count)
            if adopted is None:
                with self._database.read() as connection:
                    moment = last_moment(connection, model_key)
                    keys = embedding_keys(connection, model_key, collection_key)
                fresh: Vectors = (
                    self._build(model_key, keys) if len(keys) > EXACT_UP_TO else self._exact(model_key, keys)
                )
            else:
                fresh, moment = adopted
            saved = isinstance(fresh, Approximate) and (
                adopted is not None or self._snapshots.save(collection_key, fresh, moment)
            )
        with self._database.read() as connection, cached.lock:
            if not is_in_history(connection, moment, model_key):
                return
            built = _Cached(fresh, moment, moment.sequence if saved else None)
            head = last_moment(connection, model_key)
            self._apply(connection, model_key, collection_key, built, fresh)
            cached.vectors, cached.moment, cached.snapshot_at = fresh, head, built.snapshot_at

    def _adoptable(self, model_key: int, collection_key: int, count: int) -> tuple[Approximate, Moment] | None:
        loaded = self._snapshots.load_snapshot(collection_key)
        if loaded is None or loaded[0].is_outgrown or not 0.9 * count <= len(loaded[0]) <= 1.1 * count:
            return None
        with self._database.read() as connection:
            return loaded if is_in_history(connection, loaded[1], model_key) else None

    def _build(self, model_key: int, keys: Ints) -> Approximate:
        """In short transactions, so that SQLite can reset its log in between. Changes are applied afterwards."""
        log.info("building an index of %d embeddings", len(keys))
        sample = sample_keys(keys, len(keys))
        learned = [part for _, part in self._parts(model_key, sample)]
        return build_index(self._dim, np.concatenate(learned), self._parts(model_key, keys), len(keys))

    def _exact(self, model_key: int, keys: Ints) -> Exact:
        exact = Exact(self._dim)
        for labels, embeddings_ND in self._parts(model_key, keys):
            exact.add(labels, embeddings_ND)
        return exact

    def _parts(self, model_key: int, keys: Ints) -> Iterator[tuple[Ints, EmbeddingsF32]]:
        for start in range(0, len(keys), CHUNK):
            with self._database.read() as connection:
                parts = list(read_embeddings(connection, model_key, keys[start : start + CHUNK]))
            yield from parts
