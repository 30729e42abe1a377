"""The life of a gallery: kept images, import and export, backup and restore, another encoder. Real commands."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pysqlite3
import pytest
from moto.server import ThreadedMotoServer

from tests.files import EVALUATION, GOLDEN, drawings
from tests.service import Serve, Service, assert_problem, diptych

ANGELIC, KANNADA, TIBETAN = (
    drawings(name) for name in ("Angelic/character01", "Kannada/character02", "Tibetan/character03")
)


def run(*arguments: str | Path, **environment: str) -> str:
    done = diptych(*arguments, "--quiet", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kept_files(data: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (data / "originals").rglob("*") if path.is_file())


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(service: Service, **fields: str) -> list[tuple[str, float]]:
    """What a search for each of three drawings finds."""
    return [
        (match["identity"], round(match["distance"], 6))
        for path in (ANGELIC[5], KANNADA[5], TIBETAN[5])
        for match in service.search(path, **fields).json()["matches"]
    ]


def enroll_three(service: Service) -> None:
    for name, images in (("angelic", ANGELIC), ("kannada", KANNADA), ("tibetan", TIBETAN)):
        assert service.enroll(name, *images[:3], metadata=json.dumps({"of": name})).status_code == 201


# --- kept images ----------------------------------------------------------------------------------------------


def test_images_are_not_kept_unless_asked_for(serve: Serve, tmp_path: Path) -> None:
    """Privacy is the default."""
    service = serve()
    enroll_three(service)
    assert kept_files(tmp_path / "data") == []


def test_kept_images_are_what_was_uploaded_and_go_with_their_references(serve: Serve, tmp_path: Path) -> None:
    """With a reference, an identity, a collection: within a second, and only the owner can read them meanwhile."""
    service, data = serve(keep_images="yes"), tmp_path / "data"
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


def test_an_image_enrolled_again_where_images_are_kept_now_is_kept(serve: Serve, tmp_path: Path) -> None:
    """That is how a gallery becomes one that can change its encoder."""
    service = serve()
    first = service.enroll("a", ANGELIC[0]).json()["references"]
    service.stop()
    service = serve(keep_images="yes")
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
    serve: Serve, bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And deleted there, with their references; nothing of them is in the data directory."""
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    service = serve(keep_images="s3://kept/diptych")
    enroll_three(service)
    assert objects(bucket) == 9
    assert not (tmp_path / "data" / "originals").exists()
    assert service.client.delete("/collections/default/identities/angelic").status_code == 204
    wait_for(lambda: objects(bucket) == 6)


