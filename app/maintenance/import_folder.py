"""`diptych import DIR`: a folder tree into the gallery. After an interruption, the same command continues."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from app.checkpoint.bulk import decode_all, embed_all
from app.checkpoint.encoder import Encoder
from app.database.tables import collection, identity, reference
from app.database.transactions import Database
from app.errors import InvalidName, UsageError
from app.gallery.encoders import Loaded
from app.gallery.enrolment import NewReference, enroll_identities
from app.gallery.names import check_name, printable_filename
from app.gallery.originals import Originals
from app.image.policy import SERVED_FORMATS
from app.progress import progress_bar

# Images that are committed together: an interruption loses at most this many embeddings.
AT_ONCE = 512
SHOWN = 10


@dataclass
class Imported:
    """What became of the files."""

    enrolled: int = 0
    held: int = 0
    # Enrolled before without their image, which is kept from now on.
    now_kept: int = 0
    refused: list[str] = field(default_factory=list)
    # The gallery keeps other images, and did not keep these.
    not_kept: bool = False


def import_folder(
    root: Path,
    collection_name: str,
    database: Database,
    originals: Originals,
    encoder: Encoder,
    loaded: Loaded,
    *,
    progress: bool,
    formats: tuple[str, ...] = SERVED_FORMATS,
) -> Imported:
    """Enroll every image below `root`; a folder is an identity, named by its path with `:` between the parts.

    What is enrolled already is skipped. Raises `UsageError` for a folder whose path can't be the name of an identity,
    and where no folder below `root` holds a file.
    """
    files = list(_files(root))
    if not files:
        raise UsageError(
            f"{root} has no folders with files in them. Each folder of images is one identity: give their parent."
        )
    done = Imported()
    names = [name for name, _ in files]
    held = _held(database, collection_name, names)
    decoded = decode_all(
        (((name, path), path.read_bytes) for name, path in files),
        encoder.preprocessing,
        # An image that is enrolled but not kept comes again where images are kept now.
        skip=lambda key, sha256: (
            held.get((key[0], sha256), False) or (not originals.keeps and (key[0], sha256) in held)
        ),
        keep=originals.keep,
        formats=formats,
    )
    items = embed_all(encoder, decoded)
    with progress_bar("importing", "images", len(files), enabled=progress) as bar:
        while batch := list(itertools.islice(items, AT_ONCE)):
            by_identity: dict[str, list[NewReference]] = {}
            for item in batch:
                name, path = item.key
                if item.problem is not None:
                    done.refused.append(f"{printable(path.relative_to(root))}: {item.problem.detail}")
                elif item.embedding_D is None:
                    done.held += 1
                else:
                    new = NewReference(printable_filename(path.name), item.sha256, item.embedding_D, item.original_id)
                    by_identity.setdefault(name, []).append(new)
                    if (name, item.sha256) in held:
                        done.now_kept += 1
                    else:
                        done.enrolled += 1
            if by_identity:
                database.write(lambda c, new=by_identity: enroll_identities(c, collection_name, new, loaded))  # type: ignore[misc]
            bar.update(len(batch))
    with database.read() as connection:
        kept = connection.scalar(sa.select(reference.c.key).where(reference.c.original_id.is_not(None)).limit(1))
    done.not_kept = bool(done.enrolled and kept is not None and not originals.keeps)
    return done


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """Each file with the name of its identity, by path. Hidden files and folders are skipped."""
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if len(parts) < 2 or any(part.startswith(".") for part in parts) or not path.is_file():
            continue
        try:
            yield check_name(":".join(parts[:-1])), path
        except InvalidName as problem:
            raise UsageError(
                f"The folder {printable(path.parent)} can't be an identity: {problem.detail} Rename it."
            ) from None


def printable(path: Path) -> str:
    """A path as text that can be printed, since file names may be any bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _held(database: Database, collection_name: str, names: list[str]) -> dict[tuple[str, str], bool]:
    """By the name of its identity and its sha256: each image that is enrolled, and whether it is kept."""
    query = (
        sa.select(identity.c.name, reference.c.image_sha256, reference.c.original_id.is_not(None).label("is_kept"))
        .join(reference, reference.c.identity_key == identity.c.key)
        .join(collection, collection.c.key == identity.c.collection_key)
        .where(collection.c.name == collection_name)
    )
    wanted = set(names)
    with database.read() as connection:
        rows = connection.execute(query)
        return {(row.name, row.image_sha256): bool(row.is_kept) for row in rows if row.name in wanted}
