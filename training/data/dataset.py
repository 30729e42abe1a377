"""A folder of labelled images to decoded images, identities and groups."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from app.arrays import ImageU8, Ints
from app.checkpoint.bulk import MAX_BYTES, Item, decode_all
from app.errors import ImageError, TooManyBytes, UsageError
from app.image.policy import FOLDER_FORMATS, Preprocessing
from app.progress import progress_bar

# More decoded pixels than this live in a file, which the kernel pages in and out.
IN_MEMORY_BYTES = 2**30


@dataclass(frozen=True)
class Dataset:
    """Decoded images, each with its identity; identities are sorted by name.

    `identity_N` indexes `identities`, and `group_of_identity` indexes `groups`. Paths are relative to `root`.
    """

    root: Path
    images_NHWC: ImageU8
    identity_N: Ints
    paths: list[str]
    identities: list[str]
    groups: list[str]
    group_of_identity: Ints
    sha256_N: list[str]
    fingerprint: str
    unreadable: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def skipped(self) -> int:
        """Number of files that are not images."""
        return len(self.unreadable)

    @property
    def group_N(self) -> Ints:
        return self.group_of_identity[self.identity_N]

    def images_of(self, identities: Ints) -> Ints:
        """Indices of all images of the given identities."""
        return np.flatnonzero(np.isin(self.identity_N, identities))

    def refuse_flat_folder(self, least: int) -> None:
        """Raises `UsageError` where all images lie in the root itself; `least` is the number of folders needed."""
        if self.identities == ["."]:
            name = Path(self.paths[0]).name
            raise UsageError(
                f"{self.root} holds images but no folders of images. Put the images of each product, person or "
                f"character in a folder of its own (such as {self.root / 'mug' / name}); at least {least} folders."
            )


def image_files(root: Path, *, hidden: bool = False) -> list[Path]:
    """Every file below `root`, sorted, images or not; hidden ones on request.

    Links to folders are followed, each folder once. Raises `UsageError` for a folder that can't be read.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder. Give a folder tree with one folder of images per identity.")

    def refuse(problem: OSError) -> None:
        raise UsageError(f"The folder {problem.filename} can't be read: {problem.strerror}.")

    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if hidden or not name.startswith("."))
        found += [Path(folder, name) for name in names if hidden or not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def read_image(path: Path) -> bytes:
    """The bytes of a file. Raises `OSError` or `ImageError` where it can't be an image."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TooManyBytes(f"{path} has more than {MAX_BYTES:,} bytes.")
        return path.read_bytes()
    except ValueError:
        raise ImageError(f"{path!r} can't be the path of a file.") from None  # it has a null byte


def decode_files(paths: Sequence[Path], to: Preprocessing, *, progress: bool = True) -> Iterator[Item[Path]]:
    """Decode many files as the service does, on all cores, in order."""
    images = ((path, partial(read_image, path)) for path in paths)
    with progress_bar("decoding", "files", len(paths), enabled=progress) as bar:
        for item in decode_all(images, to, formats=FOLDER_FORMATS, refuse_blank=False):
            bar.update()
            yield item


def read_dataset(root: Path, to: Preprocessing, *, progress: bool = True) -> Dataset:
    """Decode the folder tree: every folder that directly holds images is one identity.

    An identity is named by its path relative to `root`, its group by that of its parent folder. Files that are not
    images are skipped and counted. Raises `UsageError` if there is no image, or a folder can't be read.
    """
    files = image_files(root)
    images_NHWC = _pixel_store(len(files), to)
    digest = hashlib.sha256()
    kept: list[Path] = []
    sha256_N: list[str] = []
    unreadable: list[str] = []
    for item in decode_files(files, to, progress=progress):
        relative = item.key.relative_to(root)
        if item.pixels_HWC is None:
            unreadable.append(relative.as_posix())
            continue
        images_NHWC[len(kept)] = item.pixels_HWC
        digest.update(f"{relative.as_posix()}\0{item.sha256}\n".encode(errors="surrogateescape"))
        kept.append(relative)
        sha256_N.append(item.sha256)
    if not kept:
        raise UsageError(f"{root} holds no images. Give a folder tree with one folder of images per identity.")
    identities = sorted({path.parent.as_posix() for path in kept})
    number = {name: index for index, name in enumerate(identities)}
    groups = sorted({Path(name).parent.as_posix() for name in identities})
    place = {name: index for index, name in enumerate(groups)}
    return Dataset(
        root=root,
        images_NHWC=images_NHWC[: len(kept)],
        identity_N=np.array([number[path.parent.as_posix()] for path in kept], dtype=np.int64),
        paths=[path.as_posix() for path in kept],
        identities=identities,
        groups=groups,
        group_of_identity=np.array([place[Path(name).parent.as_posix()] for name in identities], dtype=np.int64),
        sha256_N=sha256_N,
        fingerprint=digest.hexdigest()[:32],
        unreadable=unreadable,
    )


def _pixel_store(count: int, to: Preprocessing) -> ImageU8:
    shape = (count, to.height, to.width, to.channels)
    if np.prod(shape, dtype=np.int64) <= IN_MEMORY_BYTES:
        return np.empty(shape, dtype=np.uint8)
    # Unlinked at once: the mapping keeps the space until the process ends, however it ends.
    with tempfile.NamedTemporaryFile(prefix="diptych-pixels-") as file:
        # a full disk must be reported now, not kill the process when a page is touched
        os.posix_fallocate(file.fileno(), 0, int(np.prod(shape, dtype=np.int64)))
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)


def check_new(path: Path, data: Path) -> None:
    """Raises `UsageError` if `path` holds something, or lies among the images of `data`, where it would join them."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} exists and is not empty. Give a new directory.")
    if path.resolve().is_relative_to(data.resolve()):
        raise UsageError(f"{path} lies in {data}, so its pictures would count as images. Give another directory.")


def new_directory(path: Path, data: Path) -> None:
    """Make the directory of a new checkpoint, outside the images. Raises `UsageError` if it can't be used."""
    check_new(path, data)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as problem:
        raise UsageError(f"{path} can't be written: {problem.strerror}. Give another directory.") from None
