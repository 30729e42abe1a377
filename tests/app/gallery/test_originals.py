"""Kept images: on disk before they are named, gone after they are not, whatever was interrupted."""

from pathlib import Path

import numpy as np
import pytest

from app.database.sqlite import SQLite
from app.errors import StorageUnavailable, UsageError
from app.gallery.encoders import Loaded
from app.gallery.enrolment import NewReference, enroll_images
from app.gallery.identities import delete_identity
from app.gallery.originals import Originals
from app.settings import read_settings


def enroll(database: SQLite, identity: str, original_id: str | None) -> None:
    image = NewReference("f", identity, np.eye(4, dtype=np.float32)[0], original_id)
    database.write(lambda c: enroll_images(c, "c", identity, {}, [image], Loaded("m", 4, "")))


def files(directory: Path) -> set[str]:
    return {path.name for path in (directory / "originals").rglob("*") if path.is_file()}


@pytest.fixture
def database(tmp_path: Path) -> SQLite:
    opened = SQLite(tmp_path / "diptych.db")
    opened.migrate()
    yield opened
    opened.close()


def test_what_an_interrupted_enrolment_left_goes_at_the_second_look(database: SQLite, tmp_path: Path) -> None:
    """At the first it may still be under way; what is named stays."""
    originals = Originals(tmp_path, "yes", database)
    named, orphan = originals.keep(b"named"), originals.keep(b"orphan")
    enroll(database, "a", named)
    half = tmp_path / "originals" / "ab" / f".{named[:-2]}ab"
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"hal")
    assert originals.sweep_orphans() == 0
    assert files(tmp_path) == {named, orphan, half.name}
    assert originals.sweep_orphans() == 2
    assert files(tmp_path) == {named}


def test_an_image_whose_deletion_was_interrupted_goes_at_the_next_look(database: SQLite, tmp_path: Path) -> None:
    """The database remembers it; also where the settings no longer keep images."""
    originals = Originals(tmp_path, "yes", database)
    enroll(database, "a", originals.keep(b"one"))
    database.write(lambda c: delete_identity(c, "c", "a"))
    assert len(files(tmp_path)) == 1
    assert Originals(tmp_path, "no", database).sweep() == 1
    assert files(tmp_path) == set()
    assert originals.sweep() == 0


def test_images_in_a_bucket_that_is_not_named_any_more_are_not_forgotten(database: SQLite, tmp_path: Path) -> None:
    """It is said until the settings name it."""
    here = Originals(tmp_path, "yes", database).keep(b"one")
    for identity, original_id in (("a", "s3-somewhere"), ("b", here)):
        enroll(database, identity, original_id)
        database.write(lambda c, identity=identity: delete_identity(c, "c", identity))
    for _ in range(2):
        with pytest.raises(StorageUnavailable, match="DIPTYCH_KEEP_IMAGES"):
            Originals(tmp_path, "no", database).sweep()
    assert files(tmp_path) == set()  # the others do not wait


def test_images_of_another_gallery_in_the_same_place_are_left_alone(database: SQLite, tmp_path: Path) -> None:
    """Two galleries may share a directory or a bucket, by mistake or not; and other files may be there."""
    other = SQLite(tmp_path / "other.db")
    other.migrate()
    theirs = Originals(tmp_path, "yes", other).keep(b"theirs")
    foreign = tmp_path / "originals" / "ab" / "photo.jpg"
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_bytes(b"somebody's")
    originals = Originals(tmp_path, "yes", database)
    assert [originals.sweep_orphans() for _ in range(3)] == [0, 0, 0]
    assert files(tmp_path) == {theirs, "photo.jpg"}
    other.close()


def test_a_name_that_is_no_image_is_never_a_path(database: SQLite, tmp_path: Path) -> None:
    """Whatever a database says that somebody else wrote."""
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(StorageUnavailable, match="not a valid ID"):
        Originals(tmp_path, "yes", database).get("file-/../../secret")


@pytest.mark.parametrize("place", ["s3://", "s3://bucket", "s3://bucket/", "perhaps"])
def test_a_place_that_cannot_be_one_is_refused(place: str) -> None:
    """By name; a bucket without a folder in it may be full of other things."""
    with pytest.raises(UsageError, match="DIPTYCH_KEEP_IMAGES"):
        read_settings(keep_images=place)
