"""Faults, for real: kills, full and read-only disks, damage, a database that goes away, clocks that jump."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from tests import soak
from tests.files import GOLDEN, drawings
from tests.service import Serve, Service, assert_problem, diptych, running_postgresql

ANGELIC, KANNADA = drawings("Angelic/character01"), drawings("Kannada/character02")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


def ready(service: Service) -> httpx.Response:
    return service.client.get("/readyz")


def becomes(service: Service, status: int, seconds: float = 60) -> httpx.Response:
    """The answer of /readyz once it has this status."""
    deadline = time.monotonic() + seconds
    while (response := ready(service)).status_code != status:
        assert time.monotonic() < deadline, response.text
        time.sleep(0.1)
    return response


def found(service: Service, *images: Path) -> list[str]:
    return [service.search(image).json()["matches"][0]["identity"] for image in images]


def test_what_was_acknowledged_survives_kills_at_random_moments(serve: Serve) -> None:
    """Five of the rounds of which `soak.py` runs hundreds; the seed is printed, and TEST_SEED repeats it."""
    seed = int(os.environ.get("TEST_SEED", time.time()))
    print(f"TEST_SEED={seed}")
    answered, _ = soak.rounds(serve(keep_images="yes"), count=5, hands=6, seed=seed)
    assert answered > 20


def test_of_two_workers_one_may_be_killed(serve: Serve) -> None:
    """The other answers with all that both acknowledged, and a new one takes its place."""
    service = serve(workers="2")
    for number, path in enumerate(ANGELIC):
        assert service.enroll(f"i{number}", path).status_code == 201
    children = service.workers()
    assert len(children) == 2
    os.kill(children[0], signal.SIGKILL)
    for _ in range(20):
        for number, path in enumerate(ANGELIC):
            try:
                assert found(service, path) == [f"i{number}"]
            except httpx.TransportError:  # of the one that was killed
                continue
    assert service.enroll("later", KANNADA[0]).status_code == 201
    assert all(found(service, KANNADA[0]) == ["later"] for _ in range(8))


def test_workers_end_with_their_parent(serve: Serve) -> None:
    """Killed, it leaves nobody behind on the port and the gallery."""
    service = serve(workers="2")
    workers = service.workers()
    service.process.kill()
    service.process.wait(10)
    service.client.close()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    service.start()


# --- disks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves no room for another byte."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return filler


@as_root
def test_a_full_disk_is_named_and_nothing_is_lost(serve: Serve, small_disk: Path) -> None:
    """Enrolments are refused, searches answered; with room again the service is ready by itself."""
    service = serve(data_dir=small_disk / "data", keep_images="yes")
    assert service.enroll("a", *ANGELIC[:2]).status_code == 201
    filler = fill(small_disk)
    problem = assert_problem(service.enroll("b", KANNADA[0]), 503, "storage_unavailable")
    assert "No space" in problem["detail"] or "full" in problem["detail"]
    assert re.search("MiB left|full|No space", becomes(service, 503).json()["detail"])
    assert found(service, ANGELIC[0]) == ["a"]
    assert service.verify(ANGELIC[0], ANGELIC[1]).status_code == 200
    service.kill()
    filler.unlink()
    service.start()
    becomes(service, 200)
    assert service.enroll("b", KANNADA[0]).status_code == 201
    assert found(service, ANGELIC[1], KANNADA[0]) == ["a", "b"]


@as_root
def test_a_disk_that_filled_up_while_the_service_ran_is_used_again_once_there_is_room(
    serve: Serve, small_disk: Path
) -> None:
    """Without a restart."""
    service = serve(data_dir=small_disk / "data")
    assert service.enroll("a", ANGELIC[0]).status_code == 201
    filler = fill(small_disk)
    refused = 0
    for number in range(300):  # the log has room left in it
        if service.enroll(f"b{number}", KANNADA[0]).status_code == 503:
            refused += 1
            break
    assert refused
    becomes(service, 503)
    filler.unlink()
    becomes(service, 200)
    assert service.enroll("c", KANNADA[1]).status_code == 201
    acknowledged = [
        entry["identity"]
        for entry in service.client.get("/collections/default/identities?limit=1000").json()["identities"]
    ]
    assert acknowledged == sorted(["a", "c", *(f"b{n}" for n in range(number))])


@as_root
def test_a_read_only_disk_is_named_and_used_again_once_it_can_be_written(serve: Serve, small_disk: Path) -> None:
    """As after a crash that made the kernel mount it so: searched meanwhile, nothing is enrolled."""
    service = serve(data_dir=small_disk / "data")
    service.enroll("a", ANGELIC[0])
    service.kill()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    service.start(log=small_disk.parent / "log", ready=503)
    assert "read-only" in ready(service).json()["detail"]
    assert found(service, ANGELIC[0]) == ["a"]
    assert_problem(service.enroll("b", KANNADA[0]), 503, "storage_unavailable")
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    becomes(service, 200)
    assert service.enroll("b", KANNADA[0]).status_code == 201
    assert found(service, ANGELIC[0], KANNADA[0]) == ["a", "b"]
    service.stop()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    refused = diptych("serve", "--checkpoint", GOLDEN, "--data-dir", small_disk / "data", "--port", "0")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "can be written to. The database is " in refused.stderr


def test_a_damaged_database_is_refused_by_name_and_restored_from_a_backup(serve: Serve, tmp_path: Path) -> None:
    """The service says so on /readyz, a backup of it is refused, the backup before it is put back."""
    service, data, backup = serve(), tmp_path / "data", tmp_path / "backup"
    for number in range(40):
        service.enroll(f"i{number}", *ANGELIC)
    assert diptych("backup", backup, "--data-dir", data).returncode == 0
    service.stop()
    size = (data / "diptych.db").stat().st_size
    with (data / "diptych.db").open("r+b") as file:
        for page in range(3 * size // 16384, size // 4096):  # the last to come: what is enrolled, not the schema
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    service.start(ready=503)
    problem = assert_problem(ready(service), 503, "gallery_damaged")
    assert "diptych restore" in problem["detail"]
    refused = diptych("backup", tmp_path / "another", "--data-dir", data)
    assert refused.returncode != 0 and "damaged" in refused.stderr and not (tmp_path / "another").exists()
    service.stop()
    assert diptych("restore", backup, "--data-dir", data, "--replace").returncode == 0
    service.start()
    assert ready(service).status_code == 200
    assert service.search(ANGELIC[0]).json()["gallery_size"] == 40


# --- PostgreSQL -----------------------------------------------------------------------------------------------


def test_postgresql_may_be_stopped_and_started(serve: Serve, tmp_path: Path) -> None:
    """Meanwhile 503 with what is wrong; afterwards, without hands, everything that was acknowledged."""
    with running_postgresql(tmp_path / "pg") as server:
        url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        service = serve(database_url=url)
        assert service.enroll("a", *ANGELIC[:2]).status_code == 201
        server.stop()
        assert_problem(service.search(ANGELIC[0]), 503, "storage_unavailable")
        assert_problem(service.enroll("b", KANNADA[0]), 503, "storage_unavailable")
        assert "can't be reached" in assert_problem(ready(service), 503, "storage_unavailable")["detail"]
        assert service.verify(ANGELIC[0], ANGELIC[1]).status_code == 200
        server.start()
        becomes(service, 200)
        assert found(service, ANGELIC[1]) == ["a"]
        assert service.enroll("b", KANNADA[0]).status_code == 201
        assert found(service, KANNADA[0]) == ["b"]
        service.stop()
        done = diptych("serve", "--port", "0", **{**service.environment, "DIPTYCH_DATABASE_URL": url + "x"})
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


def test_replicas_on_one_postgresql_see_each_others_writes_at_once(
    serve: Serve, tmp_path: Path, postgres: Callable[[], str]
) -> None:
    """Enrolled here, found there; deleted there, gone here."""
    url = postgres()
    one, other = (serve(data_dir=tmp_path / name, database_url=url) for name in ("one", "other"))
    for number, path in enumerate(ANGELIC):
        one.enroll(f"i{number}", path)
        assert found(other, path) == [f"i{number}"]
        assert other.client.delete(f"/collections/default/identities/i{number}").status_code == 204
        assert one.search(path).json()["matches"] == []


# --- promises -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
def test_a_clock_that_jumps_changes_nothing(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two years ahead while it runs, and ten back: repeats, enrolments, deletions and searches are as ever."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    monkeypatch.setenv("LD_PRELOAD", str(FAKETIME))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    service = serve(keep_images="yes")
    for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE"):
        monkeypatch.delenv(name)
    key = {"Idempotency-Key": "once"}
    files = {"images": (ANGELIC[0].name, ANGELIC[0].read_bytes())}
    first = service.client.post("/enroll", data={"identity": "a"}, files=files, headers=key)
    years = []
    for number, jump in enumerate(("+730d", "-3650d", "+0")):
        clock.write_text(jump)
        again = service.client.post("/enroll", data={"identity": "a"}, files=files, headers=key)
        assert (again.status_code, again.json()) == (201, first.json())
        assert service.enroll(f"b{number}", KANNADA[number]).status_code == 201
        entry = service.client.get(f"/collections/default/identities/b{number}").json()
        years.append(int(entry["created_at"][:4]))
        assert found(service, ANGELIC[0], KANNADA[number]) == ["a", f"b{number}"]
    assert years[0] - years[1] == 12  # the clock did jump
    assert service.client.delete("/collections/default/identities/a").status_code == 204
    assert "a" not in found(service, ANGELIC[0])


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_nothing_is_answered_before_it_is_synced(serve: Serve, tmp_path: Path) -> None:
    """Each 201 and 204 leaves after a sync of the log, and of the kept image, has come back since the one before."""
    service = serve(keep_images="yes")
    service.enroll("warm", KANNADA[0])
    trace = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,sendto,sendmsg,write,writev"
    tracer = subprocess.Popen(
        ["strace", "-f", "-y", "-s", "16", "-e", calls, "-p", str(service.process.pid), "-o", str(trace)],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not (trace.exists() and trace.stat().st_size) and time.monotonic() < deadline:
        ready(service)
        time.sleep(0.1)
    for number, path in enumerate(ANGELIC):
        assert service.enroll(f"i{number}", path).status_code == 201
        assert service.client.delete(f"/collections/default/identities/i{number}").status_code == 204
    tracer.send_signal(signal.SIGINT)
    tracer.wait(20)
    answers, logs, originals, unfinished = 0, 0, 0, {}
    for line in trace.read_text().splitlines():
        thread, _, call = line.partition(" ")
        if "resumed>" in call:
            call = unfinished.pop(thread, "") + call
        elif "<unfinished" in call:
            unfinished[thread] = call
            if "sync(" in call:
                continue
        if re.search(r"f(data)?sync\(.*diptych\.db-wal>.*= 0", call):
            logs += 1
        elif re.search(r"fsync\(.*originals/.*= 0", call):
            originals += 1
        elif '"HTTP/1.1 201' in call and "resumed>" not in call:
            assert logs and originals, "enrolled, and answered before it was on disk"
            answers, logs, originals = answers + 1, 0, 0
        elif '"HTTP/1.1 204' in call and "resumed>" not in call:
            assert logs, "deleted, and answered before it was on disk"
            answers, logs = answers + 1, 0
    assert answers == 2 * len(ANGELIC)