def test_a_bucket_that_went_away_is_named_until_it_is_back(
    serve: Serve, bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On /readyz too, for enrolments fail meanwhile; without a restart it is ready again, and leaves no trial there."""
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    service = serve(keep_images="s3://later/diptych")
    problem = assert_problem(service.enroll("a", ANGELIC[0]), 503, "storage_unavailable")
    assert "DIPTYCH_KEEP_IMAGES" in problem["detail"]
    assert_problem(service.client.get("/readyz"), 503, "storage_unavailable")
    assert httpx.put(f"{bucket['AWS_ENDPOINT_URL']}/later").status_code == 200
    wait_for(lambda: service.client.get("/readyz").status_code == 200)
    assert httpx.get(f"{bucket['AWS_ENDPOINT_URL']}/later?list-type=2").text.count("<Key>") == 0


def test_a_bucket_that_cannot_be_reached_enrolls_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """503, and nothing half done."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    service = serve(keep_images="s3://kept/diptych")
    assert_problem(service.enroll("a", ANGELIC[0]), 503, "storage_unavailable")
    assert service.client.get("/collections").json() == {"collections": []}


# --- import and export ----------------------------------------------------------------------------------------


def test_a_folder_tree_is_imported_and_goes_on_where_it_was(serve: Serve, tmp_path: Path) -> None:
    """Into the gallery of a service that runs; the second time everything is there already."""
    service, data = serve(), tmp_path / "data"
    tree = tmp_path / "tree"
    shutil.copytree(EVALUATION / "Angelic", tree / "Angelic")
    (tree / "Angelic" / "character01" / "notes.txt").write_text("no image")
    strange = os.fsencode(tree / "Angelic" / "character01") + b"/\xff\xfe.png"
    with open(strange, "wb") as file:  # noqa: PTH123  a name that is no Unicode
        file.write(KANNADA[0].read_bytes())
    out = run("import", tree, "--data-dir", data, "--checkpoint", GOLDEN, "--collection", "letters")
    count = len(list(EVALUATION.glob("Angelic/*/*.png"))) + 1
    assert f"{count} images enrolled" in out and "1 files refused" in out and "notes.txt" in out
    found = service.search(ANGELIC[0], collection="letters").json()
    assert found["matches"][0]["identity"] == "Angelic:character01" and found["matches"][0]["distance"] < 1e-6
    assert found["references"] == count
    shutil.copytree(EVALUATION / "Kannada", tree / "Kannada")
    more = len(list(EVALUATION.glob("Kannada/*/*.png")))
    assert "not kept" not in out
    again = run("import", tree, "--data-dir", data, "--checkpoint", GOLDEN, "--collection", "letters")
    assert f"{more} images enrolled" in again and f"{count} were already enrolled" in again
    one, two = tmp_path / "one" / "a", tmp_path / "two" / "b"
    for folder, path, keep in ((one, ANGELIC[0], "yes"), (two, KANNADA[0], "no")):
        folder.mkdir(parents=True)
        shutil.copy(path, folder)
        out = run("import", folder.parent, "--data-dir", data, "--checkpoint", GOLDEN, DIPTYCH_KEEP_IMAGES=keep)
        assert ("not kept" in out) == (keep == "no")
    mistaken = diptych("import", ANGELIC[0].parent, "--data-dir", data, "--checkpoint", GOLDEN)
    assert mistaken.returncode == 2 and mistaken.stderr.count("\n") == 1


@pytest.mark.parametrize("to", ["sqlite", "postgresql"])
def test_an_export_imported_elsewhere_answers_as_before(
    serve: Serve, tmp_path: Path, postgres: Callable[[], str], to: str
) -> None:
    """Same names, ids, metadata and distances, in another file or in PostgreSQL, with the kept images; twice too."""
    service = serve(keep_images="yes")
    enroll_three(service)
    service.enroll("empty", KANNADA[0], collection="second")
    expected = answers(service)
    export = ("export", tmp_path / "all.jsonl.gz", "--images", "--data-dir", tmp_path / "data")
    run(*export, DIPTYCH_KEEP_IMAGES="yes")
    assert diptych(*export).returncode == 2  # it is there already
    there = {"DIPTYCH_DATABASE_URL": postgres()} if to == "postgresql" else {}
    elsewhere = tmp_path / "elsewhere"
    for said in ("10 references of 4 identities enrolled", "10 were already enrolled"):
        out = run("import", tmp_path / "all.jsonl.gz", "--data-dir", elsewhere, DIPTYCH_KEEP_IMAGES="yes", **there)
        assert said in out
    other = serve(data_dir=elsewhere, **{name[8:].lower(): value for name, value in there.items()})
    assert answers(other) == expected
    one = "/collections/default/identities/kannada"
    assert other.client.get(one).json()["references"] == service.client.get(one).json()["references"]
    assert set(kept_files(elsewhere)) == set(kept_files(tmp_path / "data"))


def test_an_export_that_is_cut_off_is_named(serve: Serve, tmp_path: Path) -> None:
    """In one line, with status 2."""
    service = serve()
    enroll_three(service)
    whole = tmp_path / "all.jsonl.gz"
    run("export", whole, "--data-dir", tmp_path / "data")
    whole.write_bytes(whole.read_bytes()[:-300])
    done = diptych("import", whole, "--quiet", "--data-dir", tmp_path / "torn")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


# --- backup and restore ---------------------------------------------------------------------------------------


def test_a_backup_under_load_holds_everything_acknowledged_before_it(serve: Serve, tmp_path: Path) -> None:
    """Eight hands enroll and delete meanwhile; restored elsewhere, what was acknowledged before is found."""
    service = serve(keep_images="yes")
    enroll_three(service)
    stop = threading.Event()

    def load(hand: int) -> None:
        while not stop.is_set():
            service.enroll(f"busy{hand}", TIBETAN[hand % 5])
            service.client.delete(f"/collections/default/identities/busy{hand}")

    hands = [threading.Thread(target=load, args=(hand,)) for hand in range(4)]
    for hand in hands:
        hand.start()
    try:
        said = run("backup", tmp_path / "backup", "--data-dir", tmp_path / "data")
    finally:
        stop.set()
        for hand in hands:
            hand.join()
    assert "references and" in said
    again = diptych("backup", tmp_path / "backup", "--data-dir", tmp_path / "data")
    assert again.returncode == 2 and "exists" in again.stderr
    run("restore", tmp_path / "backup", "--data-dir", tmp_path / "restored")
    other = serve(data_dir=tmp_path / "restored", keep_images="yes")
    names = {name for name, _ in answers(other) if not name.startswith("busy")}
    assert names == {"angelic", "kannada", "tibetan"}
    assert set(kept_files(tmp_path / "restored")) >= {path.read_bytes() for path in [*ANGELIC[:3], *KANNADA[:3]]}


def test_a_restored_gallery_is_that_of_the_backup(serve: Serve, tmp_path: Path) -> None:
    """Not while a service has it open; what was there is moved aside; caches of the later history are not believed."""
    service, data, backup = serve(), tmp_path / "data", tmp_path / "backup"
    enroll_three(service)
    expected = answers(service)
    run("backup", backup, "--data-dir", data)
    service.client.delete("/collections/default/identities/angelic")
    service.enroll("later", ANGELIC[4])
    for options in ((), ("--replace",)):
        refused = diptych("restore", backup, "--data-dir", data, *options)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "in use" in refused.stderr
    service.stop()
    run("restore", backup, "--data-dir", data, "--replace")
    (aside,) = data.glob("replaced-*")
    assert (aside / "diptych.db").is_file()
    service.start()
    assert answers(service) == expected


@pytest.mark.parametrize("harm", ["database", "manifest", "image", "nothing there"])
def test_a_backup_that_is_not_whole_is_refused(serve: Serve, tmp_path: Path, harm: str) -> None:
    """By name, before anything is replaced."""
    service, backup = serve(keep_images="yes"), tmp_path / "backup"
    enroll_three(service)
    run("backup", backup, "--data-dir", tmp_path / "data")
    if harm == "database":
        with (backup / "diptych.db").open("r+b") as file:
            file.seek(5000)
            file.write(os.urandom(10))
    elif harm == "manifest":
        (backup / "backup.json").write_text("{}")
    elif harm == "image":
        next(path for path in (backup / "originals").rglob("*") if path.is_file()).unlink()
    else:
        shutil.rmtree(backup)
        backup.mkdir()
    done = diptych("restore", backup, "--data-dir", tmp_path / "restored")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "restored" / "diptych.db").exists()


