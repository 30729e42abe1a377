"""The audit: who enrolled, changed and deleted what."""

import json
from pathlib import Path

from tests.files import drawings
from tests.keys import ask, made
from tests.service import Serve

A = drawings("Angelic/character01")


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
