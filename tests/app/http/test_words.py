"""What a refused request is told: what is wrong, what is allowed, what to do."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.files import GOLDEN, drawings
from tests.service import Service

A, B = (path.read_bytes() for path in drawings("Angelic/character01")[:2])
PAIR = {"image_a": A, "image_b": B}
NOT_ALLOWED, MISSING = "A field has a value that is not allowed", "A field is missing"
RATE = "must be a number greater than 0 and less than 1"
IDENTITY = "/collections/words/identities/a"
JSON_BODY = 'Send a JSON object: {"identity": "new name"}, with the header Content-Type: application/json.'


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a service without keys, with one identity."""
    running = Service(GOLDEN, tmp_path_factory.mktemp("words") / "data")
    running.client.post("/enroll", data={"identity": "a", "collection": "words"}, files={"images": A})
    yield running.client
    running.stop()


CASES: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("POST", "/verify", {"files": PAIR, "data": {"threshold": "5"}}, NOT_ALLOWED,
     "`threshold` must be a number from 0 to 2, not '5'."),
    ("POST", "/verify", {"files": PAIR, "data": {"threshold": "abc"}}, NOT_ALLOWED,
     "`threshold` must be a number from 0 to 2, not 'abc'."),
    ("POST", "/verify", {"files": PAIR, "data": {"threshold": "nan"}}, NOT_ALLOWED,
     "`threshold` must be a number from 0 to 2, not 'nan'."),
    ("POST", "/verify", {"files": PAIR, "data": {"target_fmr": "1%"}}, NOT_ALLOWED, f"`target_fmr` {RATE}, not '1%'."),
    ("POST", "/verify", {"files": PAIR, "data": {"prior": "1"}}, NOT_ALLOWED, f"`prior` {RATE}, not '1'."),
    ("POST", "/search", {"files": {"image": A}, "data": {"top_k": "1.5"}}, NOT_ALLOWED,
     "`top_k` must be a whole number from 1 to 1000, not '1.5'."),
    ("POST", "/verify", {"files": {"image_b": B}}, MISSING, "`image_a` is missing."),
    ("POST", "/verify", {"files": {"image_a": A}}, MISSING,
     "Give a second image as `image_b`, or an enrolled `identity` to compare with."),
    ("POST", "/verify", {"files": {"image_b": B}, "data": {"image_a": "http://x"}}, NOT_ALLOWED,
     "`image_a` must be a file; with curl: -F image_a=@path."),
    ("POST", "/verify", {"json": {}}, "The body is not multipart/form-data",
     "Send images and fields as multipart/form-data; with curl: -F image_a=@path."),
    ("POST", "/verify", {"files": PAIR, "data": {"threshold": ["0.1", "0.2"]}}, "A field is repeated",
     "`threshold` was given 2 times. Give it once."),
    ("POST", "/verify", {"files": PAIR, "data": {"threshold": "0.5", "target_fmr": "0.1"}},
     "Two fields contradict each other", "Give `threshold` or `target_fmr`, not both."),
    ("PATCH", IDENTITY, {"data": {"identity": "b"}}, "The body is not a JSON object", JSON_BODY),
    ("PATCH", IDENTITY, {"json": [1]}, "The body is not a JSON object", JSON_BODY),
    ("PATCH", IDENTITY, {"json": {"nome": "b"}}, NOT_ALLOWED, "There is no field 'nome' here."),
    ("PATCH", IDENTITY, {"json": {"identity": 3}}, NOT_ALLOWED, "`identity` must be text, not '3'."),
    ("GET", "/collections/words/identities?limit=0", {}, NOT_ALLOWED, "`limit` must be at least 1, not '0'."),
    ("GET", "/verify", {}, "Method not allowed", "GET is not allowed at /verify. Use POST."),
    ("PUT", IDENTITY, {}, "Method not allowed", f"PUT is not allowed at {IDENTITY}. Use DELETE or GET or PATCH."),
    ("GET", "/nowhere", {}, "Not found", "There is nothing at /nowhere. GET /docs lists every endpoint."),
    ("GET", "/collections", {"headers": {"Origin": "http://localhost:5173"}},
     "Web pages from this origin may not call the service",
     "The page http://localhost:5173 may not call this service. Add its origin to DIPTYCH_CORS_ORIGINS."),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "options", "title", "detail"), CASES, ids=[case[4][:50] for case in CASES])
def test_a_refusal_says_what_is_wrong_and_what_is_allowed(
    client: httpx.Client, method: str, path: str, options: dict[str, Any], title: str, detail: str
) -> None:
    """In one plain sentence or two."""
    problem = client.request(method, path, **options).json()
    assert (problem["title"], problem["detail"]) == (title, detail)


def test_every_wrong_field_is_listed_for_programs(client: httpx.Client) -> None:
    """With the same words."""
    refused = client.post("/verify", files={"image_a": A}, data={"threshold": "9", "prior": "0"}).json()
    assert [entry["field"] for entry in refused["errors"]] == ["threshold", "prior"]
    assert refused["detail"] == " ".join(entry["message"] for entry in refused["errors"])
