"""A folder of labelled images to identities, and identities to disjoint splits."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from app.arrays import ImageU8, Ints
from app.errors import ImageError, UsageError
from app.image.policy import FOLDER_FORMATS, Preprocessing, decode

SplitName = Literal["train", "calibration", "test"]
# Decoded pixels beyond this live in a file that the kernel pages in and out.
IN_MEMORY_BYTES = 2**30
# One's own files, however large: a scan may well exceed what a stranger may upload.
MAX_BYTES = 2**30
MAX_PIXELS = 178_956_970  # beyond it Pillow refuses by itself


@dataclass(frozen=True)
class Dataset:
    """Decoded images, each with its identity; identities are sorted by name.

    `identity_N` indexes `identities`, and so does `group_of_identity` to `groups`.
    """

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
        """Files that are no images."""
        return len(self.unreadable)

    @property
    def group_N(self) -> Ints:
        return self.group_of_identity[self.identity_N]

    def images_of(self, identities: Ints) -> Ints:
        """Indices of all images of the given identities."""
        return np.flatnonzero(np.isin(self.identity_N, identities))


def image_files(root: Path, *, hidden: bool = False) -> list[Path]:
    """Every file below `root`, sorted, hidden ones on request. Whether it is an image, its bytes will say.

    Links to folders are followed, each folder once. Raises `UsageError` for a folder that can't be read.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is no folder. Give a folder tree with one folder of images per identity.")

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


def decode_file(path: Path, to: Preprocessing) -> tuple[ImageU8, str] | None:
    """Pixels and sha256 of a file's bytes, by the policy that serves; None for what is no image."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        data = path.read_bytes()
        pixels = decode(data, to, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS, formats=FOLDER_FORMATS)
    except (ImageError, OSError, ValueError):  # ValueError: a path that can't be one
        return None
    return pixels, hashlib.sha256(data).hexdigest()


def decode_files(
    paths: Sequence[Path], to: Preprocessing, *, progress: bool = True
) -> Iterator[tuple[Path, tuple[ImageU8, str] | None]]:
    """Decode many files on all cores, in order; only a few hundred are in memory at a time."""

    def one(path: Path) -> tuple[Path, tuple[ImageU8, str] | None]:
        return path, decode_file(path, to)

    with ThreadPoolExecutor() as pool, tqdm(total=len(paths), unit="img", disable=not progress) as bar:
        bar.set_description("decoding")
        for start in range(0, len(paths), 256):
            for result in pool.map(one, paths[start : start + 256]):
                bar.update()
                yield result


def read_dataset(root: Path, to: Preprocessing, *, progress: bool = True) -> Dataset:
    """Decode the folder tree: every folder that directly holds images is one identity.

    An identity is named by its path relative to `root`, its group by its parent folder's. Files that are
    no images are skipped and counted. Raises `UsageError` if there is no image at all.
    """
    files = image_files(root)
    images_NHWC = _pixel_store(len(files), to)
    digest = hashlib.sha256()
    kept: list[Path] = []
    sha256_N: list[str] = []
    unreadable: list[str] = []
    for path, decoded in decode_files(files, to, progress=progress):
        relative = path.relative_to(root)
        if decoded is None:
            unreadable.append(relative.as_posix())
            continue
        pixels, sha256 = decoded
        images_NHWC[len(kept)] = pixels
        digest.update(f"{relative.as_posix()}\0{sha256}\n".encode(errors="surrogateescape"))
        kept.append(relative)
        sha256_N.append(sha256)
    if not kept:
        raise UsageError(f"{root} holds no image. Give a folder tree with one folder of images per identity.")
    identities = sorted({path.parent.as_posix() for path in kept})
    number = {name: index for index, name in enumerate(identities)}
    groups = sorted({Path(name).parent.as_posix() for name in identities})
    place = {name: index for index, name in enumerate(groups)}
    return Dataset(
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
        # a disk without room must say so now, not kill the process when a page is touched
        os.posix_fallocate(file.fileno(), 0, int(np.prod(shape, dtype=np.int64)))
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)


def split_identities(
    dataset: Dataset,
    *,
    calibration: float,
    test: float,
    by: Literal["identity", "group"],
    seed: int,
) -> dict[SplitName, Ints]:
    """Identities of the three splits, disjoint, as sorted indices; the same for the same seed and names.

    `calibration` and `test` are shares of the identities (or of the groups, which then stay whole).
    Raises `UsageError` where a split would hold fewer than two identities.
    """
    count = len(dataset.identities) if by == "identity" else len(dataset.groups)
    if by == "group" and count < 3:
        raise UsageError(
            f"There are {count} groups (folders of identities), and --split-by group needs three at least: one to "
            "train, one to choose the threshold, one to measure it. Use --split-by identity."
        )
    order = np.random.default_rng(seed).permutation(count)
    n_calibration, n_test = max(1, round(count * calibration)), max(1, round(count * test))
    parts = {
        "calibration": order[:n_calibration],
        "test": order[n_calibration : n_calibration + n_test],
        "train": order[n_calibration + n_test :],
    }
    member: Callable[[Ints], Ints]
    if by == "identity":
        member = np.sort
    else:

        def member(groups: Ints) -> Ints:
            return np.flatnonzero(np.isin(dataset.group_of_identity, groups))

    splits: dict[SplitName, Ints] = {
        "train": member(parts["train"]),
        "calibration": member(parts["calibration"]),
        "test": member(parts["test"]),
    }
    for name, identities in splits.items():
        if len(identities) < 2:
            raise UsageError(
                f"The {name} split would hold {len(identities)} of {len(dataset.identities)} identities; each "
                "needs two at least. Add identities (folders), or change --calibration-share and --test-share."
            )
    return splits


def check_new(path: Path, data: Path) -> None:
    """Raises `UsageError` if `path` holds something, or lies among the images of `data`, where it would join them."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} exists and is not empty. Give a new directory, so that nothing is lost.")
    if path.resolve().is_relative_to(data.resolve()):
        raise UsageError(f"{path} lies in {data}, where its pictures would count as images. Give another directory.")


def new_directory(path: Path, data: Path) -> None:
    """Make the directory of a new checkpoint, outside of the images. Raises `UsageError` if it can't be."""
    check_new(path, data)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as problem:
        raise UsageError(f"{path} can't be written: {problem.strerror}. Give another directory.") from None
