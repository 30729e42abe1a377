"""diptych import of a folder tree, by the real command."""

import os
import shutil
from pathlib import Path

from tests.characters import ANGELIC, KANNADA, run
from tests.files import EVALUATION, GOLDEN
from tests.service import InProcess, diptych


def test_a_folder_tree_is_imported_and_goes_on_where_it_was(in_process: InProcess, tmp_path: Path) -> None:
    """Into the gallery of a service that runs; the second time everything is there already."""
    service, data = in_process(), tmp_path / "data"
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


def test_images_imported_again_are_kept_from_then_on(tmp_path: Path) -> None:
    """The first import kept none, the second keeps all, the third has nothing left to do."""
    data, tree = tmp_path / "data", tmp_path / "tree"
    shutil.copytree(EVALUATION / "Angelic" / "character01", tree / "a")
    count = len(list(tree.rglob("*.png")))
    command = ("import", tree, "--data-dir", data, "--checkpoint", GOLDEN)
    assert f"{count} images enrolled" in run(*command, DIPTYCH_KEEP_IMAGES="no")
    assert not (data / "originals").exists()
    again = run(*command, DIPTYCH_KEEP_IMAGES="yes")
    assert f"0 images enrolled into 'default', 0 were already enrolled\n{count} more were already enrolled" in again
    kept = sorted(path.read_bytes() for path in (data / "originals").rglob("*") if path.is_file())
    assert kept == sorted(path.read_bytes() for path in tree.rglob("*.png"))
    third = run(*command, DIPTYCH_KEEP_IMAGES="yes")
    assert f"0 images enrolled into 'default', {count} were already enrolled" in third and "more were" not in third
