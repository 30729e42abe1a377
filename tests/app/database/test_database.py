"""The database: its promises to the disk, its migrations, its triggers."""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.database.postgres import PostgreSQL
from app.database.sqlite import SQLite
from app.database.tables import change, embedding, leftover, reference, tables
from app.database.transactions import REVISIONS, SCHEMA, Database
from app.errors import GalleryDamaged, ModelMismatch, StorageUnavailable, UsageError
from app.gallery.collections import (
    collection_key,
    count_searched,
    delete_collection,
    list_collections,
    purge_collections,
)
from app.gallery.encoders import Loaded, active_model, find_model_key, model, register_model
from app.gallery.enrolment import NewReference, add_embeddings, enroll_identities, enroll_images
from app.gallery.identities import delete_identity, get_identity, list_identities
from app.gallery.references import delete_reference, references_by_collection, references_of
from app.maintenance import migrate

EARLIER = Path(__file__).parents[2] / "data" / "galleries"
LOADED = Loaded("model", 4, "")


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SQLite]:
    database = SQLite(tmp_path / "db")
    database.migrate()
    yield database
    database.close()


def vector(seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=4).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


def enroll(database: Database, identity: str, count: int) -> None:
    images = [NewReference(f"{n}", f"{identity}{n}", vector(n)) for n in range(count)]
    database.write(lambda connection: enroll_images(connection, "c", identity, {}, images, LOADED))


def test_commits_are_synced_to_a_write_ahead_log_by_an_sqlite_without_the_reset_bug(sqlite: SQLite) -> None:
    """WAL, synchronous FULL (2), foreign keys, and a version from 3.51.3 on."""
    with sqlite.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        version = connection.exec_driver_sql("SELECT sqlite_version()").scalar()
    assert tuple(map(int, version.split("."))) >= (3, 51, 3)


def test_migrations_make_the_tables_that_the_code_uses(database: Database) -> None:
    """Alembic finds nothing to add, and the newest revision is the one that the code expects."""
    ours = {"identity_by_metadata", "change"}  # an index of PostgreSQL's alone, a table of SQLite's
    with database.read() as connection:
        context = MigrationContext.configure(connection)
        found = [one for one in compare_metadata(context, tables) if getattr(one[-1], "name", "") not in ours]
    assert found == []
    config = Config()
    config.set_main_option("script_location", "app.database:migrations")
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA


@pytest.mark.parametrize("schema", REVISIONS[:-1])
def test_a_gallery_of_an_earlier_schema_is_brought_up_with_all_that_is_in_it(tmp_path: Path, schema: str) -> None:
    """A file that that version wrote: three identities, five references, one of them without any."""
    shutil.copy(EARLIER / f"schema_{schema}.db", tmp_path / "db")
    database = SQLite(tmp_path / "db")
    database.migrate()
    database.close()
    with database.read() as connection:
        active = active_model(connection)
        assert active is not None and active.embedding_dim == 4
        stored = references_of(connection, "c", "a", Loaded(active.model_id, 4, ""))
        assert count_searched(connection, collection_key(connection, "c")) == (2, 5)
        identities, _ = list_identities(connection, "c", 10, None)
    np.testing.assert_array_equal(stored.embeddings_RD, np.stack([vector(n) for n in range(3)]))
    assert [(one["identity"], one["references"]) for one in identities] == [("a", 3), ("b", 2), ("empty", 0)]
    assert identities[0]["metadata"] == {"schön": [1, None]}


def test_migrating_twice_changes_nothing(database: Database) -> None:
    """Every start migrates."""
    enroll(database, "a", 2)
    database.migrate()
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(reference)) == 2


def test_a_gallery_of_a_newer_diptych_is_refused(database: Database) -> None:
    """Rather than guessed at."""
    database.write(lambda connection: connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(UsageError, match="schema '9999'"):
        database.migrate()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """In words, not with a traceback."""
    (tmp_path / "db").write_bytes(b"something else entirely" * 1000)
    database = SQLite(tmp_path / "db")
    with pytest.raises(UsageError, match=r"damaged .* The database is "):
        database.migrate()
    database.close()


def test_every_embedding_that_comes_or_goes_leaves_a_change(sqlite: SQLite) -> None:
    """Also where it goes with its identity or its collection."""

    def changes() -> int:
        with sqlite.read() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(change)) or 0) - 1

    enroll(sqlite, "a", 2)
    enroll(sqlite, "b", 3)
    assert changes() == 5
    sqlite.write(lambda connection: delete_identity(connection, "c", "a"))
    assert changes() == 7
    sqlite.write(lambda connection: delete_collection(connection, "c"))
    assert changes() == 10


