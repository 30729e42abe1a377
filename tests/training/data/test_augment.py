"""Augmentation: drawn from seed and number, done to real drawings."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.image.policy import Preprocessing, decode
from tests.files import BACKGROUND
from training.data.augment import KINDS, Augmentation, apply_moves, draw_moves


def pictures(channels: int = 1, count: int = 8) -> torch.Tensor:
    paths = sorted(BACKGROUND.rglob("*.png"))[::17][:count]
    to = Preprocessing(height=40, width=40, channels=1, aspect="pad")
    grey = torch.from_numpy(np.stack([decode(path.read_bytes(), to) for path in paths])).permute(0, 3, 1, 2) / 255
    return grey.expand(-1, channels, -1, -1).contiguous()


def moved(how: Augmentation, images: torch.Tensor, seed: int = 0, images_per_identity: int = 2) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    moves = draw_moves(how, np.arange(len(images) // images_per_identity), images_per_identity, images.shape[1], rng)
    return apply_moves(images, moves)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("channels", [1, 3])
def test_what_comes_out_are_images_of_the_same_shape(kind: str, channels: int) -> None:
    """In [0, 1], and the same for the same seed."""
    images = pictures(channels)
    first, again, other = (moved(KINDS[kind], images.clone(), seed) for seed in (1, 1, 2))
    assert first.shape == images.shape
    assert float(first.min()) >= 0 and float(first.max()) <= 1
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (kind == "none")


def test_nothing_is_done_where_nothing_is_asked_for() -> None:
    """The identity, to the precision of resampling."""
    images = pictures()
    assert torch.allclose(moved(Augmentation(), images), images, atol=1e-4)


def test_a_quarter_turn_turns_all_images_of_an_identity_alike() -> None:
    """As torch turns them, and the symmetry says how often."""
    images = pictures()
    how = Augmentation().with_symmetries(quarter_turns=True, mirrors=False)
    moves = draw_moves(how, np.arange(4), 2, 1, np.random.default_rng(5))
    out = apply_moves(images, moves)
    assert moves.symmetry_B.reshape(4, 2).diff(dim=1).abs().sum() == 0
    assert len(set(moves.symmetry_B.tolist())) > 1
    for image, turned, turns in zip(images, out, moves.symmetry_B.tolist(), strict=True):
        assert torch.allclose(torch.rot90(image, turns, dims=(1, 2)), turned, atol=1e-3)


def test_a_mirror_mirrors_all_images_of_an_identity_alike() -> None:
    """Left to right, and combined with turns there are eight symmetries."""
    images = pictures()
    how = Augmentation().with_symmetries(quarter_turns=False, mirrors=True)
    moves = draw_moves(how, np.arange(4), 2, 1, np.random.default_rng(1))
    for image, out, mirrored in zip(images, apply_moves(images, moves), moves.symmetry_B.tolist(), strict=True):
        assert torch.allclose(image.flip(2) if mirrored else image, out, atol=1e-3)
    both = Augmentation().with_symmetries(quarter_turns=True, mirrors=True)
    assert both.symmetries == 8
    drawn = {
        int(s)
        for seed in range(40)
        for s in draw_moves(both, np.arange(4), 2, 1, np.random.default_rng(seed)).symmetry_B
    }
    assert drawn == set(range(8))


def test_the_identities_of_a_group_are_turned_alike() -> None:
    """Otherwise a turned b and a mirrored d would be one shape with two names."""
    how = Augmentation().with_symmetries(quarter_turns=True, mirrors=True)
    group_P = np.array([7, 3, 7, 7, 3, 9])
    drawn = [draw_moves(how, group_P, 2, 1, np.random.default_rng(seed)).symmetry_B.reshape(6, 2) for seed in range(40)]
    for symmetry_PK in drawn:
        for group in (3, 7, 9):
            assert len(symmetry_PK[group_P == group].unique()) == 1
    assert any(len(symmetry_PK.unique()) > 1 for symmetry_PK in drawn)


def test_hue_keeps_what_is_grey_and_saturation_zero_makes_grey() -> None:
    """Colour changes are colour changes."""
    grey = pictures(3)
    assert torch.allclose(moved(Augmentation(hue=90), grey), grey, atol=2e-2)
    red = grey.clone()
    red[:, 1:] = 0
    assert not torch.allclose(moved(Augmentation(hue=90), red), red, atol=0.1)


def test_a_share_of_the_moves_is_the_moves_of_the_share() -> None:
    """What several processes rely on: each does its part of one batch."""
    images = pictures(3)
    moves = draw_moves(KINDS["photos"], np.arange(4), 2, 3, np.random.default_rng(3))
    whole = apply_moves(images.clone(), moves)
    cpu = torch.device("cpu")
    halves = [apply_moves(images[part].clone(), moves.part(part, cpu)) for part in (slice(0, 4), slice(4, 8))]
    assert torch.allclose(torch.cat(halves), whole, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 4), st.integers(0, 1000))
def test_strength_scales_every_range_and_never_breaks_an_image(strength: float, seed: int) -> None:
    """Zero is no change; four times as much is still an image."""
    how = KINDS["photos"].times(strength)
    assert how.hue == pytest.approx(12 * strength) and 0 < how.crop <= 1
    out = moved(how, pictures(3, 4), seed)
    assert torch.isfinite(out).all() and float(out.min()) >= 0 and float(out.max()) <= 1


def test_jpeg_and_blur_lose_detail() -> None:
    """And only in the images drawn for it."""
    images = pictures()
    sharp = images.diff(dim=3).abs().sum()
    assert moved(Augmentation(blur=1.0), images.clone()).diff(dim=3).abs().sum() < 0.9 * sharp
    passed = moved(Augmentation(jpeg=1.0), images.clone())
    assert 0 < float((passed - images).abs().mean()) < 0.05
    assert math.isclose(float((moved(Augmentation(jpeg=1e-9), images.clone()) - images).abs().max()), 0, abs_tol=1e-4)
