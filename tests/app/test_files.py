"""Files that are whole or not there."""

import stat
from pathlib import Path

import pytest

from app.files import partial_path, replacing


def test_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    """Until the block ends, what was there stays."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_file_leaves_what_was_there(tmp_path: Path) -> None:
    """And nothing beside it; what a killed process left is overwritten."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    partial_path(path).write_bytes(b"left by a killed process, and longer")

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_private_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """From its first byte on."""
    path = tmp_path / "file"
    with replacing(path, private=True):
        assert stat.S_IMODE(partial_path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
