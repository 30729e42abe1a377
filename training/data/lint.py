"""Checks of a data set, before it is trained on: what would falsify its error rates or make the encoder worse.

Each check is a function from a data set to findings. A finding that `refuses` stops training: with the same image on
both sides of a split, or one thing under two names, the measured error rates would not hold for other images.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path, PurePosixPath

import numpy as np

from app.arrays import EmbeddingsF32, Ints
from app.checkpoint.format import printable
from app.errors import UsageError
from app.image.policy import BLANK_RANGE, Preprocessing
from training.data.dataset import Dataset
from training.data.likeness import nearest_images, nearest_of_own_identity, thumbnails
from training.data.splits import SplitName

# Names that people give to the folders of a split.
SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"}
# Two thumbnails with this correlation or more are one picture, saved twice or taken in a burst.
SAME_PICTURE = 0.985
# An image looks mislabelled if at least WITNESSES images of another identity are nearer than MUCH_NEARER times the
# distance to the nearest of its own. With 1 % of Omniglot's labels swapped, an encoder found 191 of 192 of them, and
# 130 others of 19,280 images. Thumbnails found next to none of the handwriting and half of the faces of ORL, with one
# false alarm in all.
WITNESSES, MUCH_NEARER = 3, 0.5
# Places in the text of a finding, and in the list that the command prints.
EXAMPLES, LISTED = 5, 20
# Size of decoded images where no encoder says otherwise.
THUMBNAILS = Preprocessing(height=64, width=64, channels=1, aspect="pad")


@dataclass(frozen=True)
class Finding:
    """One kind of problem and where it is: `places` names files or folders, the clearest cases first."""

    code: str
    text: str
    places: tuple[str, ...]
    refuses: bool = False

    def __str__(self) -> str:
        shown = "; ".join(self.places[:EXAMPLES])
        more = f"; and {len(self.places) - EXAMPLES:,} more" if len(self.places) > EXAMPLES else ""
        return f"{self.text}: {shown}{more}"


def lint_dataset(
    dataset: Dataset,
    splits: dict[SplitName, Ints] | None = None,
    embeddings_ND: EmbeddingsF32 | None = None,
    *,
    progress: bool = False,
) -> list[Finding]:
    """Everything that the checks find; findings that refuse come first.

    `splits` says which identities must not share an image. With `embeddings_ND`, `[N, D]` from an encoder that knows
    such images, mislabelled images are found reliably; without, thumbnails find only the obvious ones.
    """
    thumbnails_ND = thumbnails(dataset.images_NHWC)
    similar_NK, nearest_NK = nearest_images(thumbnails_ND, progress=progress)
    split_I = _split_of(dataset, splits)
    exact = _exact_duplicates(dataset.sha256_N)
    near = _near_duplicates(similar_NK, nearest_NK, dataset.sha256_N)
    vectors_ND = thumbnails_ND if embeddings_ND is None else embeddings_ND
    if embeddings_ND is not None:
        similar_NK, nearest_NK = nearest_images(embeddings_ND, progress=progress)
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


def refuse_findings(findings: Iterable[Finding], data: Path) -> None:
    """Raises `UsageError` with the first finding that refuses, if there is one."""
    for finding in findings:
        if finding.refuses:
            raise UsageError(
                f"Error rates measured on {data} would be wrong: {finding}. `diptych lint {data}` lists every finding. "
                "Correct the folders, or train anyway with --despite-lint."
            )


def finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """The findings as lines to print, each followed by its first places."""
    for finding in findings:
        yield f"{'REFUSED' if finding.refuses else 'warning'}  {finding.code}: {finding.text}"
        yield from (f"           {place}" for place in finding.places[:LISTED])
        if len(finding.places) > LISTED:
            yield f"           and {len(finding.places) - LISTED:,} more"
    if not findings:
        yield "nothing found"


def _split_folders(dataset: Dataset) -> list[Finding]:
    """`train/X` beside `test/X`: one thing under two names, whose pairs would count as impostors."""
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
                places.append(
                    f"{parent / a / example} and {parent / b / example} ({len(common):,} identities are in both)"
                )
    text = "folders such as train and test hold the same identities, so each counts as several; train on one of them"
    return [Finding("split_folders", text, tuple(places), refuses=True)] if places else []


def _split_of(dataset: Dataset, splits: dict[SplitName, Ints] | None) -> Ints | None:
    if splits is None:
        return None
    split_I = np.zeros(len(dataset.identities), dtype=np.int64)
    for number, identities in enumerate(splits.values()):
        split_I[identities] = number
    return split_I


def _exact_duplicates(sha256_N: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of images with the same bytes, each with the first such image."""
    first: dict[str, int] = {}
    return [(first[digest], index) for index, digest in enumerate(sha256_N) if first.setdefault(digest, index) != index]