# --- another encoder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_a_gallery_moves_to_another_encoder_while_the_old_one_answers(
    serve: Serve, trained: Path, tmp_path: Path, postgres: Callable[[], str], where: str
) -> None:
    """Kept images are embedded anew, the running service changes over by itself, and back again."""
    place = {"database_url": postgres()} if where == "postgresql" else {}
    environment = {f"DIPTYCH_{name.upper()}": value for name, value in place.items()}
    service = serve(keep_images="yes", **place)
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
        out = run("migrate", "--checkpoint", trained, "--data-dir", tmp_path / "data", **environment)
        assert "9 images embedded" in out
        wait_for(lambda: service.client.get("/checkpoint").json()["model_id"] != model)
    finally:
        stop.set()
        asking.join()
    assert statuses <= {200, 503} and 200 in statuses
    wait_for(lambda: service.search(ANGELIC[5]).status_code == 200)
    after = answers(service)
    assert {name for name, _ in after} == {name for name, _ in before} and after != before
    fresh = serve(trained, tmp_path / "fresh")
    enroll_three(fresh)
    assert answers(fresh) == after
    assert service.enroll("later", KANNADA[4]).status_code == 201

    refused = diptych("serve", "--checkpoint", GOLDEN, "--data-dir", tmp_path / "data", "--port", "0", **environment)
    assert refused.returncode == 2 and "diptych migrate" in refused.stderr and str(trained) in refused.stderr

    out = run("migrate", "--checkpoint", GOLDEN, "--data-dir", tmp_path / "data", **environment)
    assert "1 images embedded" in out  # what was enrolled since
    wait_for(lambda: service.client.get("/checkpoint").json()["model_id"] == model)
    assert service.client.delete("/collections/default/identities/later").status_code == 204
    assert answers(service) == before
    out = run("migrate", "--forget-others", "--data-dir", tmp_path / "data", **environment)
    assert "9 embeddings of other encoders deleted" in out
    assert answers(service) == before


