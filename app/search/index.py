"""The FAISS cache over a gallery in SQLite: which embeddings are nearest to a probe.

The database is the truth. Before every search the cache of that collection reads on in the sequence of changes, so a
restart, a crash or another process leaves nothing to repair. What it proposes is looked up in the same transaction:
a key that is gone is no hit, whatever the cache believes.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import sqlalchemy as sa

from app.arrays import EmbeddingsF32, Ints
from app.database.sqlite import SQLite, rows
from app.database.statements import Statement
from app.database.tables import LIVE, change, collection, embedding, unpacked
from app.errors import StorageUnavailable
from app.search.snapshots import Moment, Snapshots
from app.search.vectors import EXACT_UP_TO, Approximate, Exact, Proposed, Vectors, build, sampled

log = logging.getLogger("uvicorn.error")

# Embeddings read at a time; a catch-up of more changes than the last starts from the truth instead.
CHUNK = 20_000
# A snapshot is written anew after so many changes.
STALE_AFTER = 50_000
BEGINNING = Moment(0, "", 0)
CHANGED = Statement(
    sa.select(change.c.identity_key, change.c.embedding_key)
    .where(
        change.c.sequence > sa.bindparam("since"),
        change.c.model_key == sa.bindparam("model_key"),
        change.c.collection_key == sa.bindparam("collection_key"),
    )
    .distinct()
)
TOKEN = Statement(sa.select(sa.func.hex(change.c.token)).where(change.c.sequence == sa.bindparam("sequence")))
HEAD = Statement(sa.select(change.c.sequence, sa.func.hex(change.c.token)).order_by(change.c.sequence.desc()).limit(1))


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
        head = _head(connection, model_key)
        if head.sequence <= cached.moment.sequence and cached.moment.model_key == model_key:
            return  # an older transaction than the one before it
        try:
            if cached.moment is BEGINNING or not _is_in(connection, cached.moment, model_key):
                self._load(connection, model_key, collection_key, cached)
            self._apply(connection, model_key, collection_key, cached, cached.vectors)
        except BaseException:
            # Half applied is worse than nothing: start again from the truth.
            cached.vectors, cached.moment, cached.snapshot_at = Exact(self._dim), BEGINNING, None
            raise
        cached.moment = head

    def _load(self, connection: sa.Connection, model_key: int, collection_key: int, cached: _Cached) -> None:
        loaded = self._snapshots.load(collection_key)
        if loaded is not None and _is_in(connection, loaded[1], model_key):
            cached.vectors, cached.moment = loaded
            cached.snapshot_at = cached.moment.sequence
            return
        if loaded is not None:
            log.warning("the index snapshot of collection %d is stale or of another gallery: ignored", collection_key)
        exact = Exact(self._dim)
        for labels, embeddings_ND in _read(connection, model_key, _keys(connection, model_key, collection_key)):
            exact.add(labels, embeddings_ND)
        cached.vectors, cached.moment, cached.snapshot_at = exact, _head(connection, model_key), None

    def _apply(
        self, connection: sa.Connection, model_key: int, collection_key: int, cached: _Cached, vectors: Vectors
    ) -> None:
        """Take out every embedding that changed since, then take in those that exist now."""
        changed = _changed(connection, model_key, collection_key, cached.moment.sequence)
        if not len(changed):
            return
        there = 0
        vectors.remove(changed)
        for labels, embeddings_ND in _read(connection, model_key, np.sort(unlabelled(changed)[1])):
            vectors.add(labels, embeddings_ND)
            there += len(labels)
        if there < len(changed) and cached.snapshot_at is not None:
            self._snapshots.drop(collection_key)
            cached.snapshot_at = None

    # --- in the background ------------------------------------------------------------------------------------

    def tend(self, model_key: int, *, closing: bool = False) -> None:
        """Catch up, so that the next search need not; build what has grown; leave snapshots.

        Small collections that nobody has searched are left for the first search.
        """
        with self._database.read() as connection:
            head = _head(connection, model_key)
            if head == self._tended and not closing and not self._unsaved():
                return
            every = connection.execute(sa.select(collection.c.key, collection.c.reference_count).where(LIVE))
            counts = {row.key: row.reference_count for row in every}
        with self._lock:
            for gone in self._collections.keys() - counts.keys():
                del self._collections[gone]
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
            every = list(self._collections.values())
        return any(
            one.vectors.is_outgrown or (isinstance(one.vectors, Approximate) and one.snapshot_at is None)
            for one in every
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
                self._leave_snapshot(collection_key, cached, closing)

    def _leave_snapshot(self, collection_key: int, cached: _Cached, closing: bool) -> None:
        """When it has been quiet since the last look, when much has changed, or at the end."""
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
        """Build a new index beside the one that answers, and swap them. Other processes adopt its snapshot."""
        with self._snapshots.building() as ours:
            if not ours:
                return
            adopted = self._adoptable(model_key, collection_key, count)
            if adopted is None:
                with self._database.read() as connection:
                    moment = _head(connection, model_key)
                    keys = _keys(connection, model_key, collection_key)
                fresh: Vectors = (
                    self._build(model_key, keys) if len(keys) > EXACT_UP_TO else self._exact(model_key, keys)
                )
            else:
                fresh, moment = adopted
            saved = isinstance(fresh, Approximate) and (
                adopted is not None or self._snapshots.save(collection_key, fresh, moment)
            )
        with self._database.read() as connection, cached.lock:
            if not _is_in(connection, moment, model_key):
                return
            standing = _Cached(fresh, moment, moment.sequence if saved else None)
            head = _head(connection, model_key)
            self._apply(connection, model_key, collection_key, standing, fresh)
            cached.vectors, cached.moment, cached.snapshot_at = fresh, head, standing.snapshot_at

    def _adoptable(self, model_key: int, collection_key: int, count: int) -> tuple[Approximate, Moment] | None:
        loaded = self._snapshots.load(collection_key)
        if loaded is None or loaded[0].is_outgrown or not 0.9 * count <= len(loaded[0]) <= 1.1 * count:
            return None
        with self._database.read() as connection:
            return loaded if _is_in(connection, loaded[1], model_key) else None

    def _build(self, model_key: int, keys: Ints) -> Approximate:
        """In short transactions, so that the log can be reset meanwhile; what changes during it is applied after."""
        log.info("building an index of %d embeddings", len(keys))
        sample = sampled(keys, len(keys))
        learned = [part for _, part in self._parts(model_key, sample)]
        return build(self._dim, np.concatenate(learned), self._parts(model_key, keys), len(keys))

    def _exact(self, model_key: int, keys: Ints) -> Exact:
        exact = Exact(self._dim)
        for labels, embeddings_ND in self._parts(model_key, keys):
            exact.add(labels, embeddings_ND)
        return exact

    def _parts(self, model_key: int, keys: Ints) -> Iterator[tuple[Ints, EmbeddingsF32]]:
        for start in range(0, len(keys), CHUNK):
            with self._database.read() as connection:
                parts = list(_read(connection, model_key, keys[start : start + CHUNK]))
            yield from parts


def _head(connection: sa.Connection, model_key: int) -> Moment:
    """The last change; the migration made one, so there always is."""
    row = HEAD.first(connection)
    assert row is not None  # noqa: S101
    return Moment(row[0], row[1], model_key)


def _is_in(connection: sa.Connection, moment: Moment, model_key: int) -> bool:
    """Whether this history has passed through that moment, and still tells what came after it."""
    row = TOKEN.first(connection, sequence=moment.sequence)
    return row is not None and (row[0], model_key) == (moment.token, moment.model_key)


def _changed(connection: sa.Connection, model_key: int, collection_key: int, since: int) -> Ints:
    found = CHANGED.all(connection, since=since, model_key=model_key, collection_key=collection_key)
    if not found:
        return np.empty(0, dtype=np.int64)
    identities, keys = zip(*found, strict=True)
    return labelled(identities, keys)


def labelled(identity_keys: Sequence[int], embedding_keys: Sequence[int]) -> Ints:
    """What FAISS knows embeddings by: both keys in one number. Who is nearest is known before anything is read.

    Raises `StorageUnavailable` after four billion embeddings or two billion identities, deleted ones too.
    """
    identities, keys = np.asarray(identity_keys, dtype=np.int64), np.asarray(embedding_keys, dtype=np.int64)
    if identities.max() >= 2**31 or keys.max() >= 2**32:
        raise StorageUnavailable(
            "The gallery's keys are used up. Move what is in it to a new one: diptych export, diptych import."
        )
    return identities << 32 | keys


def unlabelled(labels: Ints) -> tuple[Ints, Ints]:
    """Keys of identities and of embeddings."""
    return labels >> 32, labels & 0xFFFFFFFF


def _keys(connection: sa.Connection, model_key: int, collection_key: int) -> Ints:
    found = connection.scalars(
        sa.select(embedding.c.key).where(
            embedding.c.model_key == model_key, embedding.c.collection_key == collection_key
        )
    )
    return np.sort(np.fromiter(found, dtype=np.int64))


def _read(connection: sa.Connection, model_key: int, keys: Ints) -> Iterator[tuple[Ints, EmbeddingsF32]]:
    """Those of `keys`, which ascend, that exist and are of this model, with their embeddings, so many at a time."""
    for start in range(0, len(keys), CHUNK):
        some = keys[start : start + CHUNK]
        if some[-1] - some[0] < 2 * len(some):  # nearly all of a stretch: read it through
            those = f"key BETWEEN {some[0]} AND {some[-1]}"
        else:
            those = f"key IN ({','.join(map(str, some.tolist()))})"
        # A stretch may hold another model's too, of another number of dimensions. The plus keeps SQLite from using the
        # index by model, which has them all.
        query = f"SELECT identity_key, key, vector FROM embedding WHERE {those} AND +model_key = {int(model_key)}"  # noqa: S608
        if found := rows(connection, query, ()):
            identities, there, stored = zip(*found, strict=True)
            wanted = np.isin(there, some)
            yield labelled(identities, there)[wanted], unpacked(stored)[wanted]
