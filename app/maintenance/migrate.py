"""`diptych migrate`: the gallery to another encoder, while the old one answers.

The new embeddings are stored beside the old ones. When there is one for every reference, one transaction switches, and
services load the new encoder. After an interruption, the same command goes on. The old embeddings stay, so that going
back, with the same command and the old checkpoint, is quick.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from app.arrays import EmbeddingsF32
from app.checkpoint.bulk import decode_all, embed_all
from app.checkpoint.encoder import Encoder
from app.database.tables import LIVE, collection, embedding, identity, model, reference
from app.database.transactions import Database
from app.errors import MigrationBlocked, UsageError
from app.gallery.encoders import Loaded, activate_model, active_model, has_embeddings, lock_models, register_model
from app.gallery.enrolment import add_embeddings
from app.gallery.originals import Originals
from app.gallery.references import find_known_references
from app.image.policy import SERVED_FORMATS
from app.progress import progress_bar, track

AT_ONCE = 512
# At most this many are embedded inside the transaction that switches, since enrolments wait for it.
LAST = 16
SHOWN = 10
FORGOTTEN_AT_ONCE = 20_000


@dataclass(frozen=True)
class Missing:
    """A reference without an embedding of the new encoder."""

    key: int
    reference_id: str
    original_id: str | None
    image_sha256: str
    where: str


class Migration:
    """Moves one gallery to one encoder. Images are the kept ones, or those in `folder` with the same sha256."""

    def __init__(
        self,
        database: Database,
        originals: Originals,
        encoder: Encoder,
        loaded: Loaded,
        folder: Path | None,
        formats: tuple[str, ...] = SERVED_FORMATS,
    ) -> None:
        self._database = database
        self._originals = originals
        self._encoder = encoder
        self._loaded = loaded
        self._formats = formats
        self._folder = _by_hash(folder) if folder is not None else {}

    def run(self, *, progress: bool) -> int:
        """Embed what is missing, then switch; how many were embedded.

        Raises `MigrationBlocked`, without switching, where images can't be found or used; it names their references.
        Raises `UsageError` where there is nothing to migrate.
        """
        with self._database.read() as connection:
            active = active_model(connection)
            if active is None or not has_embeddings(connection, active.key):
                raise UsageError("Nothing is enrolled, so there is nothing to migrate. Serve the new checkpoint.")
            if active.model_id == self._loaded.model_id:
                raise UsageError(f"The gallery already belongs to model {active.model_id}.")
        key = self._database.write(lambda connection: register_model(connection, self._loaded))
        total, done = self._check(key), 0
        with progress_bar("embedding", "images", total, enabled=progress) as bar:
            while True:
                last = self._database.write(lambda connection: self._switch(connection, key))
                if last is not None:
                    bar.update(last)
                    return done + last
                for page in self._pages(key):
                    embedded = self._embeddings(page)
                    self._database.write(lambda c, embedded=embedded: self._add(c, key, embedded))  # type: ignore[misc]
                    done += len(embedded)
                    bar.total = max(total, done)
                    bar.update(len(embedded))

    def _pages(self, key: int) -> Iterator[list[Missing]]:
        after = 0
        while True:
            with self._database.read() as connection:
                page = list(_missing(connection, key, after, AT_ONCE))
            if not page:
                return
            yield page
            after = page[-1].key

    @staticmethod
    def _add(connection: sa.Connection, key: int, embedded: Mapping[str, EmbeddingsF32]) -> None:
        """Raises `MigrationBlocked` where the new encoder was deleted in the meantime."""
        if (
            connection.scalar(
                sa.select(model.c.key).where(model.c.key == key).with_for_update(read=True, key_share=True)
            )
            is None
        ):
            raise MigrationBlocked(
                "The embeddings of the new encoder were deleted in the meantime, by --forget-others. Start again."
            )
        add_embeddings(connection, key, embedded)

    def _switch(self, connection: sa.Connection, key: int) -> int | None:
        """Embed the last few and switch; how many were embedded. None if there are too many for one transaction."""
        lock_models(connection)
        last = list(_missing(connection, key, 0, LAST + 1))
        if len(last) > LAST:
            return None
        self._add(connection, key, self._embeddings(last))
        activate_model(connection, key)
        return len(last)

    def _check(self, key: int) -> int:
        """How many there are to embed. Raises `MigrationBlocked` if images can't be found, before any is embedded."""
        total, lost, named = 0, 0, []
        with self._database.read() as connection:
            for missing in _missing(connection, key):
                total += 1
                if missing.original_id is None and missing.image_sha256 not in self._folder:
                    lost += 1
                    named += [missing] if lost <= SHOWN else []
        if lost:
            raise MigrationBlocked(
                f"{lost:,} of {total:,} references have no kept image to embed again: {_named(named, lost)}. Give a "
                "folder with the original files with --images DIR (names do not matter, bytes do), or delete these "
                "references and enroll their images again after the migration."
            )

        return total

    def _embeddings(self, page: Sequence[Missing]) -> dict[str, EmbeddingsF32]:
        images = ((missing, self._reader(missing)) for missing in page)
        decoded = decode_all(images, self._encoder.preprocessing, formats=self._formats)
        items = list(embed_all(self._encoder, decoded))
        bad = [item for item in items if item.problem is not None or item.sha256 != item.key.image_sha256]
        if bad:
            with self._database.read() as connection:
                known = find_known_references(connection, [item.key.reference_id for item in bad])
            bad = [item for item in bad if item.key.reference_id in known]  # others were deleted in the meantime
        if bad:
            reasons = "; ".join(
                f"{item.key.where}: {item.problem.detail if item.problem else 'It is not the image that was enrolled.'}"
                for item in bad[:SHOWN]
            )
            raise MigrationBlocked(
                f"{len(bad):,} kept images can't be used: {reasons} Delete these references, "
                "and enroll other images if needed."
            )
        return {
            item.key.reference_id: item.embedding_D
            for item in items
            if item.embedding_D is not None and item.sha256 == item.key.image_sha256
        }

    def _reader(self, missing: Missing) -> Callable[[], bytes]:
        def read_image() -> bytes:
            kept = None if missing.original_id is None else self._originals.get(missing.original_id)
            if kept is not None:
                return kept
            if missing.image_sha256 in self._folder:
                return self._folder[missing.image_sha256].read_bytes()
            raise FileNotFoundError(2, "the kept image is missing")

        return read_image