def test_deleting_leaves_no_embedding(database: Database) -> None:
    """Of a reference, an identity, a collection: the vectors go with it, and the counts are right after each."""

    def left() -> tuple[int, tuple[int, int]]:
        with database.read() as connection:
            rows = connection.scalar(sa.select(sa.func.count()).select_from(embedding)) or 0
            return rows, count_searched(connection, collection_key(connection, "c"))

    for identity in ("a", "b", "c"):
        enroll(database, identity, 2)
    enroll(database, "a", 3)  # two of them it has
    assert left() == (7, (3, 7))
    with database.read() as connection:
        ids = [one["reference_id"] for one in get_identity(connection, "c", "b")["references"]]
    for left_after, reference_id in zip(((6, (3, 6)), (5, (2, 5))), ids, strict=True):
        database.write(lambda c, this=reference_id: delete_reference(c, "c", "b", this))
        assert left() == left_after
    database.write(lambda connection: delete_identity(connection, "c", "b"))
    assert left() == (5, (2, 5))
    database.write(lambda connection: delete_identity(connection, "c", "a"))
    assert left() == (2, (1, 2))
    database.write(lambda connection: delete_collection(connection, "c"))
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(embedding)) == 0
        assert connection.scalar(sa.select(sa.func.count()).select_from(reference)) == 0


def test_a_large_collection_is_gone_at_once_and_purged_bit_by_bit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that nobody waits for a million rows; its name is free, and its kept images are deleted too."""
    monkeypatch.setattr("app.gallery.collections.PURGED_AT_ONCE", 20)
    images = {f"i{n}": [NewReference("x", f"{m}", vector(n), f"file-{n}-{m}") for m in range(9)] for n in range(7)}
    database.write(lambda connection: enroll_identities(connection, "c", images, LOADED))
    database.write(lambda connection: delete_collection(connection, "c"))
    with database.read() as connection:
        assert list_collections(connection) == []
        assert list(references_by_collection(connection, LOADED)) == []
    enroll(database, "new", 2)
    turns = 0
    while database.write(purge_collections):
        turns += 1
    assert turns > 4
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(embedding)) == 2
        assert connection.scalar(sa.select(sa.func.count()).select_from(leftover)) == 63
        assert [entry["references"] for entry in list_collections(connection)] == [2]


def test_first_enrolments_at_once_agree_on_the_encoder(database: Database) -> None:
    """Eight writers meet an empty gallery; one collection, one model, nothing lost."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: enroll(database, f"i{n}", 2), range(8)))
    with database.read() as connection:
        assert count_searched(connection, collection_key(connection, "c")) == (8, 16)
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.tables["model"])) == 1


def test_many_enrolled_at_once_are_as_if_enrolled_one_by_one(database: Database) -> None:
    """Also where some are known, and an image comes twice."""
    enroll(database, "a", 1)
    images = {
        "a": [NewReference("x", f"a{n}", vector(n)) for n in (0, 1, 1)],
        "b": [NewReference("x", "b0", vector(5))],
        "none": [],
    }
    entries = database.write(lambda connection: enroll_identities(connection, "c", images, LOADED))
    assert len(entries) == 4 and entries[1]["reference_id"] == entries[2]["reference_id"]
    with database.read() as connection:
        identities, _ = list_identities(connection, "c", 10, None)
        assert [(one["identity"], one["references"]) for one in identities] == [("a", 2), ("b", 1), ("none", 0)]
        assert count_searched(connection, collection_key(connection, "c")) == (2, 3)
        stored = references_of(connection, "c", "a", LOADED)
    np.testing.assert_array_equal(stored.embeddings_RD, np.stack([vector(0), vector(1)]))


def test_a_transaction_that_collided_with_others_is_tried_again(postgres: Callable[[], str]) -> None:
    """On PostgreSQL, with the state that its kin use for that too; what is no collision is not."""
    database = PostgreSQL(postgres())
    database.migrate()
    tried: list[str] = []

    def work(connection: sa.Connection, state: str) -> None:
        tried.append(state)
        enroll_images(connection, "c", f"{state}{len(tried)}", {}, [], LOADED)
        if len(tried) < 3:
            connection.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$")

    database.write(lambda connection: work(connection, "40001"))
    assert tried == ["40001"] * 3
    tried.clear()
    with pytest.raises(StorageUnavailable):
        database.write(lambda connection: work(connection, "53100"))  # the disk is full
    assert tried == ["53100"]
    with database.read() as connection:
        identities, _ = list_identities(connection, "c", 10, None)
    assert [one["identity"] for one in identities] == ["400013"]
    database.close()


