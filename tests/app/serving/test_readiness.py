"""/readyz means it: each check by name, and all that is wrong at once."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pysqlite3

from tests.files import drawings
from tests.service import Application, InProcess, assert_problem, gauge

A = drawings("Angelic/character01")


@contextmanager
def schema(data: Path, version: str) -> Iterator[None]:
    """The gallery as another version of Diptych migrated it."""

    def change(to: str) -> str:
        with pysqlite3.connect(data / "diptych.db") as connection:
            (before,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            connection.execute("UPDATE alembic_version SET version_num = ?", (to,))
        connection.close()
        return str(before)

    before = change(version)
    yield
    change(before)


def test_every_check_is_listed_with_what_was_found(service: Application) -> None:
    """On either database."""
    answer = service.client.get("/readyz").json()
    assert answer["status"] == "ready"
    assert list(answer["checks"]) == ["encoder", "accepting", "gallery", "schema", "model", "images", "disk"]
    assert all(check["ok"] and check["detail"] for check in answer["checks"].values())
    assert gauge(service, "diptych_ready") == 1
    assert all(gauge(service, f'diptych_check{{check="{name}"}}') == 1 for name in answer["checks"])


def test_a_disk_with_less_room_than_was_asked_for_is_named_with_its_numbers(
    in_process: InProcess, tmp_path: Path
) -> None:
    """Before it is full. The kept images may be on another one."""
    service = in_process(keep_images="yes")
    assert "kept images: " in service.client.get("/readyz").json()["checks"]["disk"]["detail"]
    service = in_process(data_dir=tmp_path / "other", min_free_bytes=str(2**60))
    problem = assert_problem(service.client.get("/readyz"), 503, "storage_unavailable")
    assert re.search(r"[\d,]+\.\d MiB left, and 1,099,511,627,776.0 MiB are needed", problem["detail"])
    assert gauge(service, "diptych_ready") == 0 and gauge(service, 'diptych_check{check="disk"}') == 0
    assert gauge(service, 'diptych_disk_free_bytes{place="gallery"}') > 0
    assert service.verify(A[0], A[1]).status_code == 200


def test_a_gallery_that_another_version_migrated_is_named(in_process: InProcess, tmp_path: Path) -> None:
    """While this one runs; and all that is wrong is said at once."""
    service = in_process()
    with schema(tmp_path / "data", "0042"):
        problem = assert_problem(service.client.get("/readyz"), 503, "unavailable")
        assert "0042" in problem["detail"] and not problem["checks"]["schema"]["ok"]
    service = in_process(data_dir=tmp_path / "other", min_free_bytes=str(2**60))
    with schema(tmp_path / "other", "0042"):
        both = assert_problem(service.client.get("/readyz"), 503, "unavailable")
        assert [name for name, check in both["checks"].items() if not check["ok"]] == ["schema", "disk"]
        assert "0042" in both["detail"] and "MiB left" in both["detail"]
