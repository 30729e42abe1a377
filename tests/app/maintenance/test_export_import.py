"""diptych export and import, by the real commands."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.characters import KANNADA, answers, enroll_three, kept_files, run
from tests.service import InProcess, diptych


@pytest.mark.parametrize("to", ["sqlite", "postgresql"])
def test_an_export_imported_elsewhere_answers_as_before(
    in_process: InProcess, tmp_path: Path, postgres: Callable[[], str], to: str
) -> None:
    """Same names, ids, metadata and distances, in another file or in PostgreSQL, with the kept images; twice too."""
    service = in_process(keep_images="yes")
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
    other = in_process(data_dir=elsewhere, **{name[8:].lower(): value for name, value in there.items()})
    assert answers(other) == expected
    one = "/collections/default/identities/kannada"
    assert other.client.get(one).json()["references"] == service.client.get(one).json()["references"]
    assert set(kept_files(elsewhere)) == set(kept_files(tmp_path / "data"))


def test_an_export_that_is_cut_off_is_named(in_process: InProcess, tmp_path: Path) -> None:
    """In one line, with status 2."""
    service = in_process()
    enroll_three(service)
    whole = tmp_path / "all.jsonl.gz"
    run("export", whole, "--data-dir", tmp_path / "data")
    whole.write_bytes(whole.read_bytes()[:-300])
    done = diptych("import", whole, "--quiet", "--data-dir", tmp_path / "torn")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
