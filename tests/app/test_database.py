"""The database: its promises to the disk, its migrations, its triggers."""

from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from app import gallery
from app.database import SCHEMA, Database, change, reference, tables
from app.errors import StorageUnavailable, UsageError
from app.gallery import NewReference


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(tmp_path / "gallery.db")
    database.migrate()
    return database


def enroll(database: Database, identity: str, count: int) -> None:
    with database.write() as connection:
        images = [NewReference(f"{n}", f"{identity}{n}", np.zeros(4, dtype=np.float32)) for n in range(count)]
        gallery.enroll(connection, "c", identity, {}, images, "model")


def test_commits_are_synced_to_a_write_ahead_log_by_an_sqlite_without_the_reset_bug(database: Database) -> None:
    """WAL, synchronous FULL (2), foreign keys, and a version from 3.51.3 on."""
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        version = connection.exec_driver_sql("SELECT sqlite_version()").scalar()
    assert tuple(map(int, version.split("."))) >= (3, 51, 3)


def test_migrations_make_the_tables_that_the_code_uses(database: Database) -> None:
    """Alembic finds nothing to add, and the newest revision is the one that the code expects."""
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables) == []
    config = Config()
    config.set_main_option("script_location", "app:migrations")
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA


def test_migrating_twice_changes_nothing(database: Database) -> None:
    """Every start migrates."""
    enroll(database, "a", 2)
    database.migrate()
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(reference)) == 2


def test_a_gallery_of_a_newer_diptych_is_refused(database: Database) -> None:
    """Rather than guessed at."""
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UsageError, match="schema '9999'"):
        database.migrate()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """In words, not with a traceback."""
    (tmp_path / "gallery.db").write_bytes(b"something else entirely" * 1000)
    with pytest.raises(UsageError, match="can't be opened"):
        Database(tmp_path / "gallery.db").migrate()


def test_every_reference_that_comes_or_goes_leaves_a_change(database: Database) -> None:
    """Also where it goes with its identity or its collection."""

    def changes() -> int:
        with database.read() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(change)) or 0)

    enroll(database, "a", 2)
    enroll(database, "b", 3)
    assert changes() == 5
    with database.write() as connection:
        gallery.delete_identity(connection, "c", "a")
    assert changes() == 7
    with database.write() as connection:
        gallery.delete_collection(connection, "c")
    assert changes() == 10


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    """All or nothing."""

    def fail_halfway() -> None:
        with database.write() as connection:
            gallery.enroll(connection, "c", "a", {}, [], "model")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    with database.read() as connection:
        assert gallery.list_collections(connection) == []


def test_a_write_that_the_file_system_refuses_is_a_named_error(database: Database) -> None:
    """Read-only, full, locked: 503, and nothing changed."""
    with database.write() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(StorageUnavailable):
        enroll(database, "a", 1)