def test_an_encoder_that_the_gallery_knows_otherwise_is_refused(database: Database) -> None:
    """A file may have been imported that lies about how many numbers its embeddings have."""
    enroll(database, "a", 1)
    liar = Loaded(LOADED.model_id, 5, "")
    image = NewReference("f", "x", np.eye(5, dtype=np.float32)[0])
    with pytest.raises(ModelMismatch, match="was wrong"):
        database.write(lambda c: enroll_images(c, "c", "b", {}, [image], liar))
    with pytest.raises(ModelMismatch), database.read() as connection:
        find_model_key(connection, liar)


def test_encoders_that_were_left_are_forgotten_and_no_other(database: Database) -> None:
    """Their embeddings and their names; the one that answers stays as it is."""
    enroll(database, "a", 3)
    other = database.write(lambda c: register_model(c, Loaded("other", 5, "")))
    with database.read() as connection:
        ids = connection.scalars(sa.select(reference.c.reference_id)).all()
    new = {one: np.eye(5, dtype=np.float32)[0] for one in ids}
    database.write(lambda c: add_embeddings(c, other, new))
    assert (migrate.forget_other_models(database), migrate.forget_other_models(database)) == (3, 0)
    with database.read() as connection:
        assert len(references_of(connection, "c", "a", LOADED).reference_ids) == 3
        assert connection.scalars(sa.select(model.c.model_id)).all() == [LOADED.model_id]


def test_a_restore_that_was_interrupted_is_no_empty_gallery(tmp_path: Path) -> None:
    """The old database is aside, the new one not in place: a start says so."""
    (tmp_path / ".restoring").mkdir()
    with pytest.raises(UsageError, match="Run the same `diptych restore` command again"):
        SQLite(tmp_path / "db")


@pytest.mark.parametrize(
    "url",
    ["postgresql+psycopg://h:port/db", "postgresql+psycopg://u:secret@127.0.0.1:9/db", "postgresql+psycopg://?x=1"],
)
def test_a_database_that_cannot_be_reached_is_named_without_its_password(url: str) -> None:
    """One line for whoever starts the service."""
    with pytest.raises(UsageError) as refused:
        PostgreSQL(url).migrate()
    assert "secret" not in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_database_that_one_may_not_write_to_is_named(postgres: Callable[[], str]) -> None:
    """A right that was forgotten is the operator's to mend, and no mistake of ours."""
    url = postgres()
    owner = PostgreSQL(url)
    owner.migrate()
    owner.write(lambda c: c.exec_driver_sql("DROP ROLE IF EXISTS guest"))
    owner.write(lambda c: c.exec_driver_sql("CREATE ROLE guest LOGIN"))
    guest = PostgreSQL(sa.make_url(url).set(username="guest").render_as_string(hide_password=False))
    with pytest.raises(UsageError, match="permission denied"):
        guest.migrate()
    for one in (owner, guest):
        one.close()


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    """All or nothing."""

    def fail_halfway(connection: sa.Connection) -> None:
        enroll_images(connection, "c", "a", {}, [], LOADED)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        database.write(fail_halfway)
    with database.read() as connection:
        assert list_collections(connection) == []


def test_a_write_that_the_file_system_refuses_is_a_named_error_until_one_succeeds(sqlite: SQLite) -> None:
    """Read-only, full, locked: 503, nothing changed, and it is remembered for `readyz`."""
    with sqlite.read() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(StorageUnavailable):
        enroll(sqlite, "a", 1)
    assert sqlite.trouble is not None
    with sqlite.read() as connection:
        connection.exec_driver_sql("PRAGMA query_only = OFF")
    enroll(sqlite, "a", 1)
    assert sqlite.trouble is None


def test_an_embedding_that_is_not_what_was_written_is_refused(sqlite: SQLite) -> None:
    """One bit of it turned over on the disk, where SQLite itself sees nothing wrong."""
    enroll(sqlite, "a", 1)
    with sqlite.read() as connection:
        stored = bytearray(connection.exec_driver_sql("SELECT vector FROM embedding").scalar())
    stored[5] ^= 1
    sqlite.write(lambda connection: connection.exec_driver_sql("UPDATE embedding SET vector = ?", (bytes(stored),)))
    with pytest.raises(GalleryDamaged), sqlite.read() as connection:
        references_of(connection, "c", "a", LOADED)
    assert isinstance(sqlite.trouble, GalleryDamaged)


def test_a_damaged_page_is_found_by_the_check(sqlite: SQLite) -> None:
    """A page in the middle of the file overwritten, as a failing disk does."""
    enroll(sqlite, "a", 200)
    sqlite.close()
    size = sqlite.path.stat().st_size
    with sqlite.path.open("r+b") as file:
        file.seek(size // 8192 * 4096)
        file.write(os.urandom(4096))
    again = SQLite(sqlite.path)
    with pytest.raises(GalleryDamaged, match="restore"):
        again.check()
    again.close()
