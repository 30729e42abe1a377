"""What was acknowledged survives: kills, restarts, and other processes on the same directory."""

import contextlib
import threading
from pathlib import Path

import pysqlite3
import pytest

from tests.files import CALIBRATED, GOLDEN, drawings
from tests.service import InProcess, Serve, Service, assert_problem, diptych

ANGELIC, KANNADA = drawings("Angelic/character01"), drawings("Kannada/character02")


def test_an_acknowledged_enrolment_survives_sigkill(serve: Serve) -> None:
    """Killed right after the answer; after a restart another drawing of the same character finds it."""
    service = serve(CALIBRATED)
    assert service.enroll("angelic", *ANGELIC[:3]).status_code == 201
    assert service.enroll("kannada", *KANNADA[:3]).status_code == 201
    service.kill()
    service.start()
    answer = service.search(ANGELIC[4]).json()
    assert (answer["gallery_size"], answer["references"]) == (2, 6)
    assert answer["matches"][0]["identity"] == "angelic"


def test_a_deletion_survives_sigkill(serve: Serve) -> None:
    """Nothing deleted comes back."""
    service = serve()
    service.enroll("a", ANGELIC[0])
    service.enroll("b", KANNADA[0])
    assert service.client.delete("/collections/default/identities/a").status_code == 204
    service.kill()
    service.start()
    assert [match["identity"] for match in service.search(ANGELIC[0]).json()["matches"]] == ["b"]


def test_sigterm_stops_the_service_within_seconds(serve: Serve) -> None:
    """And an ordinary stop is no error."""
    service = serve()
    assert service.stop() < 5
    assert service.process.returncode in (0, -15)


def test_two_services_on_one_directory_see_each_others_writes_at_once(serve: Serve, tmp_path: Path) -> None:
    """Enrolled here, found there; deleted there, gone here."""
    one, other = (serve(data_dir=tmp_path / "shared") for _ in range(2))
    for number, path in enumerate(ANGELIC):
        one.enroll(f"i{number}", path)
        assert other.search(path).json()["matches"][0]["identity"] == f"i{number}"
        assert other.client.delete(f"/collections/default/identities/i{number}").status_code == 204
        assert one.search(path).json()["matches"] == []


def test_several_workers_answer_consistently(serve: Serve) -> None:
    """Every answer reads its caller's own writes, whichever process gives it."""
    service = serve(workers="2")
    for number, path in enumerate([*ANGELIC, *KANNADA]):
        assert service.enroll(f"i{number}", path).status_code == 201
        for _ in range(4):
            answer = service.search(path).json()
            assert (answer["matches"][0]["identity"], answer["gallery_size"]) == (f"i{number}", number + 1)


def test_a_taken_port_is_named(serve: Serve, tmp_path: Path) -> None:
    """In one line, before anything else is done."""
    taken = serve()
    done = diptych("serve", "--port", str(taken.port), "--checkpoint", GOLDEN, "--data-dir", tmp_path / "other")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"port {taken.port}" in done.stderr


