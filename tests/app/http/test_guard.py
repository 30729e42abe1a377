"""Keys and their scopes; and what keeps web pages elsewhere out where there are no keys."""

import re
from pathlib import Path
from typing import Any

import pytest

from app.http.guard import OPEN, UNLISTED, scope_of
from tests.files import GOLDEN, drawings
from tests.keys import ask, becomes, made
from tests.service import Application, InProcess, Serve, assert_problem, diptych

A = drawings("Angelic/character01")


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service that asks for keys, and one key of each kind."""
    data = tmp_path_factory.mktemp("keyed") / "data"
    keys = {
        "verify": made(data, "door"),
        "enroll": made(data, "office", "--scope", "enroll"),
        "admin": made(data, "boss", "--scope", "admin"),
        "one": made(data, "one", "--scope", "admin", "--collection", "mine"),
    }
    service = Application(GOLDEN, data)
    yield service, keys
    service.stop()


@pytest.fixture(scope="module")
def open_service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    service = Application(
        GOLDEN, tmp_path_factory.mktemp("open") / "data", allowed_hosts="known.example, other.example"
    )
    yield service
    service.stop()


CALLS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "verify": ("verify", "POST", "/verify", {"files": {"image_a": b"1", "image_b": b"2"}}),
    "search": ("verify", "POST", "/search", {"files": {"image": b"1"}}),
    "embed": ("verify", "POST", "/embed", {"files": {"image": b"1"}}),
    "collections": ("verify", "GET", "/collections", {}),
    "enroll": ("enroll", "POST", "/enroll", {"data": {"identity": "a"}, "files": {"images": b"1"}}),
    "change": ("enroll", "PATCH", "/collections/default/identities/none", {"json": {"metadata": {}}}),
    "delete identity": ("enroll", "DELETE", "/collections/default/identities/none", {}),
    "delete collection": ("admin", "DELETE", "/collections/none", {}),
    "checkpoint": ("verify", "GET", "/checkpoint", {}),
    "metrics": ("admin", "GET", "/metrics", {}),
}
ORDER = ("verify", "enroll", "admin")


@pytest.mark.parametrize("call", CALLS)
def test_every_call_takes_a_key_of_its_scope(keyed: tuple[Application, dict[str, dict[str, str]]], call: str) -> None:
    """None: 401. One of a lesser scope: 403. One that suffices gets to the call itself, by either header."""
    service, keys = keyed
    needs, method, path, options = CALLS[call]
    refused = assert_problem(ask(service, method, path, **options), 401, "key_required")
    assert "diptych_" not in str(refused)
    assert ask(service, method, path, **options).headers["www-authenticate"] == "Bearer"
    for scope in ORDER:
        answer = ask(service, method, path, headers=keys[scope], **options)
        if ORDER.index(scope) < ORDER.index(needs):
            assert_problem(answer, 403, "not_allowed")
        else:
            assert answer.status_code not in (401, 403), answer.text
    other = {"X-API-Key": keys[needs]["Authorization"].partition(" ")[2]}
    assert ask(service, method, path, headers=other, **options).status_code not in (401, 403)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/openapi.json"])
def test_life_and_documentation_take_no_key(keyed: tuple[Application, dict[str, dict[str, str]]], path: str) -> None:
    """An orchestrator has none, and the documentation is no secret."""
    assert ask(keyed[0], "GET", path).status_code == 200


@pytest.mark.parametrize(
    "value", ["Bearer", "Bearer x", "Basic x", "Bearer diptych_00000000_" + "A" * 43, "Bearer diptych_\xe4", "x" * 5000]
)
def test_a_key_that_was_never_made_is_refused(keyed: tuple[Application, dict[str, dict[str, str]]], value: str) -> None:
    """Whatever it looks like."""
    headers = {"Authorization": value.encode("latin-1")}
    assert ask(keyed[0], "GET", "/collections", headers=headers).status_code == 401


def test_every_endpoint_is_listed_with_the_scope_it_takes(keyed: tuple[Application, dict[str, dict[str, str]]]) -> None:
    """One that is forgotten would be for `admin` alone: safe, and surely not meant."""
    paths = ask(keyed[0], "GET", "/openapi.json").json()["paths"]
    calls = [(method.upper(), re.sub(r"{\w+}", "x", path)) for path, methods in paths.items() for method in methods]
    unlisted = [call for call in calls if not OPEN.fullmatch(call[1]) and scope_of(*call) == UNLISTED]
    assert unlisted == [("DELETE", "/collections/x")]


def test_a_true_key_with_another_end_is_refused(keyed: tuple[Application, dict[str, dict[str, str]]]) -> None:
    """Its public part alone opens nothing."""
    service, keys = keyed
    true = keys["admin"]["Authorization"]
    false = true[:-1] + ("A" if true[-1] != "A" else "B")
    assert_problem(ask(service, "GET", "/collections", headers={"Authorization": false}), 401, "key_unknown")


def test_a_key_may_be_for_one_collection(keyed: tuple[Application, dict[str, dict[str, str]]]) -> None:
    """It neither sees nor touches another one, by form or by path."""
    service, keys = keyed
    image = {"images": (A[0].name, A[0].read_bytes())}
    for name in ("mine", "theirs"):
        form = {"identity": "a", "collection": name}
        assert ask(service, "POST", "/enroll", headers=keys["admin"], data=form, files=image).status_code == 201
    only = keys["one"]
    probe = {"image": A[1].read_bytes()}
    claim = {"image_a": A[1].read_bytes()}
    for name, expected in (("mine", (200, 200, 200, 201)), ("theirs", (403, 403, 403, 403))):
        found = ask(service, "POST", "/search", headers=only, data={"collection": name}, files=probe)
        form = {"collection": name, "identity": "a"}
        claimed = ask(service, "POST", "/verify", headers=only, data=form, files=claim)
        listed = ask(service, "GET", f"/collections/{name}/identities", headers=only)
        enrolled = ask(service, "POST", "/enroll", headers=only, data=form, files=image)
        assert tuple(r.status_code for r in (found, claimed, listed, enrolled)) == expected
    assert ask(service, "DELETE", "/collections/theirs", headers=only).status_code == 403
    seen = ask(service, "GET", "/collections", headers=only).json()["collections"]
    assert [entry["collection"] for entry in seen] == ["mine"]


def test_two_keys_may_use_the_same_idempotency_key(keyed: tuple[Application, dict[str, dict[str, str]]]) -> None:
    """Neither learns of the other."""
    service, keys = keyed
    image = {"images": (A[0].name, A[0].read_bytes())}
    for who, name in (("admin", "mine"), ("one", "mine"), ("enroll", "third")):
        form = {"identity": who, "collection": name}
        headers = keys[who] | {"Idempotency-Key": "1"}
        assert ask(service, "POST", "/enroll", headers=headers, data=form, files=image).status_code == 201


def test_containers_may_call_it_by_name_where_that_is_said(in_process: InProcess) -> None:
    """With DIPTYCH_ALLOW_NO_KEYS, names without a dot are believed."""
    service = in_process(allow_no_keys="1")
    assert ask(service, "GET", "/collections", headers={"Host": "diptych:8000"}).status_code == 200
    assert ask(service, "GET", "/collections", headers={"Host": "evil.example"}).status_code == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "diptych"}, 421),
        ({"Host": "localhost.:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:8000"}, 421),
        ({"Host": "known.example:8000"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_without_keys_no_web_page_elsewhere_reaches_the_service(
    open_service: Application, headers: dict[str, str], status: int
) -> None:
    """By its origin, by what browsers say of it, or by a name that its owner pointed here."""
    answer = ask(open_service, "GET", "/collections", headers=headers)
    assert answer.status_code == status, answer.text
    if status == 200 and "Sec-Fetch-Mode" not in headers:
        files = {"image": A[0].read_bytes()}
        assert ask(open_service, "POST", "/embed", headers=headers, files=files).status_code == 200


def test_a_proxy_may_serve_it_under_a_path(serve: Serve, tmp_path: Path) -> None:
    """Limits, keys and the documentation's addresses are as ever."""
    data = tmp_path / "data"
    key = made(data, "one")
    service = serve(data_dir=data, root_path="/diptych")
    large = {"image": A[0].read_bytes() + bytes(3 * 2**20)}
    assert ask(service, "POST", "/embed", headers=key, files=large).status_code == 200
    assert ask(service, "POST", "/embed", files=large).status_code == 401
    assert_problem(ask(service, "POST", "/enroll", headers=key, files={"images": b"1"}), 403, "not_allowed")
    boss = made(data, "boss", "--scope", "admin")
    assert becomes(service, boss, 200)
    refused = ask(service, "PUT", "/collections/c/identities/a", headers=boss)
    assert refused.status_code == 405 and refused.headers["allow"] == "DELETE, GET, PATCH"
    assert "/diptych/openapi.json" in ask(service, "GET", "/docs").text


