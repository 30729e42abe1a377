"""API keys, and what keeps strangers out where there are none."""

import json
import re
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.http.guard import OPEN, UNLISTED, scope_of
from tests.files import GOLDEN, drawings
from tests.service import Serve, Service, assert_problem, diptych

A = drawings("Angelic/character01")


def made(data: Path, name: str, *options: str) -> dict[str, str]:
    """A new key, as the header that carries it."""
    done = diptych("keys", "create", name, "--data-dir", data, *options)
    assert done.returncode == 0, done.stderr
    return {"Authorization": f"Bearer {done.stdout.strip()}"}


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
    service = Service(GOLDEN, data)
    yield service, keys
    service.stop()


def ask(service: Service, method: str, path: str, **options: Any) -> httpx.Response:
    """Without any header but those given."""
    return httpx.request(method, f"{service.client.base_url}{path}", timeout=30, **options)


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
def test_every_call_takes_a_key_of_its_scope(keyed: tuple[Service, dict[str, dict[str, str]]], call: str) -> None:
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
def test_life_and_documentation_take_no_key(keyed: tuple[Service, dict[str, dict[str, str]]], path: str) -> None:
    """An orchestrator has none, and the documentation is no secret."""
    assert ask(keyed[0], "GET", path).status_code == 200


@pytest.mark.parametrize(
    "value", ["Bearer", "Bearer x", "Basic x", "Bearer diptych_00000000_" + "A" * 43, "Bearer diptych_\xe4", "x" * 5000]
)
def test_a_key_that_was_never_made_is_refused(keyed: tuple[Service, dict[str, dict[str, str]]], value: str) -> None:
    """Whatever it looks like."""
    headers = {"Authorization": value.encode("latin-1")}
    assert ask(keyed[0], "GET", "/collections", headers=headers).status_code == 401


def test_every_endpoint_is_listed_with_the_scope_it_takes(keyed: tuple[Service, dict[str, dict[str, str]]]) -> None:
    """One that is forgotten would be for `admin` alone: safe, and surely not meant."""
    paths = ask(keyed[0], "GET", "/openapi.json").json()["paths"]
    calls = [(method.upper(), re.sub(r"{\w+}", "x", path)) for path, methods in paths.items() for method in methods]
    unlisted = [call for call in calls if not OPEN.fullmatch(call[1]) and scope_of(*call) == UNLISTED]
    assert unlisted == [("DELETE", "/collections/x")]


def test_a_true_key_with_another_end_is_refused(keyed: tuple[Service, dict[str, dict[str, str]]]) -> None:
    """Its public part alone opens nothing."""
    service, keys = keyed
    true = keys["admin"]["Authorization"]
    false = true[:-1] + ("A" if true[-1] != "A" else "B")
    assert_problem(ask(service, "GET", "/collections", headers={"Authorization": false}), 401, "key_unknown")


def test_a_key_may_be_for_one_collection(keyed: tuple[Service, dict[str, dict[str, str]]]) -> None:
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


def test_two_keys_may_use_the_same_idempotency_key(keyed: tuple[Service, dict[str, dict[str, str]]]) -> None:
    """Neither learns of the other."""
    service, keys = keyed
    image = {"images": (A[0].name, A[0].read_bytes())}
    for who, name in (("admin", "mine"), ("one", "mine"), ("enroll", "third")):
        form = {"identity": who, "collection": name}
        headers = keys[who] | {"Idempotency-Key": "1"}
        assert ask(service, "POST", "/enroll", headers=headers, data=form, files=image).status_code == 201


def test_containers_may_call_it_by_name_where_that_is_said(serve: Serve) -> None:
    """With DIPTYCH_ALLOW_NO_KEYS, names without a dot are believed."""
    service = serve(allow_no_keys="1")
    assert ask(service, "GET", "/collections", headers={"Host": "diptych:8000"}).status_code == 200
    assert ask(service, "GET", "/collections", headers={"Host": "evil.example"}).status_code == 421


def test_keys_come_and_go_without_a_restart_and_their_loss_opens_nothing(serve: Serve, tmp_path: Path) -> None:
    """The first key closes an open service; after the last is revoked a service beyond loopback stays closed."""
    data = tmp_path / "data"
    service = serve(data_dir=data)
    assert ask(service, "GET", "/collections").status_code == 200
    key = made(data, "first")
    assert becomes(service, None, 401) and becomes(service, key, 200)
    assert diptych("keys", "create", "first", "--data-dir", data).returncode == 2
    shown = diptych("keys", "list", "--data-dir", data).stdout
    assert "first" in shown and key["Authorization"].partition(" ")[2] not in shown
    assert key["Authorization"].partition(" ")[2].encode() not in (data / "diptych.db").read_bytes()
    service.stop()
    everywhere = serve(data_dir=data, host="0.0.0.0")
    assert becomes(everywhere, key, 200)
    refused = diptych("keys", "revoke", "first", "--data-dir", data)
    assert refused.returncode == 2 and "the last key" in refused.stderr
    assert diptych("keys", "revoke", "first", "--last", "--data-dir", data).returncode == 0
    assert becomes(everywhere, key, 401) and becomes(everywhere, None, 401)
    assert diptych("keys", "revoke", "first", "--data-dir", data).returncode == 2


