"""diptych backup and restore, by the real commands."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.characters import ANGELIC, KANNADA, TIBETAN, answers, enroll_three, kept_files, run
from tests.service import InProcess, diptych


def test_a_backup_under_load_holds_everything_acknowledged_before_it(in_process: InProcess, tmp_path: Path) -> None:
    """Eight hands enroll and delete meanwhile; restored elsewhere, what was acknowledged before is found."""
    service = in_process(keep_images="yes")
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
    other = in_process(data_dir=tmp_path / "restored", keep_images="yes")
    names = {name for name, _ in answers(other) if not name.startswith("busy")}
    assert names == {"angelic", "kannada", "tibetan"}
    assert set(kept_files(tmp_path / "restored")) >= {path.read_bytes() for path in [*ANGELIC[:3], *KANNADA[:3]]}


def test_a_restored_gallery_is_that_of_the_backup(in_process: InProcess, tmp_path: Path) -> None:
    """Not while a service has it open; what was there is moved aside; caches of the later history are not believed."""
    service, data, backup = in_process(), tmp_path / "data", tmp_path / "backup"
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
    assert answers(in_process()) == expected


@pytest.mark.parametrize("harm", ["database", "manifest", "image", "nothing there"])
def test_a_backup_that_is_not_whole_is_refused(in_process: InProcess, tmp_path: Path, harm: str) -> None:
    """By name, before anything is replaced."""
    service, backup = in_process(keep_images="yes"), tmp_path / "backup"
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
