"""A gallery as lines of JSON, to be read elsewhere or imported into another database; and back.

The first line says which encoder the embeddings are of, each line after it is one identity, the last counts them: a
file without it was cut off.
"""

import base64
import gzip
import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from app import gallery, models
from app.database import Database
from app.errors import InvalidMetadata, InvalidName, UsageError
from app.models import Loaded
from app.originals import Originals
from app.references import NewReference, enroll_many
from app.schemas import check_metadata, check_name
from app.tables import collection, embedding, identity, reference

FORMAT, VERSION = "diptych-gallery", 1
# Identities that are committed together.
AT_ONCE = 500


class Head(BaseModel):
    """The first line."""

    model_config = ConfigDict(extra="forbid")

    format: str
    version: int
    model_id: str
    embedding_dim: int
    checkpoint: str


class ExportedReference(BaseModel):
    """`embedding` is little-endian float32, `image` the kept image; both in base64."""

    model_config = ConfigDict(extra="forbid")

    reference_id: str
    filename: str
    image_sha256: str
    created_at: str
    embedding: str
    image: str | None = None


class ExportedIdentity(BaseModel):
    """A line."""

    model_config = ConfigDict(extra="forbid")

    collection: str
    identity: str
    metadata: dict[str, Any]
    references: list[ExportedReference]


class End(BaseModel):
    """The last line."""

    model_config = ConfigDict(extra="forbid")

    identities: int
    references: int


@dataclass
class Counts:
    """How many went out or came in."""

    identities: int = 0
    references: int = 0
    held: int = 0


def export(database: Database, file: Path, originals: Originals | None, *, progress: bool) -> Counts:
    """Write all of the gallery as it is at one moment; with `originals`, their images too."""
    counts = Counts()
    unfinished = file.with_name(f".{file.name}.partial")
    try:
        with _written(unfinished, file.suffix == ".gz") as out, database.read() as connection:
            active = models.active(connection)
            if active is None:
                raise UsageError("Nothing is enrolled, so there is nothing to export.")
            _line(out, Head(format=FORMAT, version=VERSION, **_of(active)))
            total = sum(entry["identities"] for entry in gallery.list_collections(connection))
            with tqdm(total=total, desc="exporting", unit="identity", disable=not progress) as bar:
                for one in _identities(connection, active.key, originals):
                    _line(out, one)
                    counts.identities += 1
                    counts.references += len(one.references)
                    bar.update()
            _line(out, End(identities=counts.identities, references=counts.references))
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return counts


def _of(active: models.Model) -> dict[str, Any]:
    return {"model_id": active.model_id, "embedding_dim": active.embedding_dim, "checkpoint": active.checkpoint}


def _identities(connection: sa.Connection, model_key: int, originals: Originals | None) -> Iterator[ExportedIdentity]:
    rows = connection.execution_options(yield_per=1000).execute(
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
        .where(gallery.LIVE)
        .order_by(identity.c.key, reference.c.key)
    )
    for _, of_one in itertools.groupby(rows, key=lambda row: row.key):
        each = list(of_one)
        references = [
            ExportedReference(
                reference_id=row.reference_id,
                filename=row.filename,
                image_sha256=row.image_sha256,
                created_at=row.created_at,
                embedding=_text(np.ascontiguousarray(row.vector, dtype="<f4").tobytes()) or "",
                image=_text(originals.get(row.original_id)) if originals and row.original_id else None,
            )
            for row in each
            if row.vector is not None
        ]
        yield ExportedIdentity(
            collection=each[0].collection, identity=each[0].name, metadata=each[0].metadata, references=references
        )


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def is_export(file: Path) -> bool:
    """Whether a path is rather an export than a folder tree."""
    return file.is_file()