def test_a_restored_gallery_has_the_keys_of_the_one_that_it_replaces(tmp_path: Path) -> None:
    """What was revoked since the backup stays so; where nothing is replaced, the backup's are valid, and named."""
    data, backup = tmp_path / "data", tmp_path / "backup"
    for name in ("old", "kept"):
        made(data, name)
    assert diptych("backup", backup, "--data-dir", data).returncode == 0
    assert diptych("keys", "revoke", "old", "--data-dir", data).returncode == 0
    made(data, "new")
    done = diptych("restore", backup, "--data-dir", data, "--replace")
    assert done.returncode == 0 and "valid in it: kept, new" in done.stdout, done.stderr
    elsewhere = diptych("restore", backup, "--data-dir", tmp_path / "elsewhere")
    assert "valid in it: kept, old" in elsewhere.stdout


def test_who_enrolled_changed_and_deleted_what_is_on_record(serve: Serve, tmp_path: Path) -> None:
    """A line each, with the name of the key and the request's id, and nothing that should not be in a log."""
    data = tmp_path / "data"
    key = made(data, "office", "--scope", "admin")
    service = serve(data_dir=data)
    image = {"images": (A[0].name, A[0].read_bytes())}
    base = "/collections/c/identities/a"
    answers = [
        ask(service, "POST", "/enroll", headers=key, data={"identity": "a", "collection": "c"}, files=image),
        ask(service, "PATCH", base, headers=key, json={"identity": "\u00e4"}),
        ask(service, "DELETE", "/collections/c/identities/\u00e4", headers=key),
        ask(service, "DELETE", "/collections/c", headers=key),
    ]
    refused = ask(service, "DELETE", "/collections/c", headers=key)
    assert [one.status_code for one in answers] == [201, 200, 204, 204] and refused.status_code == 404
    log = service.log.read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["audit"] for line in lines] == ["enroll", "change_identity", "delete_identity", "delete_collection"]
    assert [line["request_id"] for line in lines] == [one.headers["x-request-id"] for one in answers]
    assert {line["caller"] for line in lines} == {"office"}
    assert lines[0]["references"] == [answers[0].json()["references"][0]["reference_id"]]
    assert lines[1]["now"] == "\u00e4" and key["Authorization"].partition(" ")[2] not in log


def becomes(service: Service, headers: dict[str, str] | None, status: int) -> bool:
    """Whether it answers so within ten seconds."""
    deadline = time.monotonic() + 10
    while ask(service, "GET", "/collections", headers=headers).status_code != status:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


# --- without keys ---------------------------------------------------------------------------------------------


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
    open_service: Service, headers: dict[str, str], status: int
) -> None:
    """By its origin, by what browsers say of it, or by a name that its owner pointed here."""
    answer = ask(open_service, "GET", "/collections", headers=headers)
    assert answer.status_code == status, answer.text
    if status == 200 and "Sec-Fetch-Mode" not in headers:
        files = {"image": A[0].read_bytes()}
        assert ask(open_service, "POST", "/embed", headers=headers, files=files).status_code == 200


@pytest.fixture(scope="module")
def open_service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    service = Service(GOLDEN, tmp_path_factory.mktemp("open") / "data", allowed_hosts="known.example, other.example")
    yield service
    service.stop()


# --- limits ---------------------------------------------------------------------------------------------------


def test_a_caller_who_asks_too_often_waits(serve: Serve, tmp_path: Path) -> None:
    """Each key has its own count; health is asked freely; the answer says how long to wait, and it is true."""
    data = tmp_path / "data"
    one, other = made(data, "one"), made(data, "other")
    service = serve(data_dir=data, rate="5/3 second")
    statuses = [ask(service, "GET", "/collections", headers=one).status_code for _ in range(8)]
    assert statuses == [200] * 5 + [429] * 3
    refused = ask(service, "GET", "/collections", headers=one)
    assert_problem(refused, 429, "too_many_requests")
    assert ask(service, "GET", "/collections", headers=other).status_code == 200
    assert all(ask(service, "GET", "/readyz").status_code == 200 for _ in range(8))
    time.sleep(int(refused.headers["retry-after"]))
    assert ask(service, "GET", "/collections", headers=one).status_code == 200


def test_a_caller_has_so_many_requests_at_once(serve: Serve) -> None:
    """One that is still sending counts; afterwards there is room again."""
    service = serve(at_once="2")
    head = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with ExitStack() as held:
        for _ in range(2):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10))
            connection.sendall(head + b"Content-Length: 1000\r\n\r\n--x\r\n")
        deadline = time.monotonic() + 10
        while ask(service, "GET", "/collections").status_code != 429:
            assert time.monotonic() < deadline
    assert becomes(service, None, 200)


def test_forwarded_addresses_are_believed_of_named_proxies_alone(serve: Serve, tmp_path: Path) -> None:
    """Else a caller would choose under which address it is counted."""
    for name, proxies, expected in (("none", "", [200, 429, 429]), ("named", "127.0.0.1", [200, 200, 429])):
        service = serve(data_dir=tmp_path / name, rate="1/minute", trusted_proxies=proxies)
        came_from = ({"X-Forwarded-For": address} for address in ("10.0.0.1", "10.0.0.2", "10.0.0.2"))
        assert [ask(service, "GET", "/collections", headers=one).status_code for one in came_from] == expected


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


def test_a_web_page_that_is_named_may_ask(serve: Serve, tmp_path: Path) -> None:
    """With a key and without; browsers are told so before they send, and no other page is."""
    ours, theirs = {"Origin": "https://shop.example"}, {"Origin": "https://evil.example"}
    service = serve(data_dir=tmp_path / "data", cors_origins="https://shop.example")
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
