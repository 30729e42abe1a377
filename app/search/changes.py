"""What a cache of embeddings reads from a gallery in SQLite: the sequence of changes, and the embeddings themselves."""

from collections.abc import Iterator, Sequence

import numpy as np
import sqlalchemy as sa

from app.arrays import EmbeddingsF32, Ints
from app.database.sqlite import driver_rows
from app.database.statements import Statement
from app.database.tables import change, embedding, unpacked
from app.errors import StorageUnavailable
from app.search.snapshots import Moment

# Embeddings read at a time.
CHUNK = 20_000
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


def last_moment(connection: sa.Connection, model_key: int) -> Moment:
    """The last change. There is always one, since the migration made the first."""
    row = HEAD.first(connection)
    assert row is not None  # noqa: S101
    return Moment(row[0], row[1], model_key)


def is_in_history(connection: sa.Connection, moment: Moment, model_key: int) -> bool:
    """Whether that moment is in this history, and the changes since are all known."""
    row = TOKEN.first(connection, sequence=moment.sequence)
    return row is not None and (row[0], model_key) == (moment.token, moment.model_key)


def changed_labels(connection: sa.Connection, model_key: int, collection_key: int, since: int) -> Ints:
    """Labels of the embeddings of one collection that were added or deleted after `since`, a place in the sequence."""
    rows = CHANGED.all(connection, since=since, model_key=model_key, collection_key=collection_key)
    if not rows:
        return np.empty(0, dtype=np.int64)
    identities, keys = zip(*rows, strict=True)
    return labelled(identities, keys)


def labelled(identity_keys: Sequence[int], embedding_keys: Sequence[int]) -> Ints:
    """The labels of embeddings in FAISS: both keys in one number, so that identities are known before anything is read.

    Raises `StorageUnavailable` after four billion embeddings or two billion identities, deleted ones too.
    """
    identities, keys = np.asarray(identity_keys, dtype=np.int64), np.asarray(embedding_keys, dtype=np.int64)
    if identities.max() >= 2**31 or keys.max() >= 2**32:
        raise StorageUnavailable(
            "The gallery's database has no row numbers left. Move everything to a new gallery with diptych export and "
            "diptych import."
        )
    return identities << 32 | keys


def unlabelled(labels: Ints) -> tuple[Ints, Ints]:
    """The keys of identities and of embeddings in these labels.

    >>> unlabelled(labelled([3], [7]))
    (array([3]), array([7]))
    """
    return labels >> 32, labels & 0xFFFFFFFF


def embedding_keys(connection: sa.Connection, model_key: int, collection_key: int) -> Ints:
    """The keys of all embeddings of a collection, ascending."""
    keys = connection.scalars(
        sa.select(embedding.c.key).where(
            embedding.c.model_key == model_key, embedding.c.collection_key == collection_key
        )
    )
    return np.sort(np.fromiter(keys, dtype=np.int64))


def read_embeddings(connection: sa.Connection, model_key: int, keys: Ints) -> Iterator[tuple[Ints, EmbeddingsF32]]:
    """Labels and embeddings `[N, D]`, in pieces, of those of `keys` (ascending) that exist and are of this model.

    Raises `GalleryDamaged` where an embedding is not what was written.
    """
    for start in range(0, len(keys), CHUNK):
        piece = keys[start : start + CHUNK]
        if piece[-1] - piece[0] < 2 * len(piece):  # nearly all keys of a range: read the range
            condition = f"key BETWEEN {piece[0]} AND {piece[-1]}"
        else:
            condition = f"key IN ({','.join(map(str, piece.tolist()))})"
        # A range may hold embeddings of another model, which have another number of dimensions. The plus keeps SQLite
        # from using the index by model, which would read all of them.
        query = f"SELECT identity_key, key, vector FROM embedding WHERE {condition} AND +model_key = {int(model_key)}"  # noqa: S608
        if rows := driver_rows(connection, query, ()):
            identities, existing, stored = zip(*rows, strict=True)
            wanted = np.isin(existing, piece)
            yield labelled(identities, existing)[wanted], unpacked(stored)[wanted]
