"""What has to be done now and then while the service lives, in threads of its own."""

import logging
import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from app.database.sqlite import SQLite
from app.database.tables import change
from app.database.transactions import Database
from app.errors import DiptychError, GalleryDamaged, StorageUnavailable, Unavailable
from app.gallery.collections import has_deleted_collections, purge_collections
from app.gallery.encoders import active_model, knows_model
from app.gallery.idempotency import expire_answers, has_expired_answers
from app.gallery.keys import read_keyring
from app.gallery.originals import Originals
from app.search.nearest import ByFaiss
from app.serving import loaded as serving
from app.serving.loaded import Serving
from app.settings import Settings

log = logging.getLogger("uvicorn.error")

# A task that had nothing to do says False: that it failed before may still be so.
Tasks = dict[str, Callable[[], bool | None]]

TICK_SECONDS = 1.0
STOP_SECONDS = 3.0
ORPHANS_EVERY_SECONDS = 3600.0
# Changes that a cache may be behind before it has to start from the truth, and how many are deleted at a time.
CHANGES_KEPT, CHANGES_CHUNK = 500_000, 20_000


class Keeper:
    """Keeps caches warm, deletes what is left over, follows the gallery to another encoder, and notices recovery."""

    def __init__(self, settings: Settings, database: Database, originals: Originals, current: Serving) -> None:
        self.serving = current
        # Why this process can't answer, beyond what the database says itself.
        self.stranded: Unavailable | None = None
        # Whether the gallery has been this encoder's: if it moves to another, this process follows.
        self.followed = False
        with database.read() as connection:
            self.keyring = read_keyring(connection)
        self._settings = settings
        self._database = database
        self._originals = originals
        self._stop = threading.Event()
        # What is short does not wait for what is not, and a key that was revoked waits for nothing: building an index
        # of a million takes a minute, as do reading a file of it and purging; a bucket may not answer.
        self._threads = [
            threading.Thread(target=self._run, args=(tasks,), name=f"keeper-{name}", daemon=True)
            for name, tasks in (
                ("keys", {"keys": self._read_keys}),
                ("short", {"database": self._recover, "encoder": self._follow, "changes": self._prune}),
                ("deletions", {"collections": self._purge, "originals": self._sweep, "answers": self._expire}),
                ("images", {"keeping images": self._originals.recover, "orphans": self._sweep_orphans}),
                ("long", {"index": self._tend, "check": self._check}),
            )
        ]
        self._orphans_at = 0.0
        self._checked = False
        self._said: dict[str, str] = {}

    @property
    def failing(self) -> dict[str, bool]:
        """For each task that has run, whether it fails just now."""
        return {name: bool(said) for name, said in list(self._said.items())}

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop, and leave snapshots for the next start."""
        if self._threads[0].ident is None or self._stop.is_set():
            return
        self._stop.set()
        until = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0, until - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):  # else the next start builds the index
            self._quietly("index", lambda: self._tend(closing=True))

    def _run(self, tasks: Tasks) -> None:
        while not self._stop.is_set():
            for name, task in tasks.items():
                if not self._stop.is_set():
                    self._quietly(name, task)
            self._stop.wait(TICK_SECONDS)

    def _check(self) -> bool:
        """Once, read the whole file."""
        if self._checked or not isinstance(self._database, SQLite):
            return False
        try:
            self._database.check()
        except GalleryDamaged:
            self._checked = True
            raise
        self._checked = True
        return True

    def _quietly(self, name: str, task: Callable[[], bool | None]) -> None:
        """A task that fails is tried again; it is logged when what is wrong with it changes."""
        try:
            if task() is False:
                return
            said = ""
        except DiptychError as problem:
            said = f"{problem.code}: {problem.detail}"
        except Exception as problem:
            said = repr(problem)
            if self._said.get(name) != said:
                log.exception("housekeeping (%s) failed, and will be tried again", name)
        if said != self._said.get(name, ""):
            log.warning("housekeeping (%s): %s", name, said or "works again")
        self._said[name] = said

    def _recover(self) -> None:
        """Where writing failed, see whether it works again."""
        if self._database.trouble is not None and not isinstance(self._database.trouble, GalleryDamaged):
            self._database.reconnect()
            self._database.execute(sa.text("UPDATE alembic_version SET version_num = version_num"))

    def _follow(self) -> None:
        """If the gallery was moved to another encoder, load that one and answer with it from then on."""
        with self._database.read() as connection:
            active = active_model(connection)
            if active is None or active.model_id == self.serving.model_id:
                self.followed, self.stranded = active is not None, None
                return
            # The gallery moved away from this encoder if it was seen to be its, or has embeddings of it still.
            moved = self.followed or knows_model(connection, self.serving.model_id)
        if not moved:
            return
        try:
            found = serving.load(active.checkpoint, self._settings, self._database)
            if found.model_id != active.model_id:
                raise StorageUnavailable(f"{active.checkpoint} holds another model, {found.model_id}.")
        except (DiptychError, OSError) as problem:
            self.stranded = Unavailable(
                f"The gallery has moved to model {active.model_id} ({active.checkpoint}), which can't be loaded here: "
                f"{problem} Start with DIPTYCH_CHECKPOINT set to it."
            )
            raise self.stranded from None
        found.encoder.warm_up()
        self.serving, self.stranded = found, None
        log.info("the gallery has moved to model %s; answering with it", active.model_id)

    def _read_keys(self) -> None:
        """What was made or revoked since; where they can't be read, those that were stay."""
        with self._database.read() as connection:
            self.keyring = read_keyring(connection)

    def _tend(self, *, closing: bool = False) -> bool | None:
        if isinstance(self._database.trouble, GalleryDamaged):
            return False
        current = self.serving  # once: another may take its place meanwhile
        if isinstance(current.proposer, ByFaiss):
            with self._database.read() as connection:
                active = active_model(connection)
            if active is not None and active.model_id == current.model_id:
                current.proposer.index.tend(active.key, closing=closing)
        return None

    def _purge(self) -> None:
        with self._database.read() as connection:
            deleted = has_deleted_collections(connection)
        while deleted and not self._stop.wait(0.01):  # let others have their turn
            deleted = self._database.write(purge_collections)

    def _sweep(self) -> None:
        self._originals.sweep()

    def _expire(self) -> None:
        """Delete stored answers whose time is over."""
        with self._database.read() as connection:
            expired = has_expired_answers(connection)
        if expired:
            self._database.write(expire_answers)

    def _sweep_orphans(self) -> bool:
        if time.monotonic() < self._orphans_at:
            return False
        self._orphans_at = time.monotonic() + ORPHANS_EVERY_SECONDS
        self._originals.sweep_orphans()
        return True

    def _prune(self) -> None:
        if not isinstance(self._database, SQLite):
            return
        with self._database.read() as connection:
            first, last = connection.execute(
                sa.select(sa.func.min(change.c.sequence), sa.func.max(change.c.sequence))
            ).one()
        if last - first > CHANGES_KEPT + CHANGES_CHUNK:
            old = sa.delete(change).where(change.c.sequence < min(first + CHANGES_CHUNK, last - CHANGES_KEPT))
            self._database.execute(old)
