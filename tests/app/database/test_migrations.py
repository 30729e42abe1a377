"""Migrations that change what is stored, on both databases."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from app.database.sqlite import SQLite
from app.database.tables import api_key, idempotency
from app.database.transactions import Database
from app.errors import DeletedSince
from app.gallery.encoders import Loaded
from app.gallery.enrolment import NewReference, enroll_images
from app.gallery.idempotency import recall_answer
from app.gallery.identities import delete_identity
from app.gallery.keys import read_keyring
from tests.files import DATA

ANSWERED = {"live": "old name", "deleted": "b"}
SCOPES = {"everything": ["verify", "watch"], "writer": ["enroll", "watch"], "limited": ["verify"], "root": ["admin"]}


@pytest.fixture
def migrated(tmp_path: Path) -> SQLite:
    """A gallery of schema 0003, which has an answer about a renamed identity, and one about a deleted reference."""
    shutil.copy(DATA / "galleries" / "schema_0003.db", tmp_path / "db")
    database = SQLite(tmp_path / "db")
    database.migrate()
    return database


def test_stored_answers_survive_unless_what_they_name_was_deleted(migrated: SQLite) -> None:
    """The repetition of a request that was answered before the update gets the same answer after it."""
    requests = {key: hashlib.sha256(identity.encode()).hexdigest() for key, identity in ANSWERED.items()}
    with migrated.read() as connection:
        answer = recall_answer(connection, " live", requests["live"])
        assert answer is not None and len(answer["references"]) == 3
        with pytest.raises(DeletedSince):
            recall_answer(connection, " deleted", requests["deleted"])
        answers = {row[0]: row[1] for row in connection.execute(sa.select(idempotency.c.key, idempotency.c.answer))}
        assert answers[" deleted"] is None
    migrated.write(lambda c: delete_identity(c, "c", "a"))  # the new name of `old name`
    with migrated.read() as connection, pytest.raises(DeletedSince):
        recall_answer(connection, " live", requests["live"])
    migrated.close()


def test_keys_for_all_collections_keep_metrics_and_limited_ones_lose_them(migrated: SQLite) -> None:
    """`verify` and `enroll` no longer contain `watch`."""
    with migrated.read() as connection:
        scopes = {row[0]: row[1] for row in connection.execute(sa.select(api_key.c.name, api_key.c.scopes))}
        watching = {caller.name for _, caller in read_keyring(connection).by_id.values() if caller.may("watch")}
    assert scopes == SCOPES
    assert watching == {"everything", "writer", "root"}
    migrated.close()


def test_the_same_on_the_database_of_either_kind(database: Database) -> None:
    """Taken back to the tables of 0003, filled as it filled them, and brought up again."""
    image = NewReference("f", "x", np.eye(4, dtype=np.float32)[0])
    entry, *_ = database.write(lambda c: enroll_images(c, "c", "a", {}, [image], Loaded("model", 4, "")))
    answers = {
        "live": {"references": [{"reference_id": entry["reference_id"]}]},
        "gone": {"references": [{"reference_id": "gone"}]},
    }

    def go_back(connection: sa.Connection) -> None:
        connection.execute(sa.text("DROP TABLE idempotency"))
        connection.execute(sa.text("ALTER TABLE about DROP COLUMN secret"))
        connection.execute(
            sa.text(
                "CREATE TABLE idempotency (key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, answer JSON NOT NULL, "
                "created_at TEXT NOT NULL)"
            )
        )
        connection.execute(sa.text("CREATE INDEX ix_idempotency_created_at ON idempotency (created_at)"))
        for key, answer in answers.items():
            connection.execute(
                sa.text("INSERT INTO idempotency VALUES (:key, 'request', :answer, '2999-01-01T00:00:00+00:00')"),
                {"key": key, "answer": json.dumps(answer)},
            )
        for name, scopes, collections in (("all", ["verify"], None), ("some", ["verify"], ["c"])):
            connection.execute(
                sa.insert(api_key).values(
                    key_id=name, name=name, sha256="", scopes=scopes, collections=collections, created_at=""
                )
            )
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0003'"))

    database.write(go_back)
    database.migrate()
    with database.read() as connection:
        assert recall_answer(connection, "live", "request") == answers["live"]
        with pytest.raises(DeletedSince):
            recall_answer(connection, "gone", "request")
        scopes = {row[0]: row[1] for row in connection.execute(sa.select(api_key.c.name, api_key.c.scopes))}
    assert scopes == {"all": ["verify", "watch"], "some": ["verify"]}
