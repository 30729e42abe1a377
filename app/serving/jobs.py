"""The jobs of housekeeping: what each does once. `housekeeping` says when, and what happens when one fails."""

import logging
import threading
from functools import partial

import sqlalchemy as sa

from app.database.sqlite import SQLite
from app.database.tables import change
from app.database.transactions import Database
from app.errors import DiptychError, GalleryDamaged, StorageUnavailable, Unavailable
from app.gallery import collections
from app.gallery.encoders import active_model, knows_model
from app.gallery.idempotency import expire_answers, has_expired_answers
from app.gallery.keys import read_keyring
from app.gallery.originals import Originals
from app.search.nearest import ByFaiss
from app.serving.housekeeping import Housekeeping, Job
from app.serving.live import LiveState
from app.serving.loaded import load_to_serve
from app.settings import Settings

log = logging.getLogger(__name__)

ORPHANS_EVERY_SECONDS = 3600.0
# How many changes an index may be behind before it is rebuilt; older ones are deleted, this many at a time.
CHANGES_KEPT, CHANGES_CHUNK = 500_000, 20_000
PAUSE_SECONDS = 0.01  # between two parts of a large deletion, so that other writers get their turn


class Jobs:
    """They keep `live` and the gallery in order. Each may be called again at any time."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        originals: Originals,
        live: LiveState,
        stopping: threading.Event,
    ) -> None:
        self._settings = settings
        self._database = database
        self._originals = originals
        self._live = live
        self._stopping = stopping

    def read_keys(self) -> None:
        """Notice keys that were made or revoked. Where they cannot be read, the known ones stay valid."""
        with self._database.read() as connection:
            self._live.keyring = read_keyring(connection)

    def retry_writing(self) -> None:
        """Where the last write failed, try another one."""
        if self._database.trouble is not None and not isinstance(self._database.trouble, GalleryDamaged):
            self._database.reconnect()
            self._database.execute(sa.text("UPDATE alembic_version SET version_num = version_num"))

    def follow_gallery(self) -> None:
        """Where the gallery was moved to another encoder, load that one and answer with it from now on.

        Raises `Unavailable` where its checkpoint cannot be loaded here.
        """
        live = self._live
        with self._database.read() as connection:
            active = active_model(connection)
            if active is None or active.model_id == live.checkpoint.model_id:
                live.owns_gallery, live.stranded = active is not None, None
                return
            # The gallery moved away from this encoder if it was seen to belong to it, or still has embeddings of it.
            moved = live.owns_gallery or knows_model(connection, live.checkpoint.model_id)
        if not moved:
            return
        try:
            found = load_to_serve(active.checkpoint, self._settings, self._database)
            if found.model_id != active.model_id:
                raise StorageUnavailable(f"{active.checkpoint} holds another model, {found.model_id}.")
        except (DiptychError, OSError) as problem:
            live.stranded = Unavailable(
                f"The gallery has moved to model {active.model_id} ({active.checkpoint}), which cannot be loaded here: "
                f"{problem} Start the service with DIPTYCH_CHECKPOINT set to that checkpoint."
            )
            raise live.stranded from None
        live.replace_checkpoint(found)
        log.info("the gallery has moved to model %s, which answers from now on", active.model_id)

    def prune_changes(self) -> None:
        """Delete entries of the log of changes that are too old for an index to catch up by."""
        if not isinstance(self._database, SQLite):
            return
        with self._database.read() as connection:
            first, last = connection.execute(
                sa.select(sa.func.min(change.c.sequence), sa.func.max(change.c.sequence))
            ).one()
        if last - first > CHANGES_KEPT + CHANGES_CHUNK:
            old = sa.delete(change).where(change.c.sequence < min(first + CHANGES_CHUNK, last - CHANGES_KEPT))
            self._database.execute(old)

    def purge_collections(self) -> None:
        """Delete what is left of large deleted collections, part by part."""
        with self._database.read() as connection:
            deleted = collections.has_deleted_collections(connection)
        while deleted and not self._stopping.wait(PAUSE_SECONDS):
            deleted = self._database.write(collections.purge_collections)

    def expire_answers(self) -> None:
        """Delete answers kept under an Idempotency-Key whose time is over."""
        with self._database.read() as connection:
            expired = has_expired_answers(connection)
        if expired:
            self._database.write(expire_answers)

    def check_file(self) -> bool | None:
        """Read the whole database file. Raises `GalleryDamaged`; once that is known, there is nothing left to do."""
        if not isinstance(self._database, SQLite) or isinstance(self._database.trouble, GalleryDamaged):
            return False
        self._database.check()
        return None

    def tend_index(self, *, closing: bool = False) -> bool | None:
        """Bring the index up to date and write its snapshot. False where the damaged gallery leaves nothing to do."""
        if isinstance(self._database.trouble, GalleryDamaged):
            return False
        current = self._live.checkpoint  # once: another may take its place meanwhile
        if isinstance(current.proposer, ByFaiss):
            with self._database.read() as connection:
                active = active_model(connection)
            if active is not None and active.model_id == current.model_id:
                current.proposer.index.tend(active.key, closing=closing)
        return None


def make_housekeeping(settings: Settings, database: Database, originals: Originals, live: LiveState) -> Housekeeping:
    """Every job, in threads of its own kind: a short job does not wait for a long one.

    A revoked key must not wait for anything; building or reading an index of a million references and purging take a
    minute; and a bucket may not answer.
    """
    stopping = threading.Event()
    jobs = Jobs(settings, database, originals, live, stopping)
    return Housekeeping(
        {
            "keys": [Job("keys", jobs.read_keys)],
            "short": [
                Job("database", jobs.retry_writing),
                Job("encoder", jobs.follow_gallery),
                Job("changes", jobs.prune_changes),
            ],
            "deletions": [
                Job("collections", jobs.purge_collections),
                Job("originals", originals.sweep),
                Job("answers", jobs.expire_answers),
            ],
            "images": [
                Job("keeping images", originals.recover),
                Job("orphans", originals.sweep_orphans, every_seconds=ORPHANS_EVERY_SECONDS),
            ],
            "long": [Job("index", jobs.tend_index), Job("check", jobs.check_file, once=True)],
        },
        at_end=Job("index", partial(jobs.tend_index, closing=True)),
        stopping=stopping,
    )
