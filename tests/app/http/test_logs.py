"""What the service says of itself: lines for people or programs, and nothing in them that is nobody's business."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.files import drawings
from tests.service import Serve, Service, diptych

A, B = drawings("Angelic/character01"), drawings("Kannada/character02")
# Not from a caller's mouth: names of people and things.
PRIVATE = "frau-mustermann"


def use(service: Service) -> None:
    """A request of each kind, and some that are refused."""
    service.enroll(PRIVATE, A[0], metadata=json.dumps({"private": "rosebud"}))
    service.verify(A[0], A[1])
    service.verify(A[0], identity=PRIVATE)
    service.client.get(f"/collections/default/identities/{PRIVATE}", headers={"X-Request-ID": "look-7"})
    service.client.get("/collections/default/identities/nobody-of-this-name")
    service.client.get("/nothing-of-this-name")
    service.client.post("/embed", files={"image": b"no image"})
    service.client.get("/metrics")
    service.client.delete(f"/collections/default/identities/{PRIVATE}")


def lines(service: Service) -> list[str]:
    service.stop()
    return service.log.read_text().splitlines()


def accesses(said: list[str]) -> list[dict[str, Any]]:
    parsed = [json.loads(line) for line in said]
    return [line for line in parsed if line.get("logger") == "diptych.access"]


def test_every_line_is_json_where_json_is_asked_for(serve: Serve) -> None:
    """Of uvicorn, of the service and of the audit; an access line for each request, with what one asks logs for."""
    service = serve(log_format="json")
    use(service)
    said = lines(service)
    found = accesses(said)
    assert [(line["method"], line["route"], line["status"]) for line in found] == [
        ("POST", "/enroll", 201),
        ("POST", "/verify", 200),
        ("POST", "/verify", 200),
        ("GET", "/collections/{collection}/identities/{identity}", 200),
        ("GET", "/collections/{collection}/identities/{identity}", 404),
        ("GET", "none", 404),
        ("POST", "/embed", 415),
        ("DELETE", "/collections/{collection}/identities/{identity}", 204),
    ]
    assert [line["code"] for line in found if line["status"] >= 400] == [
        *("unknown_identity", "not_found", "unsupported_format")
    ]
    assert found[3]["request_id"] == "look-7" and found[0]["caller"] is None
    assert found[0]["received"] > A[0].stat().st_size and found[0]["sent"] > 50
    assert all(0 < line["milliseconds"] < 30_000 for line in found)
    audits = [line["request_id"] for line in map(json.loads, said) if "audit" in line]
    assert audits == [found[0]["request_id"], found[-1]["request_id"]]


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_names_metadata_keys_or_paths_are_logged_beside_the_audit(serve: Serve, tmp_path: Path, form: str) -> None:
    """The audit is there for names; a log that everybody reads is not."""
    made = diptych("keys", "create", "till", "--scope", "admin", "--data-dir", tmp_path / "data")
    token = re.findall(r"diptych_\S+", made.stdout)[0]
    service = serve(log_format=form, log_level="debug")
    service.client.headers["Authorization"] = f"Bearer {token}"
    use(service)
    service.client.get("/checkpoint", headers={"Authorization": f"Bearer {token[:-1]}x"})
    said = [line for line in lines(service) if not line.startswith('{"audit"')]
    log = "\n".join(said)
    for private in (PRIVATE, "rosebud", "of-this-name", token[8:], "IHDR"):
        assert private not in log
    assert "till" in log and "key_unknown" in log and "/metrics" in log  # at debug, health checks too
    if form == "json":
        assert {line["caller"] for line in accesses(said) if line["status"] < 400} == {"till", None}


def test_an_access_line_for_people_says_the_same(serve: Serve) -> None:
    """The default; time first."""
    service = serve()
    use(service)
    said = lines(service)
    pattern = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} info     POST /verify 200 in \d+\.\d ms, request [0-9a-f]{32}"
    assert sum(re.fullmatch(pattern, line) is not None for line in said) == 2
    assert any("POST /embed 415 unsupported_format in " in line for line in said)
    assert not any("/metrics" in line for line in said)


def test_the_start_says_where_it_is_what_it_promises_what_it_holds_and_who_may_ask(
    serve: Serve, tmp_path: Path
) -> None:
    """Before the first request: address and /docs, checkpoint, gallery, keys; and again with a key and a gallery."""
    service = serve("omniglot")
    service.enroll("a", A[0], A[1])
    first = "\n".join(lines(service))
    for words in (
        f"at http://127.0.0.1:{service.port}; documentation to try it at http://127.0.0.1:{service.port}/docs",
        "similar up to a distance of 0.4744, chosen for a false-match rate of 1 % (0.844 % measured)",
        f"gallery {tmp_path / 'data' / 'diptych.db'}: 0 identities with 0 references",
        "API keys: none, so whoever reaches this address may use the service",
    ):
        assert first.count(words) == 1, words
    diptych("keys", "create", "till", "--data-dir", tmp_path / "data")
    service.start()
    second = "\n".join(lines(service))
    assert "1 identities with 2 references" in second and "API keys: 1; every request needs one" in second


def test_the_log_can_be_made_quiet(serve: Serve) -> None:
    """No access lines, or nothing below a warning; the audit stays."""
    plain, warnings = serve(access_log="0"), serve(log_level="warning")
    for service in (plain, warnings):
        use(service)
        said = lines(service)
        assert not any("/verify" in line for line in said)
        assert sum(line.startswith('{"audit"') for line in said) == 2
    assert all(line.startswith('{"audit"') for line in said)


def test_a_mistake_of_ours_is_one_line_of_json(serve: Serve, tmp_path: Path) -> None:
    """Its traceback included, under the id that the caller was given."""
    import pysqlite3

    service = serve(log_format="json")
    service.enroll("a", A[0])
    with pysqlite3.connect(tmp_path / "data" / "diptych.db") as connection:
        connection.execute("CREATE TRIGGER t BEFORE INSERT ON identity BEGIN SELECT RAISE(ABORT, 'unexpected'); END")
    connection.close()
    refused = service.enroll("b", B[0])
    assert refused.status_code == 500
    (mistake,) = [line for line in map(json.loads, lines(service)) if "exception" in line]
    assert mistake["request_id"] == refused.json()["request_id"] == refused.headers["x-request-id"]
    assert "Traceback" in mistake["exception"] and mistake["level"] == "error"
    assert [line["code"] for line in accesses(service.log.read_text().splitlines())][-1] == "internal_error"


def test_no_image_bytes_and_no_tracebacks_reach_the_log(serve: Serve) -> None:
    """Whatever is sent: what is refused is no mistake of the service."""
    service = serve(log_level="debug", max_image_bytes="1000000")
    use(service)
    for data in (b"", b"text", A[0].read_bytes()[:100], bytes(1_000_001)):
        service.client.post("/verify", files={"image_a": A[0].read_bytes(), "image_b": data})
        service.client.post("/embed", files={"image": data})
    service.client.post(
        "/verify", content=b"--x\r\nrubbish", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    service.client.post("/enroll", data={"identity": "a/b", "metadata": "{"}, files={"images": A[0].read_bytes()})
    service.client.get("/collections/none/identities", params={"cursor": "rubbish!"})
    log = "\n".join(lines(service))
    assert "/verify" in log and "/collections/{collection}/identities" in log
    assert "Traceback" not in log and "IHDR" not in log
