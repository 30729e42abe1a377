"""diptych migrate: a gallery changes to another encoder, by the real command."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pysqlite3
import pytest

from tests.characters import ANGELIC, KANNADA, answers, enroll_three, run
from tests.files import CALIBRATED, EVALUATION, GOLDEN
from tests.service import InProcess, diptych, wait_for


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_a_gallery_moves_to_another_encoder_while_the_old_one_answers(
    in_process: InProcess, tmp_path: Path, postgres: Callable[[], str], where: str
) -> None:
    """Kept images are embedded anew, the running service changes over by itself, and back again."""
    place = {"database_url": postgres()} if where == "postgresql" else {}
    environment = {f"DIPTYCH_{name.upper()}": value for name, value in place.items()}
    service = in_process(keep_images="yes", **place)
    enroll_three(service)
    before, model = answers(service), service.client.get("/checkpoint").json()["model_id"]
    statuses: set[int] = set()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            statuses.add(service.search(ANGELIC[5]).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        out = run("migrate", "--checkpoint", CALIBRATED, "--data-dir", tmp_path / "data", **environment)
        assert "9 images embedded" in out
        wait_for(lambda: service.client.get("/checkpoint").json()["model_id"] != model)
    finally:
        stop.set()
        asking.join()
    assert statuses <= {200, 503} and 200 in statuses
    wait_for(lambda: service.search(ANGELIC[5]).status_code == 200)
    after = answers(service)
    assert {name for name, _ in after} == {name for name, _ in before} and after != before
    fresh = in_process(CALIBRATED, tmp_path / "fresh")
    enroll_three(fresh)
    assert answers(fresh) == after
    assert service.enroll("later", KANNADA[4]).status_code == 201

    refused = diptych("serve", "--checkpoint", GOLDEN, "--data-dir", tmp_path / "data", "--port", "0", **environment)
    assert refused.returncode == 2 and "diptych migrate" in refused.stderr and CALIBRATED in refused.stderr

    out = run("migrate", "--checkpoint", GOLDEN, "--data-dir", tmp_path / "data", **environment)
    assert "1 images embedded" in out  # what was enrolled since
    wait_for(lambda: service.client.get("/checkpoint").json()["model_id"] == model)
    assert service.client.delete("/collections/default/identities/later").status_code == 204
    assert answers(service) == before
    out = run("migrate", "--forget-others", "--data-dir", tmp_path / "data", **environment)
    assert "9 embeddings of other encoders deleted" in out
    assert answers(service) == before


def test_without_kept_images_a_migration_says_what_it_needs(in_process: InProcess, tmp_path: Path) -> None:
    """And takes it: the original files, known by their bytes."""
    service = in_process()
    enroll_three(service)
    service.stop()
    data = tmp_path / "data"
    refused = diptych("migrate", "--checkpoint", CALIBRATED, "--data-dir", data)
    assert refused.returncode == 1 and "9 of 9 references have no kept image" in refused.stderr
    assert "--images" in refused.stderr and refused.stderr.count("\n") == 1
    out = run("migrate", "--checkpoint", CALIBRATED, "--images", EVALUATION, "--data-dir", data)
    assert "9 images embedded" in out
    service = in_process(CALIBRATED)
    assert {name for name, _ in answers(service)} == {"angelic", "kannada", "tibetan"}


def test_an_interrupted_migration_goes_on_where_it_was(
    in_process: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after half of it: the old encoder answers as before, and the same command embeds the other half."""
    from app.checkpoint.encoder import Encoder
    from app.checkpoint.store import load_checkpoint
    from app.database.sqlite import SQLite
    from app.gallery.encoders import Loaded
    from app.gallery.originals import Originals
    from app.maintenance import migrate

    service = in_process(keep_images="yes")
    enroll_three(service)
    before, data = answers(service), tmp_path / "data"
    monkeypatch.setattr(migrate, "AT_ONCE", 4)
    monkeypatch.setattr(migrate, "LAST", 2)
    database = SQLite(data / "diptych.db")
    encoder = Encoder(load_checkpoint(CALIBRATED))
    migration = migrate.Migration(
        database,
        Originals(data, "yes", database),
        encoder,
        Loaded(encoder.model_id, encoder.embedding_dim, CALIBRATED),
        None,
    )
    embed = migration._embeddings
    calls: list[Any] = []

    def dies(some: Any) -> Any:
        calls.append(some)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return embed(some)

    monkeypatch.setattr(migration, "_embeddings", dies)
    with pytest.raises(KeyboardInterrupt):
        migration.run(progress=False)
    database.close()
    assert answers(service) == before
    assert "5 images embedded" in run("migrate", "--checkpoint", CALIBRATED, "--data-dir", data)


def test_a_kept_image_that_is_damaged_stops_a_migration_by_name(in_process: InProcess, tmp_path: Path) -> None:
    """Nothing is switched; the reference is named."""
    service, data = in_process(keep_images="yes"), tmp_path / "data"
    enroll_three(service)
    expected = answers(service)
    with pysqlite3.connect(data / "diptych.db") as connection:
        (original,) = connection.execute("SELECT original_id FROM reference ORDER BY key LIMIT 1").fetchone()
    connection.close()
    (path,) = (data / "originals").rglob(original)
    path.write_bytes(path.read_bytes()[:-20])
    refused = diptych("migrate", "--checkpoint", CALIBRATED, "--data-dir", data)
    assert refused.returncode == 1 and "default/angelic/" in refused.stderr
    assert answers(service) == expected
