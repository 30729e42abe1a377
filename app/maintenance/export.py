"""`diptych export`: a whole gallery, as it is at one moment, to lines of JSON."""

import base64
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from app.database.tables import LIVE, collection, embedding, identity, reference
from app.database.transactions import Database
from app.errors import UsageError
from app.files import replacing
from app.gallery.collections import list_collections
from app.gallery.encoders import Model, active_model
from app.gallery.originals import Originals
from app.maintenance.jsonl import (
    FORMAT,
    VERSION,
    Counts,
    End,
    ExportedIdentity,
    ExportedReference,
    Head,
    jsonl_writer,
    write_line,
)
from app.progress import progress_bar


def export_gallery(database: Database, file: Path, originals: Originals | None, *, progress: bool) -> Counts:
    """Write the whole gallery as it is at one moment; with `originals`, the kept images too.

    Raises `UsageError` where `file` exists, or nothing is enrolled.
    """
    if file.exists() or not file.name:
        raise UsageError(f"{file} exists. Give a new file.")
    counts = Counts()
    # Names, embeddings, perhaps images: for nobody but their owner.
    with (
        replacing(file, private=True) as plain,
        jsonl_writer(plain, file.suffix == ".gz") as out,
        database.read() as connection,
    ):
        active = active_model(connection)
        if active is None:
            raise UsageError("Nothing is enrolled, so there is nothing to export.")
        write_line(out, Head(format=FORMAT, version=VERSION, **_model_of(active)))
        total = sum(entry["identities"] for entry in list_collections(connection))
        with progress_bar("exporting", "identities", total, enabled=progress) as bar:
            for entry in _read_identities(connection, active.key, originals):
                write_line(out, entry)
                counts.identities += 1
                counts.references += len(entry.references)
                if originals is not None:
                    counts.without_image += sum(reference.image is None for reference in entry.references)
                bar.update()
        write_line(out, End(identities=counts.identities, references=counts.references))
    return counts


def _model_of(active: Model) -> dict[str, Any]:
    return {"model_id": active.model_id, "embedding_dim": active.embedding_dim, "checkpoint": active.checkpoint}


def _read_identities(
    connection: sa.Connection, model_key: int, originals: Originals | None
) -> Iterator[ExportedIdentity]:
    rows = connection.execute(
        sa.select(
            identity.c.key,
            collection.c.name.label("collection"),
            identity.c.name,
            identity.c.metadata,
            reference.c.reference_id,
            reference.c.filename,
            reference.c.image_sha256,
            reference.c.created_at,
            reference.c.original_id,
            embedding.c.vector,
        )
        .join_from(identity, collection, collection.c.key == identity.c.collection_key)
        .outerjoin(reference, reference.c.identity_key == identity.c.key)
        .outerjoin(embedding, sa.and_(embedding.c.reference_key == reference.c.key, embedding.c.model_key == model_key))
        .where(LIVE)
        .order_by(identity.c.key, reference.c.key)
        .execution_options(yield_per=1000)
    )
    for _, of_identity in itertools.groupby(rows, key=lambda row: row.key):
        each = list(of_identity)
        references = [
            ExportedReference(
                reference_id=row.reference_id,
                filename=row.filename,
                image_sha256=row.image_sha256,
                created_at=row.created_at,
                embedding=_base64(np.ascontiguousarray(row.vector, dtype="<f4").tobytes()) or "",
                image=_base64(originals.get(row.original_id)) if originals and row.original_id else None,
            )
            for row in each
            if row.vector is not None
        ]
        yield ExportedIdentity(
            collection=each[0].collection, identity=each[0].name, metadata=each[0].metadata, references=references
        )


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()
