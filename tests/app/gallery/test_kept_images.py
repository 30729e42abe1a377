"""Kept images: on disk or in a bucket, only where that is asked for, and gone with their references."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from moto.server import ThreadedMotoServer

from tests.characters import ANGELIC, KANNADA, TIBETAN, enroll_three, kept_files
from tests.service import InProcess, assert_problem, wait_for


def test_images_are_not_kept_unless_asked_for(in_process: InProcess, tmp_path: Path) -> None:
    """Privacy is the default."""
    service = in_process()
    enroll_three(service)
    assert kept_files(tmp_path / "data") == []


def test_kept_images_are_what_was_uploaded_and_go_with_their_references(in_process: InProcess, tmp_path: Path) -> None:
    """With a reference, an identity, a collection: within a second, and only the owner can read them meanwhile."""
    service, data = in_process(keep_images="yes"), tmp_path / "data"
    enroll_three(service)
    service.enroll("angelic", ANGELIC[0])  # it holds that one
    service.enroll("other", KANNADA[0], KANNADA[0], collection="second")
    wait_for(lambda: len(kept_files(data)) == 10)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (data / "originals").rglob("*"))
    (reference, *_) = service.client.get("/collections/default/identities/kannada").json()["references"]
    base = "/collections/default/identities"
    assert service.client.delete(f"{base}/kannada/references/{reference['reference_id']}").status_code == 204
    assert service.client.delete(f"{base}/angelic").status_code == 204
    assert service.client.delete("/collections/second").status_code == 204
    left = sorted(path.read_bytes() for path in [*KANNADA[1:3], *TIBETAN[:3]])
    wait_for(lambda: kept_files(data) == left)


def test_an_image_enrolled_again_where_images_are_kept_now_is_kept(in_process: InProcess, tmp_path: Path) -> None:
    """That is how a gallery becomes one that can change its encoder."""
    service = in_process()
    first = service.enroll("a", ANGELIC[0]).json()["references"]
    service.stop()
    service = in_process(keep_images="yes")
    assert service.enroll("a", ANGELIC[0]).json()["references"] == first
    assert kept_files(tmp_path / "data") == [ANGELIC[0].read_bytes()]


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """A server that speaks S3, with a bucket; the environment that leads there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    assert httpx.put(f"{endpoint}/kept").status_code == 200
    yield {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    server.stop()


def objects(bucket: dict[str, str]) -> int:
    return httpx.get(f"{bucket['AWS_ENDPOINT_URL']}/kept?list-type=2").text.count("<Key>")


def test_images_are_kept_in_a_bucket(
    in_process: InProcess, bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And deleted there, with their references; nothing of them is in the data directory."""
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    service = in_process(keep_images="s3://kept/diptych")
    enroll_three(service)
    assert objects(bucket) == 9
    assert not (tmp_path / "data" / "originals").exists()
    assert service.client.delete("/collections/default/identities/angelic").status_code == 204
    wait_for(lambda: objects(bucket) == 6)


def test_a_bucket_that_went_away_is_named_until_it_is_back(
    in_process: InProcess, bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On /readyz too, for enrolments fail meanwhile; without a restart it is ready again, and leaves no trial there."""
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    service = in_process(keep_images="s3://later/diptych")
    problem = assert_problem(service.enroll("a", ANGELIC[0]), 503, "storage_unavailable")
    assert "DIPTYCH_KEEP_IMAGES" in problem["detail"]
    assert_problem(service.client.get("/readyz"), 503, "storage_unavailable")
    assert httpx.put(f"{bucket['AWS_ENDPOINT_URL']}/later").status_code == 200
    wait_for(lambda: service.client.get("/readyz").status_code == 200)
    assert httpx.get(f"{bucket['AWS_ENDPOINT_URL']}/later?list-type=2").text.count("<Key>") == 0


def test_a_bucket_that_cannot_be_reached_enrolls_nothing(
    in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503, and nothing half done."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    service = in_process(keep_images="s3://kept/diptych")
    assert_problem(service.enroll("a", ANGELIC[0]), 503, "storage_unavailable")
    assert service.client.get("/collections").json() == {"collections": []}
