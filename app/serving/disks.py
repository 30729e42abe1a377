"""The disks of this machine that the gallery grows on, and how much room they have left."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from app.database.sqlite import SQLite
from app.database.transactions import Database
from app.errors import StorageUnavailable
from app.serving.readiness import Check, make_check
from app.settings import Settings

CONTENTS = {"gallery": "gallery's database", "images": "kept images"}


class Disks:
    """`places` is what is kept on this machine, and where."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._least = settings.min_free_bytes
        self.places: dict[str, Path] = {}
        if isinstance(database, SQLite):
            self.places["gallery"] = database.path.parent
        if settings.keep_images == "yes":
            self.places["images"] = settings.data_dir

    def free(self) -> Iterator[tuple[str, int]]:
        """Bytes left for each place; a place that cannot be examined is left out."""
        for place, folder in self.places.items():
            with suppress(StorageUnavailable):
                yield place, bytes_free(folder)

    def check(self) -> Iterator[Check]:
        yield make_check("disk", self._check)

    def _check(self) -> str:
        free = {place: bytes_free(folder) for place, folder in self.places.items()}
        for place, left in free.items():
            if left < self._least:
                raise StorageUnavailable(
                    f"The disk with the {CONTENTS[place]} has {_mib(left)} left, and {_mib(self._least)} are needed. "
                    "Free some space on it."
                )
        return "; ".join(f"{CONTENTS[place]}: {_mib(left)} left" for place, left in free.items()) or "not used"


def bytes_free(folder: Path) -> int:
    """Free bytes for an ordinary user. A folder that does not exist yet counts as its nearest parent that does.

    Raises `StorageUnavailable` where the disk cannot be examined.
    """
    existing = next((parent for parent in (folder, *folder.absolute().parents) if parent.exists()), folder)
    try:
        disk = os.statvfs(existing)
    except OSError as problem:
        raise StorageUnavailable(f"Cannot examine the disk of {folder}: {problem.strerror}.") from None
    return disk.f_bavail * disk.f_frsize


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
