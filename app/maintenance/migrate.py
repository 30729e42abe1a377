"""`diptych migrate`: the gallery to another encoder, while the old one answers.

The new embeddings grow beside the old ones; when all are there, one transaction makes the new encoder the gallery's,
and services load it. Interrupted, the same command goes on. The old embeddings stay, so the way back is the same
command with the old checkpoint, and short.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from app.arrays import EmbeddingsF32
from app.checkpoint.bulk import embed_all
from app.checkpoint.encoder import Encoder
from app.database.tables import LIVE, collection, embedding, identity, model, reference
from app.database.transactions import Database
from app.errors import MigrationBlocked, UsageError
from app.gallery import encoders as models
from app.gallery.encoders import Loaded
from app.gallery.originals import Originals
from app.gallery.references import add_embeddings, those_known
from app.image.policy import SERVED_FORMATS
from app.progress import progress_bar, track

AT_ONCE = 512
# So few may be embedded inside the transaction that switches: others wait for it.
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
    """Of one gallery to one encoder. Images come from those kept, or by their sha256 from `folder`."""

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

        Raises `MigrationBlocked` naming the references whose images are nowhere to be found or can't be used: nothing
        is switched then. Raises `UsageError` where there is nothing to migrate.
        """
        with self._database.read() as connection:
            active = models.active(connection)
            if active is None or not models.has_embeddings(connection, active.key):
                raise UsageError("Nothing is enrolled, so there is nothing to migrate: serve the checkpoint.")
            if active.model_id == self._loaded.model_id:
                raise UsageError(f"The gallery belongs to model {active.model_id} already.")
        key = self._database.write(lambda connection: models.register(connection, self._loaded))
        total, done = self._check(key), 0
        with progress_bar("embedding", "images", total, enabled=progress) as bar:
            while True:
                last = self._database.write(lambda connection: self._switch(connection, key))
                if last is not None:
                    bar.update(last)
                    return done + last
                for some in self._pages(key):
                    found = self._embeddings(some)
                    self._database.write(lambda c, found=found: self._add(c, key, found))  # type: ignore[misc]
                    done += len(found)
                    bar.total = max(total, done)
                    bar.update(len(found))

    def _pages(self, key: int) -> Iterator[list[Missing]]:
        after = 0
        while True:
            with self._database.read() as connection:
                some = list(_missing(connection, key, after, AT_ONCE))
            if not some:
                return
            yield some
            after = some[-1].key

    @staticmethod
    def _add(connection: sa.Connection, key: int, found: Mapping[str, EmbeddingsF32]) -> None:
        """Raises `MigrationBlocked` where somebody deleted them all meanwhile."""
        if (
            connection.scalar(
                sa.select(model.c.key).where(model.c.key == key).with_for_update(read=True, key_share=True)
            )
            is None
        ):
            raise MigrationBlocked(
                "The embeddings of the new encoder were deleted meanwhile (--forget-others). Start again."
            )
        add_embeddings(connection, key, found)

    def _switch(self, connection: sa.Connection, key: int) -> int | None:
        """How many were embedded just before; None if that would take too long."""
        models.lock(connection)
        last = list(_missing(connection, key, 0, LAST + 1))
        if len(last) > LAST:
            return None
        self._add(connection, key, self._embeddings(last))
        models.activate(connection, key)
        return len(last)

    def _check(self, key: int) -> int:
        """How many there are to embed. Raises `MigrationBlocked` before anything is if images are nowhere."""
        total, lost, named = 0, 0, []
        with self._database.read() as connection:
            for one in _missing(connection, key):
                total += 1
                if one.original_id is None and one.image_sha256 not in self._folder:
                    lost += 1
                    named += [one] if lost <= SHOWN else []
        if lost:
            raise MigrationBlocked(
                f"{lost:,} of {total:,} references have no kept image, and an embedding can't be made from an "
                f"embedding: {_named(named, lost)}. Give a folder with the original files by --images DIR (they are "
                "known by their bytes), or enroll these anew and delete them."
            )

        return total

    def _embeddings(self, some: Sequence[Missing]) -> dict[str, EmbeddingsF32]:
        images = ((one, self._reader(one)) for one in some)
        items = list(embed_all(self._encoder, images, formats=self._formats))
        bad = [item for item in items if item.problem is not None or item.sha256 != item.key.image_sha256]
        if bad:
            with self._database.read() as connection:
                there = those_known(connection, [item.key.reference_id for item in bad])
            bad = [item for item in bad if item.key.reference_id in there]  # the others were deleted meanwhile
        if bad:
            reasons = "; ".join(
                f"{item.key.where}: {item.problem.detail if item.problem else 'It is not the image that was enrolled.'}"
                for item in bad[:SHOWN]
            )
            raise MigrationBlocked(
                f"{len(bad):,} kept images can't be used: {reasons} Delete these references, or enroll them anew."
            )
        return {
            item.key.reference_id: item.embedding_D
            for item in items
            if item.embedding_D is not None and item.sha256 == item.key.image_sha256
        }

    def _reader(self, one: Missing) -> Callable[[], bytes]:
        def read() -> bytes:
            kept = None if one.original_id is None else self._originals.get(one.original_id)
            if kept is not None:
                return kept
            if one.image_sha256 in self._folder:
                return self._folder[one.image_sha256].read_bytes()
            raise FileNotFoundError(2, "the kept image is gone")

        return read


def forget_others(database: Database) -> int:
    """Delete the embeddings of encoders that are not the gallery's; how many."""

    def work(connection: sa.Connection) -> int:
        models.lock(connection)  # else another one might become active between looking and deleting
        others = sa.select(model.c.key).where(~model.c.active)
        some = sa.select(embedding.c.key).where(embedding.c.model_key.in_(others)).limit(FORGOTTEN_AT_ONCE)
        deleted = connection.execute(sa.delete(embedding).where(embedding.c.key.in_(some))).rowcount
        if not deleted:
            connection.execute(sa.delete(model).where(~model.c.active))
        return deleted

    gone = 0
    while deleted := database.write(work):
        gone += deleted
    return gone


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
    found = {}
    for path in track(sorted(folder.rglob("*")), "hashing", "files"):
        if path.is_file():
            with path.open("rb") as file:
                found[hashlib.file_digest(file, "sha256").hexdigest()] = path
    return found


def _named(some: Sequence[Missing], of: int) -> str:
    more = f" and {of - len(some):,} more" if of > len(some) else ""
    return ", ".join(one.where for one in some) + more
