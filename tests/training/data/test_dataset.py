"""Folders to identities, identities to disjoint splits, splits to balanced batches."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import UsageError
from app.image.policy import Preprocessing
from tests.files import BACKGROUND
from training.data.batches import Balance, Batches
from training.data.dataset import Dataset, read_dataset
from training.data.splits import split_identities

SMALL = Preprocessing(16, 16, 1, "pad")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return read_dataset(BACKGROUND, SMALL, progress=False)


def test_every_folder_that_holds_images_is_an_identity_of_its_parents_group(dataset: Dataset) -> None:
    """Named by relative path; the group is the alphabet."""
    assert (len(dataset), len(dataset.identities), len(dataset.groups)) == (400, 40, 4)
    assert dataset.identities[0] == "Greek/character01"
    assert dataset.groups == ["Greek", "Korean", "Latin", "Sanskrit"]
    for path, identity in zip(dataset.paths, dataset.identity_N, strict=True):
        assert path.startswith(dataset.identities[identity] + "/")
    assert [dataset.groups[g] for g in dataset.group_N] == [path.split("/")[0] for path in dataset.paths]


def test_what_is_no_image_is_skipped_and_counted(tmp_path: Path) -> None:
    """Notes, broken files, empty folders, hidden files: none of them becomes an identity."""
    shutil.copytree(BACKGROUND / "Greek", tmp_path / "Greek")
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / "Greek" / "notes.csv").write_text("a,b")
    (tmp_path / "Greek" / "character01" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    (tmp_path / "Greek" / "empty").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(b"hidden")
    found = read_dataset(tmp_path, SMALL, progress=False)
    assert (len(found), len(found.identities), found.skipped) == (100, 10, 3)


def test_linked_folders_are_identities_and_loops_end(tmp_path: Path) -> None:
    """Data sets are often assembled of links; a link to a folder above it is not followed for ever."""
    (tmp_path / "alpha").symlink_to(BACKGROUND / "Greek" / "character01")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = read_dataset(tmp_path, SMALL, progress=False)
    assert (found.identities, len(found)) == (["alpha"], 10)


def test_the_fingerprint_names_paths_and_bytes(dataset: Dataset, tmp_path: Path) -> None:
    """The same tree elsewhere has the same; one image moved has another."""
    copy = Path(shutil.copytree(BACKGROUND, tmp_path / "copy"))
    assert read_dataset(copy, SMALL, progress=False).fingerprint == dataset.fingerprint
    next((copy / "Greek" / "character01").glob("*.png")).rename(copy / "Greek" / "character02" / "moved.png")
    assert read_dataset(copy, SMALL, progress=False).fingerprint != dataset.fingerprint


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    """As is no folder at all."""
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError):
            read_dataset(root, SMALL, progress=False)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 0.4), st.floats(0.05, 0.4), st.integers(0, 100), st.sampled_from(["identity", "group"]))
def test_splits_are_disjoint_whole_and_repeatable(
    dataset: Dataset, calibration: float, test: float, seed: int, by: str
) -> None:
    """No identity (no group) is in two; the seed decides which."""
    try:
        splits = split_identities(dataset, calibration=calibration, test=test, by=by, seed=seed)  # type: ignore[arg-type]
    except UsageError:
        return
    again = split_identities(dataset, calibration=calibration, test=test, by=by, seed=seed)  # type: ignore[arg-type]
    together = np.concatenate(list(splits.values()))
    assert sorted(together) == list(range(40))
    assert all(np.array_equal(splits[name], again[name]) for name in splits)
    if by == "group":
        groups = [set(dataset.group_of_identity[members]) for members in splits.values()]
        assert sum(map(len, groups)) == len(set.union(*groups))


def test_a_split_of_fewer_than_two_identities_is_refused(dataset: Dataset) -> None:
    """It could not hold an impostor pair."""
    with pytest.raises(UsageError, match="at least two"):
        split_identities(dataset, calibration=0.02, test=0.02, by="identity", seed=0)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=20),
    identities=st.integers(2, 10),
    images=st.integers(2, 5),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_batches_hold_so_many_identities_with_so_many_images_each(
    sizes: list[int], identities: int, images: int, share: float, seed: int
) -> None:
    """Whatever the folders hold, also a single image, which is then repeated."""
    identity_N = np.repeat(np.arange(len(sizes)), sizes)
    groups = np.arange(len(sizes)) % 4
    members = np.arange(len(sizes))[: max(2, len(sizes) - 1)]
    batches = Batches(identity_N, groups, members, Balance(identities, images, share, 2), seed)
    for number in range(5):
        drawn = identity_N[batches.draw_batch(number)].reshape(-1, images)
        assert len(drawn) == min(identities, len(members))
        assert (drawn == drawn[:, :1]).all()
        assert len(set(drawn[:, 0])) == len(drawn)
        assert set(drawn[:, 0]) <= set(members)


def test_a_batch_is_a_function_of_seed_and_number() -> None:
    """So that a run can go on anywhere, and several processes draw the same batch."""
    identity_N = np.repeat(np.arange(30), 5)
    first, again, other = (
        Batches(identity_N, np.arange(30) % 3, np.arange(30), Balance(8, 3, 0.5, 2), seed) for seed in (7, 7, 8)
    )
    assert np.array_equal(first.draw_batch(11), again.draw_batch(11))
    assert not np.array_equal(first.draw_batch(11), first.draw_batch(12))
    assert not np.array_equal(first.draw_batch(11), other.draw_batch(11))


def test_an_identity_with_a_hundred_times_the_images_is_drawn_as_often_as_any_other() -> None:
    """Class imbalance does not reach the loss."""
    sizes = [500, 5, 5, 5, 5, 5, 5, 5]
    identity_N = np.repeat(np.arange(8), sizes)
    batches = Batches(identity_N, np.zeros(8, dtype=int), np.arange(8), Balance(4, 3, 0.5, 2), 0)
    drawn = np.bincount(np.concatenate([identity_N[batches.draw_batch(number)] for number in range(400)]))
    assert drawn.max() < 1.25 * drawn.min()


def test_part_of_a_batch_comes_from_few_groups() -> None:
    """Half of the identities from two of ten groups, so that near neighbours meet."""
    groups = np.repeat(np.arange(10), 10)
    batches = Batches(np.arange(100), groups, np.arange(100), Balance(20, 2, 0.5, 2), 0)
    for number in range(10):
        counts = np.bincount(groups[batches.draw_batch(number)[::2]], minlength=10)
        assert np.sort(counts)[-2:].sum() >= 10