def test_a_web_page_that_is_named_may_ask(in_process: InProcess, tmp_path: Path) -> None:
    """With a key and without; browsers are told so before they send, and no other page is."""
    ours, theirs = {"Origin": "https://shop.example"}, {"Origin": "https://evil.example"}
    service = in_process(data_dir=tmp_path / "data", cors_origins="https://shop.example")
    files = {"image": A[0].read_bytes()}
    for keyed in (False, True):
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        before = ask(service, "OPTIONS", "/embed", headers=ours | asked)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == "https://shop.example"
        assert ask(service, "OPTIONS", "/embed", headers=theirs | asked).status_code == 400
        key = made(tmp_path / "data", "page") if keyed else {}
        assert becomes(service, None, 401 if keyed else 200)
        answer = ask(service, "POST", "/embed", headers=ours | key, files=files)
        assert answer.status_code == 200 and "access-control-allow-origin" in answer.headers
        refused = ask(service, "POST", "/embed", headers=theirs | key, files=files)
        assert "access-control-allow-origin" not in refused.headers
        assert refused.status_code == (200 if key else 403)
    wrong = diptych("serve", DIPTYCH_CORS_ORIGINS="*", DIPTYCH_DATA_DIR=str(tmp_path / "x"))
    assert wrong.returncode == 2 and "DIPTYCH_CORS_ORIGINS" in wrong.stderr
