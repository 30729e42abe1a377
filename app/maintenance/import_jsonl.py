"""`diptych import FILE`: what `export` wrote, into another gallery under the same names and ids."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from pydantic import ValidationError

from app.database.transactions import Database
from app.errors import ModelMismatch, UsageError
from app.gallery.encoders import Loaded
from app.gallery.originals import Originals
from app.gallery.references import NewReference, enroll_many, those_known
from app.maintenance.jsonl import FORMAT, VERSION, Counts, End, ExportedIdentity, ExportedReference, Head, parsed, read
from app.progress import progress_bar

# Lines that are committed together: so many, or fewer that are long. Images make them long.
AT_ONCE, AT_ONCE_CHARACTERS = 500, 2**25


def is_export(file: Path) -> bool:
    """Whether a path is rather an export than a folder tree."""
    return file.is_file()


def import_export(database: Database, file: Path, originals: Originals, *, progress: bool) -> Counts:
    """Enroll what `export` wrote, under the same names and ids; what is held already is passed over.

    Raises `UsageError` naming the line that can't be read, and for embeddings of another encoder.
    """
    counts = Counts()
    with read(file) as lines, progress_bar("importing", "identities", enabled=progress) as bar:
        _, first = next(lines, (1, ""))
        try:
            head = Head.model_validate_json(first)
        except ValidationError:
            raise UsageError(f"{file} is no export of Diptych's: its first line does not say so.") from None
        if (head.format, head.version) != (FORMAT, VERSION):
            raise UsageError(f"{file} has format {head.format!r} {head.version}; this Diptych reads {VERSION}.")
        loaded = Loaded(head.model_id, head.embedding_dim, "")  # where it was there says nothing here
        ended = False
        for some in _batches(lines):
            identities: list[ExportedIdentity] = []
            for number, line in some:
                if ended:
                    raise UsageError(f"{file} goes on after its end.")
                one = parsed(file, number, line)
                if isinstance(one, End):
                    ended = True
                    if (one.identities, one.references) != (counts.identities, counts.references):
                        raise UsageError(f"{file} lacks lines: it counts {one.identities:,} identities.")
                else:
                    identities.append(one)
                    counts.identities += 1
                    counts.references += len(one.references)
                    if not originals.keeps:
                        counts.without_image += sum(entry.image is not None for entry in one.references)
            counts.held += _enroll(database, identities, loaded, originals)
            bar.update(len(identities))
        if not ended:
            raise UsageError(
                f"{file} was cut off: its last line is missing. What came before it is enrolled; import it again "
                "when it is whole."
            )
    return counts


def _batches(lines: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    some: list[tuple[int, str]] = []
    characters = 0
    for number, line in lines:
        some.append((number, line))
        characters += len(line)
        if len(some) == AT_ONCE or characters > AT_ONCE_CHARACTERS:
            yield some
            some, characters = [], 0
    yield some


def _enroll(database: Database, some: list[ExportedIdentity], loaded: Loaded, originals: Originals) -> int:
    """How many of their references were held already."""
    by_collection: dict[str, dict[str, list[NewReference]]] = {}
    metadata: dict[str, dict[str, dict[str, Any]]] = {}
    for one in some:
        new = by_collection.setdefault(one.collection, {}).setdefault(one.identity, [])
        new += [_reference(entry, loaded, originals) for entry in one.references]
        metadata.setdefault(one.collection, {})[one.identity] = one.metadata
    given = [entry.reference_id for one in some for entry in one.references]
    if len(set(given)) < len(given):
        raise UsageError("The export names the same reference twice: it was altered.")

    def work(connection: sa.Connection) -> int:
        held = 0
        for name, by_identity in by_collection.items():
            wanted = [new.reference_id for images in by_identity.values() for new in images]
            before = those_known(connection, wanted)
            entries = enroll_many(connection, name, by_identity, loaded, metadata[name])
            held += sum(
                one in before or entry["reference_id"] != one for entry, one in zip(entries, wanted, strict=True)
            )
        return held

    try:
        return database.write(work)
    except ModelMismatch as mismatch:
        raise UsageError(
            f"The export has embeddings of model {loaded.model_id}. {mismatch.detail} Or import it into an empty one."
        ) from None
    except sa.exc.IntegrityError:
        raise UsageError(
            "The gallery holds references of this export already, under other names: import it into an empty one."
        ) from None


def _reference(entry: ExportedReference, loaded: Loaded, originals: Originals) -> NewReference:
    numbers = _bytes(entry, entry.embedding)
    embedding_D = np.frombuffer(numbers, dtype="<f4") if len(numbers) % 4 == 0 else np.empty(0, dtype=np.float32)
    if len(embedding_D) != loaded.embedding_dim or not abs(float(np.linalg.norm(embedding_D)) - 1) < 1e-3:
        raise UsageError(f"The reference {entry.reference_id} has no unit embedding of {loaded.embedding_dim} numbers.")
    original_id = None
    if entry.image is not None and originals.keeps:
        image = _bytes(entry, entry.image)
        if hashlib.sha256(image).hexdigest() != entry.image_sha256:
            raise UsageError(f"The image of reference {entry.reference_id} is not the one that was enrolled.")
        original_id = originals.keep(image)
    return NewReference(
        entry.filename, entry.image_sha256, embedding_D, original_id, entry.reference_id, entry.created_at
    )


def _bytes(entry: ExportedReference, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise UsageError(f"The reference {entry.reference_id} holds what is no base64.") from None