def forget_other_models(database: Database) -> int:
    """Delete the embeddings of all encoders but the active one; how many."""

    def work(connection: sa.Connection) -> int:
        lock_models(connection)  # so that the active one stays the same
        others = sa.select(model.c.key).where(~model.c.active)
        keys = sa.select(embedding.c.key).where(embedding.c.model_key.in_(others)).limit(FORGOTTEN_AT_ONCE)
        deleted = connection.execute(sa.delete(embedding).where(embedding.c.key.in_(keys))).rowcount
        if not deleted:
            connection.execute(sa.delete(model).where(~model.c.active))
        return deleted

    total = 0
    while deleted := database.write(work):
        total += deleted
    return total


def _missing(connection: sa.Connection, model_key: int, after: int = 0, limit: int | None = None) -> Iterator[Missing]:
    has = sa.exists().where(embedding.c.reference_key == reference.c.key, embedding.c.model_key == model_key)
    rows = connection.execute(
        sa.select(
            reference.c.key,
            reference.c.reference_id,
            reference.c.original_id,
            reference.c.image_sha256,
            collection.c.name.label("collection"),
            identity.c.name,
        )
        .join(identity, identity.c.key == reference.c.identity_key)
        .join(collection, collection.c.key == reference.c.collection_key)
        .where(~has, LIVE, reference.c.key > after)
        .order_by(reference.c.key)
        .limit(limit)
        .execution_options(yield_per=1000)
    )
    for row in rows:
        where = f"{row.collection}/{row.name}/{row.reference_id}"
        yield Missing(row.key, row.reference_id, row.original_id, row.image_sha256, where)


def _by_hash(folder: Path) -> dict[str, Path]:
    files = {}
    for path in track(sorted(folder.rglob("*")), "hashing", "files"):
        if path.is_file():
            with path.open("rb") as file:
                files[hashlib.file_digest(file, "sha256").hexdigest()] = path
    return files


def _named(references: Sequence[Missing], total: int) -> str:
    more = f" and {total - len(references):,} more" if total > len(references) else ""
    return ", ".join(missing.where for missing in references) + more
