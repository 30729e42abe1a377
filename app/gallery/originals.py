"""The images that a gallery keeps: the bytes as they were uploaded, each under an id of its own.

Off by default: an embedding shows little of an image, the image shows all. The id says which kind of store holds the
image, and for which gallery: several galleries may share a bucket, and none deletes what may belong to another. An
image is on disk before the reference that names it is committed, and deleted after its reference is gone: `leftover`
lists what is still to be deleted, so that a crash in between loses nothing.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from app.database.tables import about, leftover, reference
from app.database.transactions import Database
from app.errors import StorageUnavailable
from app.gallery.stores import Bucket, Directory, Store

DIRECTORY = "originals"
# Images that are compared with the database, or deleted, at a time.
CHUNK = 1000


class Originals:
    """The kept images of a gallery. `keeps` says whether new ones are kept; older ones can be deleted in any case."""

    def __init__(self, data_dir: Path, keep_images: str, database: Database) -> None:
        with database.read() as connection:
            self._gallery_id = str(connection.scalar(sa.select(about.c.gallery_id)))
        self._database = database
        directory = Directory(data_dir / DIRECTORY)
        self._stores: dict[str, Store] = {directory.name: directory}
        self._new: Store | None = None
        self._suspects: set[str] = set()
        # Why the last image could not be kept; None if it was.
        self.trouble: StorageUnavailable | None = None
        if keep_images == "yes":
            self._new = directory
        elif keep_images != "no":
            self._new = Bucket(keep_images)
            self._stores[self._new.name] = self._new

    @property
    def keeps(self) -> bool:
        return self._new is not None

    def keep(self, data: bytes) -> str | None:
        """Keep an image: its id; None where images are not kept. Raises `StorageUnavailable`."""
        if self._new is None:
            return None
        original_id = self._new.new_id(self._gallery_id)
        try:
            self._new.put(original_id, data)
        except StorageUnavailable as problem:
            self.trouble = problem
            raise
        self.trouble = None
        return original_id

    def recover(self) -> None:
        """If the last image could not be kept, find out whether it works again. Raises `StorageUnavailable` if not."""
        if self.trouble is not None and self._new is not None:
            original_id = self.keep(b"")
            self._new.delete([original_id] if original_id else [])

    def get(self, original_id: str) -> bytes | None:
        """The bytes of an image; None if it is gone, or in a bucket that the settings don't name.

        Raises `StorageUnavailable` where the store can't be read.
        """
        store = self._stores.get(original_id.partition("-")[0])
        return store.get(original_id) if store else None

    def sweep(self) -> int:
        """Delete the images of deleted references; how many.

        Raises `StorageUnavailable` if some are in a store that the settings no longer name: these stay, the others
        are deleted.
        """
        swept = 0
        for store in self._stores.values():
            here = leftover.c.original_id.startswith(f"{store.name}-")
            while gone := self._left(here, CHUNK):
                store.delete(gone)
                swept += len(gone)
                self._database.execute(sa.delete(leftover).where(leftover.c.original_id.in_(gone)))
        # Asked for by store: in the meantime there may be new ones in the known stores.
        elsewhere = sa.and_(*(~leftover.c.original_id.startswith(f"{name}-") for name in self._stores))
        if self._left(elsewhere, 1):
            raise StorageUnavailable(
                "Images of deleted references are in a bucket that DIPTYCH_KEEP_IMAGES does not name. Set it to that "
                "bucket to have them deleted."
            )
        return swept

    def _left(self, which: sa.ColumnElement[bool], most: int) -> Sequence[str]:
        with self._database.read() as connection:
            return connection.scalars(sa.select(leftover.c.original_id).where(which).limit(most)).all()

    def sweep_orphans(self) -> int:
        """Delete images of this gallery that no reference names, now and at the last call; how many.

        An image without a reference may belong to an enrolment that is under way. If it still has none at the next
        call, its enrolment was interrupted. This needs no clock, since clocks jump.
        """
        suspects: set[str] = set()
        swept = 0
        for store in self._stores.values():
            ids = store.ids(self._gallery_id)
            while page := list(itertools.islice(ids, CHUNK)):
                named = sa.select(reference.c.original_id).where(reference.c.original_id.in_(page))
                with self._database.read() as connection:
                    orphans = set(page) - set(connection.scalars(named))
                store.delete(orphans & self._suspects)
                swept += len(orphans & self._suspects)
                suspects |= orphans - self._suspects
        self._suspects = suspects
        return swept
