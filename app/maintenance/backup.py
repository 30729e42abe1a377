"""`diptych backup` and `diptych restore`: a gallery in SQLite, copied while it is in use.

A backup is a directory: the database as it was at one moment, the images kept in the data directory, and a manifest
with their number and a hash of the database.
"""

import hashlib
import os
import secrets
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pysqlite3
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, ValidationError

from app.database.sqlite import RESTORING, SQLite, database_exists, lock_gallery
from app.database.tables import api_key, embedding, model, reference
from app.errors import UsageError
from app.files import sync
from app.gallery.collections import purge_collections
from app.gallery.originals import DIRECTORY
from app.gallery.stores import Directory
from app.progress import track

MANIFEST, DATABASE = "backup.json", "diptych.db"


class Manifest(BaseModel):
    """The description of a backup, in `backup.json`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["diptych-backup"] = "diptych-backup"
    version: Literal[1] = 1
    created_at: str
    sha256: str
    references: int
    images: int
    images_elsewhere: int
    model_id: str | None


def back_up(database: SQLite, data_dir: Path, to: Path, *, progress: bool) -> Manifest:
    """Write a backup to the new directory `to`. The service may enroll and delete in the meantime.

    It is checked before it gets its name. Raises `UsageError` where `to` exists, `GalleryDamaged` where the gallery is
    damaged, and `OSError` where `to` can't be written.
    """
    if to.exists():
        raise UsageError(f"{to} exists. Give a new directory, for example one named after the date.")
    while database.write(purge_collections):  # what was deleted must not be in a backup
        time.sleep(0.01)  # let others write
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        database.copy_to(partial / DATABASE)
        manifest = _complete(partial, Directory(data_dir / DIRECTORY), progress=progress)
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        _sync_tree(partial)
        partial.rename(to)
        sync(to.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def _complete(partial: Path, kept: Directory, *, progress: bool) -> Manifest:
    """Check the copied database, and copy the images that its references name."""
    copy = SQLite(partial / DATABASE)
    try:
        copy.check()
        images, missing, elsewhere = 0, [], 0
        with copy.read() as connection:
            references = connection.scalar(sa.select(sa.func.count()).select_from(reference)) or 0
            active = connection.scalar(sa.select(model.c.model_id).where(model.c.active))
            stored = connection.scalars(sa.select(embedding.c.vector).execution_options(yield_per=10_000))
            sum(1 for _ in stored)  # reading an embedding checks it
            named = connection.scalars(sa.select(reference.c.original_id).where(reference.c.original_id.is_not(None)))
            for original_id in track(named, "copying", "images", enabled=progress):
                if not original_id.startswith(kept.name + "-"):
                    elsewhere += 1
                elif _copied(kept.path(original_id), Directory(partial / DIRECTORY).path(original_id)):
                    images += 1
                else:
                    missing.append(original_id)
        for original_id in missing:  # deleted with its reference while the images were copied
            copy.execute(sa.update(reference).where(reference.c.original_id == original_id).values(original_id=None))
        with copy.read() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        copy.close()
    for log_file in partial.glob(f"{DATABASE}-*"):
        log_file.unlink()
    (partial / f"{DATABASE}.lock").unlink(missing_ok=True)
    return Manifest(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        sha256=_sha256(partial / DATABASE),
        references=references,
        images=images,
        images_elsewhere=elsewhere,
        model_id=active,
    )


def restore(backup: Path, to: Path, *, replace: bool, progress: bool) -> Manifest:
    """Replace the gallery in the data directory `to`, which no process may have open, by a backup.

    The gallery that was there is moved aside, never deleted. Raises `UsageError` for a backup that is not whole or a
    gallery that exists without `replace`, and `GalleryInUse` where a process has it open.
    """
    manifest = _manifest(backup)
    database = to / DATABASE
    if database_exists(database) and not replace:
        raise UsageError(f"{database} exists. Add --replace to move it aside and restore the backup in its place.")
    to.mkdir(parents=True, exist_ok=True)
    lock = lock_gallery(database, exclusively=True)
    incoming = to / RESTORING
    try:
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        shutil.copyfile(backup / DATABASE, incoming / DATABASE)
        if (backup / DIRECTORY).is_dir():
            files = [path for path in (backup / DIRECTORY).rglob("*") if path.is_file()]
            for path in track(files, "copying", "images", enabled=progress):
                _copied(path, incoming / path.relative_to(backup))
        _new_gallery_id(incoming / DATABASE)
        _migrate(incoming / DATABASE)
        _carry_keys(database, incoming / DATABASE)
        _sync_tree(incoming)
        _move_aside(to)
        # The database last: until then, SQLite refuses to open the gallery, instead of creating an empty one.
        for name in (DIRECTORY, DATABASE):
            if (incoming / name).exists():
                (incoming / name).rename(to / name)
        sync(to)
        incoming.rmdir()
    finally:
        if lock is not None:
            lock.close()
    return manifest


def _new_gallery_id(incoming: Path) -> None:
    """Give a restored gallery an id of its own, so that it does not delete images that were kept after the backup."""
    connection = pysqlite3.connect(incoming)
    try:
        connection.execute("UPDATE about SET gallery_id = ?", (secrets.token_hex(8),))
        connection.commit()
    finally:
        connection.close()


def _migrate(incoming: Path) -> None:
    """Bring a restored gallery up to date before it gets the keys of another: their scopes are up to date already."""
    database = SQLite(incoming)
    try:
        database.migrate()
    finally:
        database.close()
        incoming.with_name(f"{incoming.name}.lock").unlink(missing_ok=True)


def _carry_keys(replaced: Path, incoming: Path) -> None:
    """Keep the API keys of the gallery that is replaced, instead of those of the backup: a restore must not make a
    revoked key valid. Where there is no such gallery, or it can't be read, the keys of the backup are valid.
    """
    if not replaced.exists():
        return
    source = pysqlite3.connect(replaced)
    target = pysqlite3.connect(incoming)
    try:
        columns = ", ".join(column.name for column in api_key.columns)
        rows = source.execute(f"SELECT {columns} FROM api_key").fetchall()  # noqa: S608  our own names
        target.execute("DELETE FROM api_key")
        target.executemany(f"INSERT INTO api_key ({columns}) VALUES ({', '.join('?' * len(api_key.columns))})", rows)  # noqa: S608
        target.commit()
    except pysqlite3.Error:
        target.rollback()
    finally:
        source.close()
        target.close()


def _move_aside(data_dir: Path) -> None:
    aside = data_dir / f"replaced-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    # The database before its log: if interrupted, there is no gallery, instead of one without its last commits.
    for path in [*sorted(data_dir.glob(f"{DATABASE}*")), data_dir / DIRECTORY, data_dir / "index"]:
        if path.exists() and not path.name.endswith(".lock"):
            aside.mkdir(exist_ok=True)
            path.rename(aside / path.name)


def _manifest(backup: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json((backup / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"{backup} is not a backup: it has no {MANIFEST}. Give a directory that diptych backup wrote."
        ) from None
    except ValidationError:
        raise UsageError(f"{backup / MANIFEST} is damaged, or was written by a newer version of Diptych.") from None
    if not (backup / DATABASE).is_file() or _sha256(backup / DATABASE) != manifest.sha256:
        raise UsageError(f"{backup / DATABASE} is missing or altered (its sha256 differs). Use another backup.")
    images = sum(1 for path in (backup / DIRECTORY).rglob("*") if path.is_file())
    if images != manifest.images:
        raise UsageError(f"{backup} has {images:,} images, but {manifest.images:,} were backed up. Use another backup.")
    return manifest


def _copied(source: Path, target: Path) -> bool:
    """Copy an image; False where there is none. Images never change, so on one file system a link is enough."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        try:
            os.link(source, target)
        except FileNotFoundError:
            return False
        except OSError:
            shutil.copy2(source, target)
    except FileNotFoundError:
        return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_tree(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        sync(path)