def test_options_reach_every_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given on the command line, not in the environment, they hold in the processes that do the work."""
    monkeypatch.chdir(tmp_path)
    for name in ("DIPTYCH_DATA_DIR", "DIPTYCH_CHECKPOINT"):
        monkeypatch.delenv(name, raising=False)
    service = Service(GOLDEN, tmp_path / "given", by_option=True, workers="2")
    try:
        assert service.enroll("a", ANGELIC[0]).status_code == 201
        assert service.client.get("/checkpoint").json()["embedding_dim"] == 32
    finally:
        service.stop()
    assert not (tmp_path / "data").exists()


def test_more_requests_than_may_wait_are_refused_at_once(serve: Serve) -> None:
    """With 503, a Retry-After, and the others served."""
    service = serve(concurrency="1", queue_length="0")
    statuses: list[int] = []

    def ask() -> None:
        statuses.extend(service.enroll("a", *ANGELIC * 5).status_code for _ in range(8))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {201, 503}
    assert service.enroll("a", ANGELIC[0]).status_code == 201


def test_concurrent_enrolments_are_all_kept(serve: Serve) -> None:
    """Eight writers at once, none loses."""
    service = serve()
    statuses: list[int] = []

    def write(number: int) -> None:
        for turn, path in enumerate(ANGELIC):
            statuses.append(service.enroll(f"i{number}-{turn}", path).status_code)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [201] * 48
    assert service.search(ANGELIC[0]).json()["gallery_size"] == 48


def test_a_gallery_of_another_encoder_is_refused_at_start_and_on_request(in_process: InProcess, tmp_path: Path) -> None:
    """Embeddings of different models are never compared."""
    data = tmp_path / "mixed"
    first, second = in_process(GOLDEN, data), in_process(CALIBRATED, data)
    assert first.enroll("a", ANGELIC[0]).status_code == 201
    assert_problem(second.search(ANGELIC[0]), 409, "model_mismatch")
    assert_problem(second.enroll("a", ANGELIC[1]), 409, "model_mismatch")
    assert_problem(second.enroll("a", ANGELIC[1], collection="own"), 409, "model_mismatch")
    assert_problem(second.verify(ANGELIC[0], identity="a"), 409, "model_mismatch")
    second.stop()
    refused = diptych("serve", "--checkpoint", CALIBRATED, "--data-dir", data, "--port", "0")
    assert refused.returncode == 2
    assert "can't be compared" in refused.stderr and refused.stderr.count("\n") == 1


def test_a_mistake_of_ours_is_a_problem_document_without_our_insides(serve: Serve, tmp_path: Path) -> None:
    """A constraint that nobody expects: the caller learns an id, the log the rest; the next request is served."""
    service = serve(data_dir=tmp_path / "data")
    with contextlib.closing(pysqlite3.connect(tmp_path / "data" / "diptych.db")) as intruder:
        intruder.execute("CREATE TRIGGER trap BEFORE INSERT ON reference BEGIN SELECT RAISE(ABORT, 'secret'); END")
    problem = assert_problem(service.enroll("a", ANGELIC[0]), 500, "internal_error")
    assert "secret" not in str(problem) and "sqlite" not in str(problem).lower()
    assert service.client.get("/collections").json() == {"collections": []}
    service.stop()  # what is logged comes after what is answered
    assert "secret" in service.log.read_text()


def test_a_locked_database_is_answered_with_503_and_served_again_afterwards(
    in_process: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else holds the write lock for longer than the service waits; nothing is lost, nothing half done."""
    monkeypatch.setattr("app.database.sqlite.BUSY_SECONDS", 1)
    service = in_process(data_dir=tmp_path / "data")
    with contextlib.closing(pysqlite3.connect(tmp_path / "data" / "diptych.db", isolation_level=None)) as intruder:
        intruder.execute("BEGIN IMMEDIATE")
        response = service.enroll("a", ANGELIC[0])
        assert_problem(response, 503, "storage_unavailable")
        assert response.headers["retry-after"]
        assert service.verify(ANGELIC[0], ANGELIC[1]).status_code == 200
        intruder.execute("ROLLBACK")
    assert service.enroll("a", ANGELIC[0]).status_code == 201


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"DIPTYCH_HOST": "0.0.0.0"}, "DIPTYCH_ALLOW_NO_KEYS=1"),
        ({"DIPTYCH_PORT": "many"}, "DIPTYCH_PORT"),
        ({"DIPTYCH_CHECKPOINT": "nowhere"}, "no checkpoint 'nowhere'"),
        ({"DIPTYCH_DATABASE_URL": "postgresql://x/y"}, "DIPTYCH_DATABASE_URL"),
        ({"DIPTYCH_DATABASE_URL": "sqlite:///:memory:"}, "DIPTYCH_DATABASE_URL"),
        ({"DIPTYCH_QUEUE_SECONDS": "inf"}, "DIPTYCH_QUEUE_SECONDS"),
        ({"DIPTYCH_CHECKPOINT": "x" * 300}, "too long"),
        ({"DIPTYCH_DATA_DIR": "/proc/nowhere"}, "DIPTYCH_DATA_DIR"),
    ],
)
def test_a_setting_that_cannot_be_served_ends_with_one_line_and_status_2(
    environment: dict[str, str], words: str, tmp_path: Path
) -> None:
    """Not with a traceback, and not with a service that is open to all."""
    usual = {"DIPTYCH_CHECKPOINT": str(GOLDEN), "DIPTYCH_PORT": "0", "DIPTYCH_DATA_DIR": str(tmp_path / "data")}
    done = diptych("serve", **{**usual, **environment})
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
