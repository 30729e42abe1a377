"""Which encoder a gallery belongs to: one is active, and embeddings of different ones are never compared."""

from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from app.database.statements import Statement
from app.database.tables import LIVE, collection, embedding, model
from app.errors import GalleryMoved, ModelMismatch

# Any number that others don't take.
REGISTER_LOCK = 0x6469707479636802


@dataclass(frozen=True)
class Model:
    """An encoder that the gallery knows, and the checkpoint that it was last loaded from."""

    key: int
    model_id: str
    embedding_dim: int
    checkpoint: str


@dataclass(frozen=True)
class Loaded:
    """The encoder that asks."""

    model_id: str
    embedding_dim: int
    checkpoint: str


_COLUMNS = (model.c.key, model.c.model_id, model.c.embedding_dim, model.c.checkpoint)
ACTIVE = Statement(sa.select(*_COLUMNS).where(model.c.active))
ACTIVE_LOCKED = Statement(sa.select(*_COLUMNS).where(model.c.active).with_for_update(read=True))


def active(connection: sa.Connection, *, lock: bool = False) -> Model | None:
    """The encoder whose embeddings answer; with `lock`, nobody changes that before the transaction ends."""
    row = (ACTIVE_LOCKED if lock else ACTIVE).first(connection)
    return None if row is None else Model(*row)


def key_of(connection: sa.Connection, loaded: Loaded, *, lock: bool = False) -> int | None:
    """The key of this model if it is the active one; None if nothing is enrolled.

    Raises `ModelMismatch` if the gallery holds embeddings of another encoder, `GalleryMoved` if it was this one's.
    """
    found = active(connection, lock=lock)
    if found is None:
        return None
    if found.model_id == loaded.model_id:
        _check_dim(found.embedding_dim, loaded)
        return found.key
    if has_embeddings(connection, found.key):
        # Embeddings of the one that asks are what a gallery has that moved on to another.
        error = GalleryMoved if was_active(connection, loaded.model_id) else ModelMismatch
        where = f" ({found.checkpoint})" if found.checkpoint else ""
        raise error(
            f"The gallery was enrolled with model {found.model_id}, this is model {loaded.model_id}: their embeddings "
            f"can't be compared. Serve the checkpoint of that model{where}, or move the gallery to the new one with "
            "diptych migrate."
        )
    return None


def _check_dim(dim: int, loaded: Loaded) -> None:
    if dim != loaded.embedding_dim:
        raise ModelMismatch(
            f"The gallery calls embeddings of {dim} numbers those of model {loaded.model_id}, whose have "
            f"{loaded.embedding_dim}: they were imported from a file that is wrong about it. Use another gallery."
        )


def has_embeddings(connection: sa.Connection, key: int) -> bool:
    """Whether the gallery has any of this model, beside those that wait to be purged."""
    some = sa.select(embedding.c.key).join(collection, collection.c.key == embedding.c.collection_key)
    return connection.scalar(some.where(embedding.c.model_key == key, LIVE).limit(1)) is not None


def was_active(connection: sa.Connection, model_id: str) -> bool:
    """Whether the gallery has embeddings of this model."""
    key = connection.scalar(sa.select(model.c.key).where(model.c.model_id == model_id))
    return key is not None and has_embeddings(connection, key)


def adopt(connection: sa.Connection, loaded: Loaded) -> int:
    """The key of the encoder that asks, which becomes the gallery's if nothing is enrolled. Raises `ModelMismatch`."""
    key = key_of(connection, loaded, lock=True)
    if key is None:
        _one_at_a_time(connection)
        lock(connection)  # what another one activates meanwhile is waited for, and seen
        key = key_of(connection, loaded)
    if key is None:
        key = register(connection, loaded)
        activate(connection, key)
    return key


def _one_at_a_time(connection: sa.Connection) -> None:
    """Where two may write at once, let the second of two first enrolments see what the first did."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(REGISTER_LOCK)))


def register(connection: sa.Connection, loaded: Loaded) -> int:
    """The key of a model, known from now on; the index over its embeddings is made. Raises `ModelMismatch`."""
    _one_at_a_time(connection)
    row = connection.execute(sa.select(model.c.key, model.c.embedding_dim).where(model.c.model_id == loaded.model_id))
    if (found := row.one_or_none()) is not None:
        key = found.key
        _check_dim(found.embedding_dim, loaded)
        if loaded.checkpoint:
            connection.execute(sa.update(model).where(model.c.key == key).values(checkpoint=loaded.checkpoint))
        return int(key)
    made = sa.insert(model).values(
        model_id=loaded.model_id,
        embedding_dim=loaded.embedding_dim,
        checkpoint=loaded.checkpoint,
        active=False,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    key = int(connection.execute(made.returning(model.c.key)).scalar_one())
    if connection.dialect.name == "postgresql":
        from app.database.engines import engine_of

        version = str(connection.scalar(sa.text("SELECT version()")))
        connection.exec_driver_sql(engine_of(version).index_ddl(key, loaded.embedding_dim))
    return key


def lock(connection: sa.Connection) -> None:
    """Let nobody enroll before the transaction ends: whoever does locks the active model too."""
    connection.execute(sa.select(model.c.key).with_for_update())


def activate(connection: sa.Connection, key: int) -> None:
    """From the end of the transaction on, this model answers, and no other."""
    connection.execute(sa.update(model).values(active=model.c.key == key))
