"""POST /enroll: what is kept under which name, and what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.files import drawings
from tests.service import Application, assert_problem

ANGELIC, KANNADA, TIBETAN = "Angelic/character01", "Kannada/character02", "Tibetan/character03"
A, B = drawings(ANGELIC), drawings(KANNADA)
TEXT = Path(__file__)


def test_the_same_request_twice_at_once_is_one_enrolment(service: Application) -> None:
    """Under one Idempotency-Key: both get the same answer."""
    files = {"images": (A[0].name, A[0].read_bytes())}

    def enroll(_: int) -> tuple[int, Any]:
        form = {"identity": "a", "collection": "at-once"}
        key = {"Idempotency-Key": "at-once"}
        response = service.client.post("/enroll", data=form, files=files, headers=key)
        return response.status_code, response.json()

    with ThreadPoolExecutor(6) as pool:
        (status, answer), *others = pool.map(enroll, range(6))
    assert status == 201 and all(other == (status, answer) for other in others)


def test_enroll_names_the_images_that_it_rejects_and_keeps_the_others(service: Application) -> None:
    """A bad scan in a batch does not cost the batch."""
    response = service.enroll("a", A[0], TEXT, A[1], collection="partly")
    assert response.status_code == 201
    answer = response.json()
    assert [entry["filename"] for entry in answer["references"]] == [A[0].name, A[1].name]
    (rejected,) = answer["rejected"]
    assert (rejected["filename"], rejected["code"]) == (TEXT.name, "unsupported_format")


def test_enroll_without_a_usable_image_enrolls_nothing(service: Application) -> None:
    """Not even the collection."""
    problem = assert_problem(service.enroll("a", TEXT, TEXT, collection="nothing"), 422, "nothing_enrolled")
    assert len(problem["rejected"]) == 2
    assert_problem(service.search(A[0], collection="nothing"), 404, "unknown_collection")


def test_the_same_image_for_the_same_identity_is_one_reference(service: Application) -> None:
    """Enrolled again, it answers with the reference that it has."""
    first = service.enroll("a", A[0], collection="twice").json()["references"]
    again = service.enroll("a", A[0], A[0], collection="twice").json()["references"]
    assert [entry["reference_id"] for entry in again] == [first[0]["reference_id"]] * 2
    assert service.search(A[0], collection="twice").json()["references"] == 1


def test_a_repeated_request_under_one_idempotency_key_changes_nothing(service: Application) -> None:
    """The same answer; and another request under that key is refused."""

    def post(identity: str, key: str) -> httpx.Response:
        return service.client.post(
            "/enroll",
            data={"identity": identity, "collection": "keys"},
            files={"images": A[0].read_bytes()},
            headers={"Idempotency-Key": key},
        )

    first = post("a", "k1")
    assert post("a", "k1").json() == first.json()
    service.client.delete("/collections/keys/identities/a")
    assert_problem(post("a", "k1"), 410, "deleted_since")
    assert service.search(A[0], collection="keys").json()["matches"] == []
    assert_problem(post("b", "k1"), 422, "idempotency_key_reused")


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "a\x00b", "x" * 129, "\x7f", ".", ".."])
def test_forbidden_names_are_refused(service: Application, name: str) -> None:
    """For identities and for collections."""
    for fields in ({"identity": name}, {"identity": "a", "collection": name}):
        response = service.client.post("/enroll", data=fields, files={"images": A[0].read_bytes()})
        assert response.status_code == 422, fields
        assert response.json()["code"] in ("invalid_name", "invalid_request")


@pytest.mark.parametrize("name", ["Ünï ¢ödé 水", "a:b", "...", "x" * 128, "100%", "a?b#c", " "])
def test_all_other_names_are_the_callers_own(service: Application, name: str) -> None:
    """They come back as they were given."""
    assert service.enroll(name, A[0], collection="names " + name[:100]).json()["identity"] == name
    assert service.search(A[0], collection="names " + name[:100]).json()["matches"][0]["identity"] == name


HOSTILE_METADATA = [r'{"a": "\ud800"}', r'{"\udfff": 1}', '{"a": 1e999}', '{"a": ' + "[" * 40 + "]" * 40 + "}"]


@pytest.mark.parametrize("metadata", HOSTILE_METADATA)
def test_metadata_that_could_not_be_shown_again_is_refused_on_every_way_in(service: Application, metadata: str) -> None:
    """Lone surrogates, endless numbers, deep nests: stored once, they would break every answer about the identity."""
    assert_problem(service.enroll("a", A[0], collection="hostile", metadata=metadata), 422, "invalid_metadata")
    service.enroll("a", A[0], collection="hostile")
    url = "/collections/hostile/identities/a"
    headers = {"Content-Type": "application/json"}
    response = service.client.patch(url, content=f'{{"metadata": {metadata}}}', headers=headers)
    assert response.status_code == 422 and response.headers["content-type"] == "application/problem+json"
    assert service.client.get(url).json()["metadata"] == {}


@pytest.mark.parametrize(
    "metadata", ["[1]", "7", "{", "{'a': 1}", '{"a": NaN}', "[" * 100_000, '"' + "x" * 20_000 + '"']
)
def test_bad_metadata_is_refused(service: Application, metadata: str) -> None:
    """Only a JSON object of moderate size is metadata."""
    assert_problem(service.enroll("a", A[0], collection="meta", metadata=metadata), 422, "invalid_metadata")


def test_metadata_belongs_to_the_identity_and_is_merged(service: Application) -> None:
    """A later enrolment adds and replaces; null removes."""
    service.enroll("a", A[0], collection="merge", metadata=json.dumps({"x": 1, "y": {"deep": True}}))
    service.enroll("a", A[1], collection="merge", metadata=json.dumps({"x": 2, "z": None, "y": None, "w": "ä"}))
    assert service.search(A[0], collection="merge").json()["matches"][0]["metadata"] == {"x": 2, "w": "ä"}


def test_too_many_images_in_one_request_are_refused(service: Application) -> None:
    """This service takes four."""
    problem = assert_problem(service.enroll("a", *[A[0]] * 5, collection="lots"), 413, "too_many_images")
    assert "at most 4" in problem["detail"]
