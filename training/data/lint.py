"""A look at a data set for what would make its figures dishonest, or its encoder worse.

Each check is a function from what was read to findings. A finding that `refuses` stops training: the same
image on both sides of a split, or one thing under two names, makes error rates that nobody will see again.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path, PurePosixPath

import faiss
import numpy as np
from tqdm import tqdm

from app.arrays import EmbeddingsF32, ImageU8, Ints
from app.checkpoint.format import printable
from app.errors import UsageError
from app.image.policy import BLANK_RANGE
from training.data.dataset import Dataset, SplitName

# Names that people give to the parts of a split.
SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"}
# Correlation of two thumbnails from which on they are one picture, saved twice or taken in a burst.
SAME_PICTURE = 0.985
THUMBNAIL = 32
# A mislabelled image: so many images of another identity are nearer than this share of the nearest of its own. With
# 1 % of Omniglot's labels swapped, an encoder found 191 of 192 of them, and 130 others of 19,280; thumbnails found next
# to none of handwriting and half of the faces of ORL, with one false alarm in all.
WITNESSES, MUCH_NEARER = 3, 0.5
NEIGHBOURS = 16
# Up to so many images all are compared with all; beyond, with those in the nearest cells, where copies lie as well.
EXACT = 50_000
EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """What was found, how often, and where: `places` names files or folders, most telling first."""

    code: str
    words: str
    places: tuple[str, ...]
    refuses: bool = False

    def __str__(self) -> str:
        shown = "; ".join(self.places[:EXAMPLES])
        more = f"; and {len(self.places) - EXAMPLES:,} more" if len(self.places) > EXAMPLES else ""
        return f"{self.words}: {shown}{more}"


def look(
    dataset: Dataset,
    splits: dict[SplitName, Ints] | None = None,
    embeddings_ND: EmbeddingsF32 | None = None,
    *,
    progress: bool = False,
) -> list[Finding]:
    """Everything that the checks find, what refuses first.

    `splits`, if there are any, tell which identities must not share an image. `embeddings_ND` by an encoder that
    knows such images find mislabelled ones; without them thumbnails do, and find the blatant only.
    """
    thumbnails_ND = _thumbnails(dataset.images_NHWC)
    similar_NK, nearest_NK = _neighbours(thumbnails_ND, progress=progress)
    split_I = _split_of(dataset, splits)
    exact = _exact_duplicates(dataset.sha256_N)
    near = _near_duplicates(similar_NK, nearest_NK, dataset.sha256_N)
    vectors_ND = thumbnails_ND if embeddings_ND is None else embeddings_ND
    if embeddings_ND is not None:
        similar_NK, nearest_NK = _neighbours(embeddings_ND, progress=progress)
    found = [
        *_split_folders(dataset),
        *_duplicates(dataset, split_I, exact, "exact", "the same file"),
        *_duplicates(dataset, split_I, near, "near", "nearly the same picture"),
        *_mislabelled(dataset, vectors_ND, similar_NK, nearest_NK),
        *_single_images(dataset),
        *_blank(dataset),
        *_unreadable(dataset),
    ]
    found = [replace(finding, places=tuple(map(printable, finding.places))) for finding in found]
    return sorted(found, key=lambda finding: not finding.refuses)


def refuse(findings: Iterable[Finding], data: Path) -> None:
    """Raises `UsageError` with the first finding that refuses."""
    for finding in findings:
        if finding.refuses:
            raise UsageError(
                f"{data} would give dishonest figures. {finding}. `diptych lint {data}` shows all; mend the folders, "
                "or train with --despite-lint."
            )


def _split_folders(dataset: Dataset) -> list[Finding]:
    """`train/X` beside `test/X`: two names for one thing, whose pairs count as impostors."""
    below: dict[PurePosixPath, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in dataset.identities:
        parts = PurePosixPath(name).parts
        for level in range(len(parts)):
            below[PurePosixPath(*parts[:level])][parts[level]].add("/".join(parts[level + 1 :]))
    places = []
    for parent, children in below.items():
        for a, b in combinations(sorted(children), 2):
            common = children[a] & children[b]
            split = a.lower() in SPLIT_NAMES and b.lower() in SPLIT_NAMES
            if split and len(common) > 0.5 * min(len(children[a]), len(children[b])):
                example = sorted(common)[0]
                places.append(f"{parent / a / example} and {parent / b / example} ({len(common):,} such pairs)")
    words = "Folders of a split stand side by side, so that each identity counts as several; give one of them"
    return [Finding("split_folders", words, tuple(places), refuses=True)] if places else []


def _split_of(dataset: Dataset, splits: dict[SplitName, Ints] | None) -> Ints | None:
    if splits is None:
        return None
    split_I = np.zeros(len(dataset.identities), dtype=np.int64)
    for number, identities in enumerate(splits.values()):
        split_I[identities] = number
    return split_I


def _exact_duplicates(sha256_N: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of images with the same bytes: each with the first of its kind."""
    first: dict[str, int] = {}
    return [(first[digest], index) for index, digest in enumerate(sha256_N) if first.setdefault(digest, index) != index]