def import_export(database: Database, file: Path, originals: Originals, *, progress: bool) -> Counts:
    """Enroll what `export` wrote, under the same names and ids; what is held already is passed over.

    Raises `UsageError` naming the line that can't be read, `ModelMismatch` for embeddings of another encoder.
    """
    counts = Counts()
    with _read(file) as lines, tqdm(desc="importing", unit="identity", disable=not progress) as bar:
        try:
            head = Head.model_validate_json(next(lines, ""))
        except ValidationError:
            raise UsageError(f"{file} is no export of Diptych's: its first line does not say so.") from None
        if (head.format, head.version) != (FORMAT, VERSION):
            raise UsageError(f"{file} has format {head.format!r} {head.version}; this Diptych reads {VERSION}.")
        loaded = Loaded(head.model_id, head.embedding_dim, "")  # where it was there says nothing here
        ended = False
        for number, some in enumerate(iter(lambda: list(itertools.islice(lines, AT_ONCE)), [])):
            parsed = [_parsed(file, 2 + number * AT_ONCE + at, line) for at, line in enumerate(some)]
            for one in parsed:
                if ended:
                    raise UsageError(f"{file} goes on after its end.")
                if isinstance(one, End):
                    ended = True
                    if (one.identities, one.references) != (counts.identities, counts.references):
                        raise UsageError(f"{file} lacks lines: it counts {one.identities:,} identities.")
                else:
                    counts.identities += 1
                    counts.references += len(one.references)
            counts.held += _enroll(database, [one for one in parsed if not isinstance(one, End)], loaded, originals)
            bar.update(len(parsed))
        if not ended:
            raise UsageError(
                f"{file} was cut off: its last line is missing. What came before it is enrolled; import it again "
                "when it is whole."
            )
    return counts


def _parsed(file: Path, number: int, line: str) -> ExportedIdentity | End:
    try:
        raw = json.loads(line)
        if "identity" not in raw:
            return End.model_validate(raw)
        one = ExportedIdentity.model_validate(raw)
        check_name(one.collection)
        check_name(one.identity)
        check_metadata(one.metadata)
    except (ValueError, TypeError, InvalidName, InvalidMetadata) as problem:
        raise UsageError(f"{file}, line {number:,} can't be read: {str(problem).splitlines()[0]}") from None
    return one


def _enroll(database: Database, some: list[ExportedIdentity], loaded: Loaded, originals: Originals) -> int:
    """How many of their references were held already."""
    by_collection: dict[str, dict[str, list[NewReference]]] = {}
    for one in some:
        new = by_collection.setdefault(one.collection, {}).setdefault(one.identity, [])
        new += [_reference(entry, loaded, originals) for entry in one.references]

    def work(connection: sa.Connection) -> int:
        held = 0
        for name, by_identity in by_collection.items():
            given = [new.reference_id for images in by_identity.values() for new in images]
            before = set(
                connection.scalars(sa.select(reference.c.reference_id).where(reference.c.reference_id.in_(given)))
            )
            entries = enroll_many(connection, name, by_identity, loaded)
            held += sum(
                one in before or entry["reference_id"] != one for entry, one in zip(entries, given, strict=True)
            )
        for one in some:
            within = gallery.collection_key(connection, one.collection)
            gallery.ensure_identity(connection, within, one.identity, one.metadata)
        return held

    try:
        return database.write(work)
    except sa.exc.IntegrityError:
        raise UsageError(
            "The gallery holds references of this export already, under other names: import it into an empty one."
        ) from None


def _reference(entry: ExportedReference, loaded: Loaded, originals: Originals) -> NewReference:
    numbers = base64.b64decode(entry.embedding)
    embedding_D = np.frombuffer(numbers, dtype="<f4") if len(numbers) % 4 == 0 else np.empty(0, dtype=np.float32)
    if len(embedding_D) != loaded.embedding_dim or not abs(float(np.linalg.norm(embedding_D)) - 1) < 1e-3:
        raise UsageError(f"The reference {entry.reference_id} has no unit embedding of {loaded.embedding_dim} numbers.")
    original_id = None
    if entry.image is not None and originals.keeps:
        image = base64.b64decode(entry.image)
        if hashlib.sha256(image).hexdigest() != entry.image_sha256:
            raise UsageError(f"The image of reference {entry.reference_id} is not the one that was enrolled.")
        original_id = originals.keep(image)
    return NewReference(
        entry.filename, entry.image_sha256, embedding_D, original_id, entry.reference_id, entry.created_at
    )


def _line(out: IO[str], document: BaseModel) -> None:
    out.write(json.dumps(document.model_dump(exclude_none=True), ensure_ascii=False) + "\n")


@contextmanager
def _written(path: Path, compressed: bool) -> Iterator[IO[str]]:
    opener: Any = gzip.open if compressed else open
    with opener(path, "wt", encoding="utf-8", newline="\n") as file:
        yield file


@contextmanager
def _read(path: Path) -> Iterator[Iterator[str]]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        try:
            yield iter(file)
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as problem:
            raise UsageError(f"{path} can't be read: {problem}.") from None
