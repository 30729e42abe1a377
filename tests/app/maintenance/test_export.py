"""Exports are files from outside: what is wrong with one is named, and nothing of it that was read is half done."""

import base64
import gzip
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.database.sqlite import SQLite
from app.database.transactions import Database
from app.errors import UsageError
from app.gallery.collections import delete_collection, list_collections
from app.gallery.encoders import Loaded
from app.gallery.enrolment import NewReference, enroll_images
from app.gallery.identities import change_identity, delete_identity, get_identity
from app.gallery.originals import Originals
from app.maintenance.export import export_gallery
from app.maintenance.import_jsonl import import_export

LOADED = Loaded("model", 4, "")


def sha256(n: int) -> str:
    return f"{n:064x}"


def embedded(n: int) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[n % 4]


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Three identities with two references each, in a file."""
    database = SQLite(tmp_path / "source.db")
    database.migrate()
    for number in range(3):
        images = [NewReference("x.png", sha256(2 * number + n), embedded(n)) for n in range(2)]
        about = {"number": number}
        database.write(lambda c, i=f"i{number}", a=about, new=images: enroll_images(c, "c", i, a, new, LOADED))
    export_gallery(database, tmp_path / "all.jsonl", None, progress=False)
    database.close()
    return tmp_path / "all.jsonl"


def read_back(database: Database, file: Path, tmp_path: Path) -> tuple[int, int]:
    counts = import_export(database, file, Originals(tmp_path, "no", database), progress=False)
    return counts.references, counts.held


def test_an_export_is_for_its_owner_alone(exported: Path) -> None:
    """It holds names and embeddings."""
    assert stat.S_IMODE(exported.stat().st_mode) == 0o600


def test_importing_again_reverts_nothing(exported: Path, database: Database, tmp_path: Path) -> None:
    """What was changed since stays: metadata, a name that is taken; what was deleted comes back, being asked for."""
    assert read_back(database, exported, tmp_path) == (6, 0)
    database.write(lambda c: change_identity(c, "c", "i1", None, {"number": None, "new": True}))
    database.write(lambda c: delete_identity(c, "c", "i2"))
    assert read_back(database, exported, tmp_path) == (6, 4)
    with database.read() as connection:
        about = {name: get_identity(connection, "c", name)["metadata"] for name in ("i0", "i1", "i2")}
    assert about == {"i0": {"number": 0}, "i1": {"new": True}, "i2": {"number": 2}}


Change = Callable[[list[Any]], None]


def of_first(**fields: Any) -> Change:
    """Other fields in the first reference of the first identity."""

    def change(lines: list[Any]) -> None:
        lines[1]["references"][0] |= fields

    return change


def twice(lines: list[Any]) -> None:
    lines[2]["references"][0]["reference_id"] = lines[1]["references"][0]["reference_id"]


def deep(lines: list[Any]) -> None:
    lines[1]["metadata"] = json.loads('{"a":' * 500 + "1" + "}" * 500)


BROKEN: dict[str, tuple[str, Change]] = {
    "cut off": ("cut off", lambda lines: lines.pop()),
    "a line is missing": ("lacks lines", lambda lines: lines.pop(2)),
    "its end in the middle": ("lines after the line that should be its last", lambda lines: lines.append(lines[1])),
    "without its head": ("not an export", lambda lines: lines.pop(0)),
    "a newer format": ("reads version 1", lambda lines: lines[0].update(version=2)),
    "no dimensions": ("not an export", lambda lines: lines[0].update(embedding_dim=0)),
    "other dimensions": ("not a unit vector", lambda lines: lines[0].update(embedding_dim=5)),
    "a misspelt field": ("line 2", lambda lines: lines[1].update(colection="c")),
    "a name with a slash": ("line 2", lambda lines: lines[1].update(identity="a/b")),
    "metadata too deep": ("nested too deeply", deep),
    "NUL in metadata": ("NUL", lambda lines: lines[1].update(metadata={"a": "\0"})),
    "NUL in a date": ("created_at", of_first(created_at="2026\0")),
    "NUL in an id": ("reference_id", of_first(reference_id="a\0b")),
    "no hash": ("image_sha256", of_first(image_sha256="zz")),
    "no base64": ("not base64", of_first(embedding="!!!!")),
    "no unit vector": ("not a unit vector", of_first(embedding=base64.b64encode(bytes(16)).decode())),
    "one id twice": ("same reference twice", twice),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_export_that_was_altered_is_named(case: str, exported: Path, tmp_path: Path) -> None:
    """In one line."""
    words, change = BROKEN[case]
    lines = [json.loads(line) for line in exported.read_text().splitlines()]
    change(lines)
    exported.write_text("".join(json.dumps(line) + "\n" for line in lines))
    database = SQLite(tmp_path / "target.db")
    database.migrate()
    with pytest.raises(UsageError, match=words) as refused:
        read_back(database, exported, tmp_path)
    assert len(str(refused.value).splitlines()) == 1
    database.close()


@pytest.mark.parametrize(
    "harm",
    [
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:20] + os.urandom(40) + packed[60:],
        lambda _: b"not compressed at all",
        lambda _: gzip.compress(b"\xff\xfe no text"),
        lambda _: gzip.compress(b'{"a":' * 100_000),
        lambda _: b"",
    ],
    ids=["torn", "altered", "plain", "no text", "nested", "empty"],
)
def test_a_file_that_is_no_whole_archive_is_named(
    harm: Callable[[bytes], bytes], exported: Path, tmp_path: Path
) -> None:
    """Rather than a traceback."""
    broken = tmp_path / "all.jsonl.gz"
    broken.write_bytes(harm(gzip.compress(exported.read_bytes())))
    database = SQLite(tmp_path / "target.db")
    database.migrate()
    with pytest.raises(UsageError):
        read_back(database, broken, tmp_path)
    database.close()


def test_an_export_of_another_encoder_or_under_taken_ids_is_refused(
    exported: Path, database: Database, tmp_path: Path
) -> None:
    """Nothing is changed."""
    image = NewReference("f", "x", np.eye(8, dtype=np.float32)[0])
    database.write(lambda c: enroll_images(c, "mine", "a", {}, [image], Loaded("another", 8, "")))
    with pytest.raises(UsageError, match="mport it into an empty gallery"):
        read_back(database, exported, tmp_path)
    database.write(lambda c: delete_collection(c, "mine"))
    read_back(database, exported, tmp_path)
    database.write(lambda c: change_identity(c, "c", "i0", "renamed", None))
    with pytest.raises(UsageError, match="under other names"):
        read_back(database, exported, tmp_path)
    with database.read() as connection:
        assert [entry["references"] for entry in list_collections(connection)] == [6]