def _near_duplicates(similar_NK: EmbeddingsF32, nearest_NK: Ints, sha256_N: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of images that are nearly one picture, but not the same bytes."""
    rows, columns = np.nonzero(similar_NK >= SAME_PICTURE)
    pairs = {(min(i, j), max(i, j)) for i, j in zip(rows.tolist(), nearest_NK[rows, columns].tolist(), strict=True)}
    return sorted((i, j) for i, j in pairs if i != j and sha256_N[i] != sha256_N[j])


def _duplicates(
    dataset: Dataset, split_I: Ints | None, pairs: Sequence[tuple[int, int]], kind: str, words: str
) -> list[Finding]:
    """Duplicates by what they spoil: a split, the meaning of an identity, or only the variety."""
    across_splits, across_identities, within = [], [], []
    for i, j in pairs:
        place = f"{dataset.paths[i]} = {dataset.paths[j]}"
        a, b = dataset.identity_N[i], dataset.identity_N[j]
        if a == b:
            within.append(place)
        elif split_I is not None and split_I[a] != split_I[b]:
            across_splits.append(place)
        else:
            across_identities.append(place)
    exact = kind == "exact"
    found = [
        (f"{kind}_across_splits", f"{words} under two identities, on two sides of the split", across_splits, True),
        (f"{kind}_across_identities", f"{words} under two identities", across_identities, exact),
        (f"{kind}_within_identity", f"{words} twice in one identity, a genuine pair too easy", within, False),
    ]
    return [
        Finding(code, f"{len(places):,} times {what}", tuple(places), refuses)
        for code, what, places, refuses in found
        if places
    ]


def _mislabelled(
    dataset: Dataset, vectors_ND: EmbeddingsF32, similar_NK: EmbeddingsF32, nearest_NK: Ints
) -> list[Finding]:
    """Images that are much nearer to several of another identity than to any of their own."""
    nearest_own_N = _nearest_own(dataset.identity_N, vectors_ND)
    apart_NK = np.sqrt(np.maximum(2 - 2 * similar_NK, 0))
    sizes = np.bincount(dataset.identity_N)
    suspects: list[tuple[float, str]] = []
    for index in np.flatnonzero(np.isfinite(nearest_own_N)):
        near = nearest_NK[index][apart_NK[index] < MUCH_NEARER * nearest_own_N[index]]
        others, counts = np.unique(dataset.identity_N[near[near != index]], return_counts=True)
        for other, count in zip(others, counts, strict=True):
            if other != dataset.identity_N[index] and sizes[other] > 1 and count >= min(WITNESSES, sizes[other]):
                words = f"{dataset.paths[index]} (looks like {dataset.identities[other]})"
                suspects.append((-float(nearest_own_N[index]), words))
                break
    places = tuple(words for _, words in sorted(suspects))
    return [Finding("mislabelled", f"{len(places):,} images look mislabelled", places)] if places else []


def _nearest_own(identity_N: Ints, vectors_ND: EmbeddingsF32) -> EmbeddingsF32:
    """Each image's distance to the nearest other image of its identity; infinite where there is none."""
    nearest_N = np.full(len(identity_N), np.inf, dtype=np.float32)
    for identity in np.unique(identity_N):
        own = np.flatnonzero(identity_N == identity)
        for start in range(0, len(own) if len(own) > 1 else 0, 1024):
            some = own[start : start + 1024]
            cosine = vectors_ND[some] @ vectors_ND[own].T
            cosine[np.arange(len(some)), start + np.arange(len(some))] = -np.inf  # each with itself
            nearest_N[some] = np.sqrt(np.maximum(2 - 2 * cosine.max(axis=1), 0))
    return nearest_N


def _single_images(dataset: Dataset) -> list[Finding]:
    single = np.flatnonzero(np.bincount(dataset.identity_N, minlength=len(dataset.identities)) == 1)
    if not len(single):
        return []
    words = f"{len(single):,} of {len(dataset.identities):,} identities have one image, and no genuine pair"
    return [Finding("single_image", words, tuple(dataset.identities[i] for i in single))]


def _blank(dataset: Dataset) -> list[Finding]:
    """Sheets with nothing on them, which the service refuses to compare."""
    blank = []
    for start in range(0, len(dataset), 1024):
        spans = np.ptp(dataset.images_NHWC[start : start + 1024], axis=(1, 2)).max(axis=1)
        blank += [dataset.paths[start + index] for index in np.flatnonzero(spans < BLANK_RANGE)]
    return [Finding("blank", f"{len(blank):,} images are blank", tuple(blank))] if blank else []


def _unreadable(dataset: Dataset) -> list[Finding]:
    if not dataset.unreadable:
        return []
    return [Finding("unreadable", f"{dataset.skipped:,} files are no readable images", tuple(dataset.unreadable))]


def _thumbnails(images_NHWC: ImageU8) -> EmbeddingsF32:
    """Small grey pictures as unit vectors `[N, T * T]` about their mean, so that a dot product is a correlation."""
    height, width = images_NHWC.shape[1:3]
    rows, columns = (np.unique(np.linspace(0, side, THUMBNAIL, endpoint=False).astype(int)) for side in (height, width))
    area = np.diff(rows, append=height)[:, None] * np.diff(columns, append=width)[None, :]
    small_ND = np.empty((len(images_NHWC), area.size), dtype=np.float32)
    for start in range(0, len(images_NHWC), 1024):
        grey = images_NHWC[start : start + 1024].astype(np.float32).mean(axis=3)
        summed = np.add.reduceat(np.add.reduceat(grey, rows, axis=1), columns, axis=2)
        small_ND[start : start + 1024] = (summed / area).reshape(len(grey), -1)
    small_ND -= small_ND.mean(axis=1, keepdims=True)
    small_ND /= np.maximum(np.linalg.norm(small_ND, axis=1, keepdims=True), 1e-6)
    return small_ND


def _neighbours(vectors_ND: EmbeddingsF32, *, progress: bool) -> tuple[EmbeddingsF32, Ints]:
    """Dot products `[N, K]` with the nearest images and their indices, each image itself among them."""
    count, size = vectors_ND.shape
    cells = round(4 * count**0.5)
    index = faiss.index_factory(size, "Flat" if count <= EXACT else f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    if count > EXACT:
        index.train(vectors_ND[:: max(1, count // (64 * cells))])
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", 8)
    index.add(vectors_ND)
    k = min(NEIGHBOURS, len(vectors_ND))
    parts = []
    with tqdm(total=len(vectors_ND), unit="img", desc="comparing", disable=not progress) as bar:
        for start in range(0, len(vectors_ND), 1024):
            parts.append(index.search(vectors_ND[start : start + 1024], k))
            bar.update(len(parts[-1][0]))
    return np.concatenate([similar for similar, _ in parts]), np.concatenate([nearest for _, nearest in parts])