def _near_duplicates(similar_NK: EmbeddingsF32, nearest_NK: Ints, sha256_N: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of images that show nearly the same picture, but are different files."""
    rows, columns = np.nonzero(similar_NK >= SAME_PICTURE)
    pairs = {(min(i, j), max(i, j)) for i, j in zip(rows.tolist(), nearest_NK[rows, columns].tolist(), strict=True)}
    return sorted((i, j) for i, j in pairs if i != j and sha256_N[i] != sha256_N[j])


def _duplicates(
    dataset: Dataset, split_I: Ints | None, pairs: Sequence[tuple[int, int]], kind: str, text: str
) -> list[Finding]:
    """Duplicates, by what they harm: the split, the meaning of an identity, or only variety."""
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
        (f"{kind}_across_splits", f"{text} under two identities, on two sides of the split", across_splits, True),
        (f"{kind}_across_identities", f"{text} under two identities", across_identities, exact),
        (
            f"{kind}_within_identity",
            f"{text} twice in one identity, which makes a genuine pair that is too easy",
            within,
            False,
        ),
    ]
    return [
        Finding(code, f"{len(places):,} times {what}", tuple(places), refuses)
        for code, what, places, refuses in found
        if places
    ]


def _mislabelled(
    dataset: Dataset, vectors_ND: EmbeddingsF32, similar_NK: EmbeddingsF32, nearest_NK: Ints
) -> list[Finding]:
    """Images that are much nearer to several images of another identity than to any of their own."""
    nearest_own_N = nearest_of_own_identity(dataset.identity_N, vectors_ND)
    distance_NK = np.sqrt(np.maximum(2 - 2 * similar_NK, 0))
    sizes = np.bincount(dataset.identity_N)
    suspects: list[tuple[float, str]] = []
    for index in np.flatnonzero(np.isfinite(nearest_own_N)):
        near = nearest_NK[index][distance_NK[index] < MUCH_NEARER * nearest_own_N[index]]
        others, counts = np.unique(dataset.identity_N[near[near != index]], return_counts=True)
        for other, count in zip(others, counts, strict=True):
            if other != dataset.identity_N[index] and sizes[other] > 1 and count >= min(WITNESSES, sizes[other]):
                place = f"{dataset.paths[index]} (looks like {dataset.identities[other]})"
                suspects.append((-float(nearest_own_N[index]), place))
                break
    places = tuple(place for _, place in sorted(suspects))
    return [Finding("mislabelled", f"{len(places):,} images look mislabelled", places)] if places else []


def _single_images(dataset: Dataset) -> list[Finding]:
    single = np.flatnonzero(np.bincount(dataset.identity_N, minlength=len(dataset.identities)) == 1)
    if not len(single):
        return []
    text = (
        f"{len(single):,} of {len(dataset.identities):,} identities have only one image, so they form no genuine pair"
    )
    return [Finding("single_image", text, tuple(dataset.identities[i] for i in single))]


def _blank(dataset: Dataset) -> list[Finding]:
    """Images with nothing on them, which the service refuses to compare."""
    blank = []
    for start in range(0, len(dataset), 1024):
        spans = np.ptp(dataset.images_NHWC[start : start + 1024], axis=(1, 2)).max(axis=1)
        blank += [dataset.paths[start + index] for index in np.flatnonzero(spans < BLANK_RANGE)]
    return [Finding("blank", f"{len(blank):,} images are blank", tuple(blank))] if blank else []


def _unreadable(dataset: Dataset) -> list[Finding]:
    if not dataset.unreadable:
        return []
    return [Finding("unreadable", f"{dataset.skipped:,} files are not readable images", tuple(dataset.unreadable))]
