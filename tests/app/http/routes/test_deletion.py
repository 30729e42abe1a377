"""What was deleted is not given again under an Idempotency-Key, also if both happen at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import sqlalchemy as sa

from app.database.postgres import PostgreSQL
from app.database.sqlite import SQLite
from app.database.tables import idempotency
from app.database.transactions import Database
from tests.files import drawings
from tests.service import Application, assert_problem

A = drawings("Angelic/character01")


def enroll(service: Application, collection: str, key: str) -> httpx.Response:
    return service.client.post(
        "/enroll",
        data={"identity": "anna", "collection": collection},
        files={"images": (A[0].name, A[0].read_bytes())},
        headers={"Idempotency-Key": key},
    )


def path_of(what: str, collection: str, answer: dict[str, list[dict[str, str]]]) -> str:
    return {
        "reference": f"/collections/{collection}/identities/anna/references/{answer['references'][0]['reference_id']}",
        "identity": f"/collections/{collection}/identities/anna",
        "collection": f"/collections/{collection}",
    }[what]


def database_of(service: Application) -> Database:
    url = service.environment.get("DIPTYCH_DATABASE_URL")
    return PostgreSQL(url) if url else SQLite(service.data_dir / "diptych.db")


@pytest.mark.parametrize("what", ["reference", "identity", "collection"])
def test_repeating_a_request_does_not_bring_back_what_was_deleted(service: Application, what: str) -> None:
    """It answers 410 and enrolls nothing; under a new key the same request enrolls."""
    name = f"deleted-{what}"
    first = enroll(service, name, name)
    assert first.status_code == 201 and enroll(service, name, name).json() == first.json()
    assert service.client.delete(path_of(what, name, first.json())).status_code == 204
    assert_problem(enroll(service, name, name), 410, "deleted_since")
    found = service.search(A[0], collection=name)
    assert found.status_code == 404 or found.json()["references"] == 0
    again = enroll(service, name, f"{name} again")
    assert again.status_code == 201
    assert again.json()["references"][0]["reference_id"] != first.json()["references"][0]["reference_id"]


@pytest.mark.parametrize("what", ["reference", "identity", "collection"])
def test_a_repetition_that_races_a_deletion_enrolls_nothing(service: Application, what: str) -> None:
    """Each gets the first answer or 410, and after the deletion nothing is enrolled."""
    for attempt in range(4):
        name = f"race-{what}-{attempt}"
        first = enroll(service, name, name).json()
        start = threading.Barrier(5)

        def repeat(_: int, name: str = name, start: threading.Barrier = start) -> list[httpx.Response]:
            start.wait(30)
            return [enroll(service, name, name) for _ in range(3)]

        with ThreadPoolExecutor(4) as pool:
            running = pool.map(repeat, range(4))
            start.wait(30)
            assert service.client.delete(path_of(what, name, first)).status_code == 204
            answers = [answer for answers in running for answer in answers]
        for answer in answers:
            if answer.status_code == 201:
                assert answer.json() == first
            else:
                assert_problem(answer, 410, "deleted_since")
        assert_problem(enroll(service, name, name), 410, "deleted_since")
        found = service.search(A[0], collection=name)
        assert found.status_code == 404 or found.json()["references"] == 0


def test_first_requests_that_race_a_deletion_agree_on_what_is_left(service: Application) -> None:
    """Whether the deletion came before or after the enrolment, a stored answer never names what is gone."""
    for attempt in range(4):
        name = f"first-{attempt}"
        enroll(service, name, f"{name} before")
        with ThreadPoolExecutor(1) as pool:
            enrolled = pool.submit(enroll, service, name, name)
            service.client.delete(f"/collections/{name}/identities/anna")
            answer = enrolled.result()
        replay = enroll(service, name, name)
        listed = service.client.get(f"/collections/{name}/identities/anna")
        ids = [entry["reference_id"] for entry in listed.json().get("references", [])]
        if replay.status_code == 201:
            assert replay.json() == answer.json() and replay.json()["references"][0]["reference_id"] in ids
        else:
            assert_problem(replay, 410, "deleted_since")
            assert ids == []


def test_expired_answers_go_without_anybody_asking(service: Application) -> None:
    """The service deletes them, and no request with a key is needed for it."""
    enroll(service, "expired", "expired")
    database = database_of(service)
    old = (datetime.now(UTC) - timedelta(hours=25)).isoformat(timespec="seconds")
    database.execute(sa.update(idempotency).where(idempotency.c.key.endswith("expired")).values(created_at=old))
    deadline = time.monotonic() + 30
    while True:
        with database.read() as connection:
            keys = connection.scalars(sa.select(idempotency.c.key).where(idempotency.c.key.endswith("expired"))).all()
        if not keys:
            break
        assert time.monotonic() < deadline, keys
        time.sleep(0.05)
    database.close()
