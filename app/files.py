"""Files that are whole or not there: written beside their place, synced, then renamed into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def partial_path(path: Path) -> Path:
    """Where `replacing` writes a file until it is whole. A killed process may leave it behind."""
    return path.with_name(f".{path.name}")


@contextmanager
def replacing(path: Path, *, private: bool = False, partial: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` when the block ends: then it is on disk, name and all.

    If the block raises, what was at `path` stays as it was. `private` files can be read by their owner alone. Where
    several processes may write the same file, each needs a `partial` path of its own, in the same directory.
    """
    unfinished = partial or partial_path(path)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
