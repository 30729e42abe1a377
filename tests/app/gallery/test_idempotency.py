"""Stored answers: a repetition gets the same one, and what was deleted leaves nothing of itself in them."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from app.database.tables import idempotency
from app.database.transactions import Database
from app.errors import DeletedSince, IdempotencyKeyReused
from app.gallery.collections import delete_collection
from app.gallery.encoders import Loaded
from app.gallery.enrolment import NewReference, enroll_images
from app.gallery.idempotency import expire_answers, has_expired_answers, recall_answer, remember_answer
from app.gallery.identities import change_identity, delete_identity, get_identity
from app.gallery.references import delete_reference

LOADED = Loaded("model", 4, "")
REQUEST = "the hash of a request"


def enroll(database: Database, identity: str, *, key: str, images: int = 2) -> None:
    """Into the collection `secret`, with an answer under this key."""
    new = [
        NewReference(f"{identity}{n}.png", f"{identity}{n}", np.eye(4, dtype=np.float32)[n % 4]) for n in range(images)
    ]

    def work(connection: sa.Connection) -> None:
        references = enroll_images(connection, "secret", identity, {}, new, LOADED)
        answer = {"collection": "secret", "identity": identity, "references": references, "rejected": []}
        remember_answer(connection, key, REQUEST, answer)

    database.write(work)


def recall(database: Database, key: str, request: str = REQUEST) -> object:
    with database.read() as connection:
        return recall_answer(connection, key, request)


def stored(database: Database) -> dict[str, sa.Row[tuple[object, ...]]]:
    with database.read() as connection:
        return {row.key: row for row in connection.execute(sa.select(idempotency))}


def first_reference(connection: sa.Connection, identity: str) -> str:
    return str(get_identity(connection, "secret", identity)["references"][0]["reference_id"])


DELETIONS: dict[str, Callable[[sa.Connection], None]] = {
    "reference": lambda c: delete_reference(c, "secret", "anna", first_reference(c, "anna")),
    "identity": lambda c: delete_identity(c, "secret", "anna"),
    "collection": lambda c: delete_collection(c, "secret"),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("what", DELETIONS)
def test_a_deletion_empties_the_answers_that_name_what_is_gone(
    database: Database, what: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key, keyed hash and time stay; names, ids and files do not, also where a large collection is yet to be purged."""
    if large:
        monkeypatch.setattr("app.gallery.collections.PURGED_AT_ONCE", 1)
    enroll(database, "anna", key="k1")
    enroll(database, "otto", key="k2")
    assert recall(database, "k1") is not None
    database.write(DELETIONS[what])
    with pytest.raises(DeletedSince):
        recall(database, "k1")
    row = stored(database)["k1"]
    assert (row.answer, row.identity_key, row.collection_key) == (None, None, None)
    assert row.created_at and len(row.fingerprint) == 64 and "anna" not in str(row)
    if what == "collection":
        with pytest.raises(DeletedSince):
            recall(database, "k2")
    else:
        assert recall(database, "k2") is not None


def test_a_deletion_finds_the_answer_under_any_name_that_the_identity_had(database: Database) -> None:
    """A new name leaves the old one in the answer, which was true when it was given; a deletion empties it."""
    enroll(database, "anna", key="k1")
    database.write(lambda c: change_identity(c, "secret", "anna", "berta", None))
    enroll(database, "anna", key="k2")  # another identity, of the old name
    assert json.dumps(recall(database, "k1")).count("anna") > 0
    database.write(lambda c: delete_identity(c, "secret", "berta"))
    with pytest.raises(DeletedSince):
        recall(database, "k1")
    assert recall(database, "k2") is not None


def test_one_deleted_reference_leaves_the_answers_about_the_others(database: Database) -> None:
    """They name nothing that is gone."""
    enroll(database, "anna", key="k1", images=1)
    enroll(database, "anna", key="k2", images=2)  # the same image again, and a second one
    second = database.write(lambda c: get_identity(c, "secret", "anna")["references"][1]["reference_id"])
    database.write(lambda c: delete_reference(c, "secret", "anna", second))
    assert recall(database, "k1") is not None
    with pytest.raises(DeletedSince):
        recall(database, "k2")


def test_an_emptied_answer_still_tells_another_request_apart(database: Database) -> None:
    """A key that was used stays used, for as long as its answer would have been kept."""
    enroll(database, "anna", key="k1")
    database.write(lambda c: delete_identity(c, "secret", "anna"))
    with pytest.raises(IdempotencyKeyReused):
        recall(database, "k1", "the hash of another request")


def test_hashes_of_requests_differ_between_galleries(database: Database) -> None:
    """They are keyed with a secret of the gallery: whoever has the table can't test guesses of what was asked."""
    enroll(database, "anna", key="k1")
    enroll(database, "anna", key="k2")
    database.execute(sa.text(f"UPDATE about SET secret = '{'00' * 32}'"))
    enroll(database, "anna", key="k3")
    prints = {key: row.fingerprint for key, row in stored(database).items()}
    assert prints["k1"] == prints["k2"] != prints["k3"]


def test_answers_expire_after_a_day(database: Database) -> None:
    """Then the key is free again; until it is deleted, an expired answer is not given."""
    enroll(database, "anna", key="k1")
    enroll(database, "otto", key="k2")
    with database.read() as connection:
        assert not has_expired_answers(connection)
    old = (datetime.now(UTC) - timedelta(hours=25)).isoformat(timespec="seconds")
    database.execute(sa.update(idempotency).where(idempotency.c.key == "k1").values(created_at=old))
    assert recall(database, "k1") is None
    with database.read() as connection:
        assert has_expired_answers(connection)
    assert (database.write(expire_answers), database.write(expire_answers)) == (1, 0)
    assert set(stored(database)) == {"k2"}
    database.execute(sa.update(idempotency).values(created_at=old))
    enroll(database, "berta", key="k2")
    assert recall(database, "k2") is not None
