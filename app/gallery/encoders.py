"""Which encoder a gallery belongs to: one is active, and embeddings of different ones are never compared."""

from dataclasses import dataclass

import sqlalchemy as sa

from app.database.pgvector import index_ddl
from app.database.statements import Statement
from app.database.tables import LIVE, collection, embedding, model, timestamp
from app.errors import GalleryMoved, ModelMismatch

# Any number that no other advisory lock has.
REGISTER_LOCK = 0x6469707479636802


@dataclass(frozen=True)
class Loaded:
    """The encoder that this process has loaded, and the checkpoint that it is from."""

    model_id: str
    embedding_dim: int
    checkpoint: str


@dataclass(frozen=True)
class Model(Loaded):
    """An encoder that the gallery knows, and the checkpoint that it was last loaded from."""

    key: int


_COLUMNS = (model.c.model_id, model.c.embedding_dim, model.c.checkpoint, model.c.key)
ACTIVE = Statement(sa.select(*_COLUMNS).where(model.c.active))
ACTIVE_LOCKED = Statement(sa.select(*_COLUMNS).where(model.c.active).with_for_update(read=True))


def active_model(connection: sa.Connection, *, lock: bool = False) -> Model | None:
    """The encoder whose embeddings answer. With `lock`, nobody changes that before the transaction ends."""
    row = (ACTIVE_LOCKED if lock else ACTIVE).first(connection)
    return None if row is None else Model(*row)


def find_model_key(connection: sa.Connection, loaded: Loaded, *, lock: bool = False) -> int | None:
    """The key of this model if it is the active one; None if nothing is enrolled.

    Raises `ModelMismatch` if the gallery holds embeddings of another encoder; that is `GalleryMoved` if it still has
    embeddings of this one too.
    """
    active = active_model(connection, lock=lock)
    if active is None:
        return None
    if active.model_id == loaded.model_id:
        _check_dim(active.embedding_dim, loaded)
        return active.key
    if has_embeddings(connection, active.key):
        error = GalleryMoved if knows_model(connection, loaded.model_id) else ModelMismatch
        where = f" ({active.checkpoint})" if active.checkpoint else ""
        raise error(
            f"The gallery was enrolled with model {active.model_id}, and this is model {loaded.model_id}: their "
            f"embeddings can't be compared. Serve the checkpoint of that model{where}, or move the gallery to the new "
            "model with diptych migrate."
        )
    return None


def _check_dim(dim: int, loaded: Loaded) -> None:
    if dim != loaded.embedding_dim:
        raise ModelMismatch(
            f"The gallery has embeddings of {dim} numbers for model {loaded.model_id}, which makes embeddings of "
            f"{loaded.embedding_dim}: the file that they were imported from was wrong. Use another gallery."
        )


def has_embeddings(connection: sa.Connection, key: int) -> bool:
    """Whether the gallery has any of this model; those of deleted collections do not count."""
    keys = sa.select(embedding.c.key).join(collection, collection.c.key == embedding.c.collection_key)
    return connection.scalar(keys.where(embedding.c.model_key == key, LIVE).limit(1)) is not None


def knows_model(connection: sa.Connection, model_id: str) -> bool:
    """Whether the gallery has embeddings of this model, active or not."""
    key = connection.scalar(sa.select(model.c.key).where(model.c.model_id == model_id))
    return key is not None and has_embeddings(connection, key)


def adopt_model(connection: sa.Connection, loaded: Loaded) -> int:
    """The key of the loaded encoder, which becomes the gallery's if nothing is enrolled. Raises `ModelMismatch`."""
    key = find_model_key(connection, loaded, lock=True)
    if key is None:
        _one_at_a_time(connection)
        lock_models(connection)  # waits for another process that is activating a model, and sees it
        key = find_model_key(connection, loaded)
    if key is None:
        key = register_model(connection, loaded)
        activate_model(connection, key)
    return key


def _one_at_a_time(connection: sa.Connection) -> None:
    """Where two may write at once, let the second of two first enrolments see what the first did."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(REGISTER_LOCK)))


def register_model(connection: sa.Connection, loaded: Loaded) -> int:
    """The key of a model, known from now on, with an index over its embeddings. Raises `ModelMismatch`."""
    _one_at_a_time(connection)
    query = sa.select(model.c.key, model.c.embedding_dim).where(model.c.model_id == loaded.model_id)
    if (known := connection.execute(query).one_or_none()) is not None:
        key = int(known.key)
        _check_dim(known.embedding_dim, loaded)
        if loaded.checkpoint:
            connection.execute(sa.update(model).where(model.c.key == key).values(checkpoint=loaded.checkpoint))
        return key
    new = sa.insert(model).values(
        model_id=loaded.model_id,
        embedding_dim=loaded.embedding_dim,
        checkpoint=loaded.checkpoint,
        active=False,
        created_at=timestamp(),
    )
    key = int(connection.execute(new.returning(model.c.key)).scalar_one())
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(index_ddl(key, loaded.embedding_dim))
    return key


def lock_models(connection: sa.Connection) -> None:
    """Let nobody enroll before the transaction ends: whoever does locks the active model too."""
    connection.execute(sa.select(model.c.key).with_for_update())


def activate_model(connection: sa.Connection, key: int) -> None:
    """From the end of the transaction on, this model answers, and no other."""
    connection.execute(sa.update(model).values(active=model.c.key == key))