def test_without_kept_images_a_migration_says_what_it_needs(serve: Serve, trained: Path, tmp_path: Path) -> None:
    """And takes it: the original files, known by their bytes."""
    service = serve()
    enroll_three(service)
    service.stop()
    data = tmp_path / "data"
    refused = diptych("migrate", "--checkpoint", trained, "--data-dir", data)
    assert refused.returncode == 1 and "9 of 9 references have no kept image" in refused.stderr
    assert "--images" in refused.stderr and refused.stderr.count("\n") == 1
    out = run("migrate", "--checkpoint", trained, "--images", EVALUATION, "--data-dir", data)
    assert "9 images embedded" in out
    service = serve(trained)
    assert {name for name, _ in answers(service)} == {"angelic", "kannada", "tibetan"}


def test_an_interrupted_migration_goes_on_where_it_was(
    serve: Serve, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after half of it: the old encoder answers as before, and the same command embeds the other half."""
    from app.checkpoint.encoder import Encoder
    from app.checkpoint.store import load_checkpoint
    from app.database.sqlite import SQLite
    from app.gallery.encoders import Loaded
    from app.gallery.originals import Originals
    from app.maintenance import migrate

    service = serve(keep_images="yes")
    enroll_three(service)
    before, data = answers(service), tmp_path / "data"
    monkeypatch.setattr(migrate, "AT_ONCE", 4)
    monkeypatch.setattr(migrate, "LAST", 2)
    database = SQLite(data / "diptych.db")
    encoder = Encoder(load_checkpoint(str(trained)))
    migration = migrate.Migration(
        database,
        Originals(data, "yes", database),
        encoder,
        Loaded(encoder.model_id, encoder.embedding_dim, str(trained)),
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
    assert "5 images embedded" in run("migrate", "--checkpoint", trained, "--data-dir", data)


def test_a_kept_image_that_is_damaged_stops_a_migration_by_name(serve: Serve, trained: Path, tmp_path: Path) -> None:
    """Nothing is switched; the reference is named."""
    service, data = serve(keep_images="yes"), tmp_path / "data"
    enroll_three(service)
    expected = answers(service)
    with pysqlite3.connect(data / "diptych.db") as connection:
        (original,) = connection.execute("SELECT original_id FROM reference ORDER BY key LIMIT 1").fetchone()
    connection.close()
    (path,) = (data / "originals").rglob(original)
    path.write_bytes(path.read_bytes()[:-20])
    refused = diptych("migrate", "--checkpoint", trained, "--data-dir", data)
    assert refused.returncode == 1 and "default/angelic/" in refused.stderr
    assert answers(service) == expected
