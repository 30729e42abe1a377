"""`diptych import FILE`: an export into a gallery, under the same names and ids."""

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
from app.gallery.enrolment import NewReference, enroll_identities
from app.gallery.originals import Originals
from app.gallery.references import find_known_references
from app.maintenance.jsonl import (
    FORMAT,
    VERSION,
    Counts,
    End,
    ExportedIdentity,
    ExportedReference,
    Head,
    jsonl_reader,
    parse_line,
)
from app.progress import progress_bar

# Lines that are committed together: this many, or fewer where they are long. Images make them long.
AT_ONCE, AT_ONCE_CHARACTERS = 500, 2**25


def is_export(file: Path) -> bool:
    """Whether a path is an export, and not a folder tree."""
    return file.is_file()


def import_export(database: Database, file: Path, originals: Originals, *, progress: bool) -> Counts:
    """Enroll an export, under the same names and ids. What is enrolled already is skipped.

    Raises `UsageError` for a line that can't be read, which it names, and for embeddings of another encoder.
    """
    counts = Counts()
    with (
        jsonl_reader(file) as lines,
        progress_bar("importing", "identities", enabled=progress) as bar,
    ):
        _, first = next(lines, (1, ""))
        try:
            head = Head.model_validate_json(first)
        except ValidationError:
            raise UsageError(
                f"{file} is not an export: its first line is not one that `diptych export` writes."
            ) from None
        if (head.format, head.version) != (FORMAT, VERSION):
            raise UsageError(
                f"{file} has format {head.format!r}, version {head.version}. This Diptych reads version {VERSION}."
            )
        loaded = Loaded(head.model_id, head.embedding_dim, "")  # a path on the other machine means nothing here
        ended = False
        for batch in _batches(lines):
            identities: list[ExportedIdentity] = []
            for number, line in batch:
                if ended:
                    raise UsageError(f"{file} has lines after the line that should be its last. It was altered.")
                entry = parse_line(file, number, line)
                if isinstance(entry, End):
                    ended = True
                    if (entry.identities, entry.references) != (counts.identities, counts.references):
                        raise UsageError(
                            f"{file} lacks lines: according to its last line, it should have {entry.identities:,} "
                            f"identities with {entry.references:,} references."
                        )
                else:
                    identities.append(entry)
                    counts.identities += 1
                    counts.references += len(entry.references)
                    if not originals.keeps:
                        counts.without_image += sum(reference.image is not None for reference in entry.references)
            counts.held += _enroll(database, identities, loaded, originals)
            bar.update(len(identities))
        if not ended:
            raise UsageError(
                f"{file} was cut off: its last line is missing. The lines before it were enrolled. Import the "
                "complete file."
            )
    return counts


def _batches(lines: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    characters = 0
    for number, line in lines:
        batch.append((number, line))
        characters += len(line)
        if len(batch) == AT_ONCE or characters > AT_ONCE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch


def _enroll(database: Database, identities: list[ExportedIdentity], loaded: Loaded, originals: Originals) -> int:
    """How many of the references were enrolled already."""
    by_collection: dict[str, dict[str, list[NewReference]]] = {}
    metadata: dict[str, dict[str, dict[str, Any]]] = {}
    for identity in identities:
        new = by_collection.setdefault(identity.collection, {}).setdefault(identity.identity, [])
        new += [_reference(entry, loaded, originals) for entry in identity.references]
        metadata.setdefault(identity.collection, {})[identity.identity] = identity.metadata
    given = [entry.reference_id for identity in identities for entry in identity.references]
    if len(set(given)) < len(given):
        raise UsageError("The export has the same reference twice: it was altered. Export the gallery again.")

    def work(connection: sa.Connection) -> int:
        held = 0
        for name, by_identity in by_collection.items():
            wanted = [new.reference_id for images in by_identity.values() for new in images]
            before = find_known_references(connection, wanted)
            entries = enroll_identities(connection, name, by_identity, loaded, metadata[name])
            held += sum(
                reference_id in before or entry["reference_id"] != reference_id
                for entry, reference_id in zip(entries, wanted, strict=True)
            )
        return held

    try:
        return database.write(work)
    except ModelMismatch as mismatch:
        raise UsageError(
            f"The export has embeddings of model {loaded.model_id}. {mismatch.detail} "
            "Or import it into an empty gallery."
        ) from None
    except sa.exc.IntegrityError:
        raise UsageError(
            "The gallery has references of this export already, under other names. Import it into an empty gallery."
        ) from None


def _reference(entry: ExportedReference, loaded: Loaded, originals: Originals) -> NewReference:
    numbers = _bytes(entry, entry.embedding)
    embedding_D = np.frombuffer(numbers, dtype="<f4") if len(numbers) % 4 == 0 else np.empty(0, dtype=np.float32)
    if len(embedding_D) != loaded.embedding_dim or not abs(float(np.linalg.norm(embedding_D)) - 1) < 1e-3:
        raise UsageError(
            f"The embedding of reference {entry.reference_id} is not a unit vector of {loaded.embedding_dim} numbers."
        )
    original_id = None
    if entry.image is not None and originals.keeps:
        image = _bytes(entry, entry.image)
        if hashlib.sha256(image).hexdigest() != entry.image_sha256:
            raise UsageError(
                f"The image of reference {entry.reference_id} is not the one that was enrolled: it was altered."
            )
        original_id = originals.keep(image)
    return NewReference(
        entry.filename, entry.image_sha256, embedding_D, original_id, entry.reference_id, entry.created_at
    )


def _bytes(entry: ExportedReference, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise UsageError(f"The reference {entry.reference_id} has an embedding or image that is not base64.") from None
