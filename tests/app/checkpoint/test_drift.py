"""Whether live distances look like those of the calibration: the statistic, and what a running service says."""

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.arrays import Floats
from app.checkpoint.calibration import read_calibration
from app.checkpoint.drift import LEAST, WINDOW, DriftMonitor, mixture_distance
from app.checkpoint.store import load_checkpoint
from tests.files import EVALUATION, GOLDEN
from tests.service import Application, InProcess

FILES = sorted(EVALUATION.rglob("*.png"))
GRID: Floats = np.linspace(0, 2, 2001)


def beta(a: float, b: float) -> Floats:
    """The distribution function of twice a Beta(a, b) number on `GRID`, by adding up its density."""
    density = GRID ** (a - 1) * (2 - GRID) ** (b - 1)
    total: Floats = np.cumsum(density)
    return total / total[-1]


GENUINE, IMPOSTOR = beta(2, 12), beta(12, 6)


def sample(rng: np.random.Generator, share: float, count: int) -> Floats:
    """Distances of a mixture, by inverting the two curves."""
    drawn: Floats = np.where(
        rng.random(count) < share,
        np.interp(rng.random(count), GENUINE, GRID),
        np.interp(rng.random(count), IMPOSTOR, GRID),
    )
    return drawn


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_any_mixture_of_the_two_is_near(seed: int, share: float) -> None:
    """Nearer than 1.95 / sqrt(n), which chance alone exceeds in one of a thousand samples of a known distribution."""
    distances = sample(np.random.default_rng(seed), share, 1000)
    apart, found = mixture_distance(distances, GRID, GENUINE, IMPOSTOR)
    assert 0 < apart < 1.95 / np.sqrt(1000)
    assert abs(found - share) < 0.15


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 2), min_size=1, max_size=50), st.floats(0, 1))
def test_it_is_the_smallest_over_all_mixtures(distances: list[float], share: float) -> None:
    """No share gives less, and order does not matter."""
    sample_N = np.array(distances)
    apart, found = mixture_distance(sample_N, GRID, GENUINE, IMPOSTOR)
    mixed: Floats = share * GENUINE + (1 - share) * IMPOSTOR
    at_that_share, _ = mixture_distance(sample_N, GRID, mixed, mixed)
    assert 0 <= found <= 1 and 0 < apart <= at_that_share + 1e-5 <= 1 + 1e-5
    assert mixture_distance(sample_N[::-1], GRID, GENUINE, IMPOSTOR) == (apart, found)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.75, 0.85))
def test_what_lies_between_the_two_is_far_from_every_mixture(seed: int, centre: float) -> None:
    """Where neither genuine nor impostor pairs have many."""
    distances = np.random.default_rng(seed).normal(centre, 0.03, 500)
    assert mixture_distance(distances, GRID, GENUINE, IMPOSTOR)[0] > 0.4


def test_a_window_says_nothing_until_it_holds_enough_and_begins_anew_with_another_calibration() -> None:
    """The last so many count."""
    seen, one, other = DriftMonitor(), *(read_calibration(load_checkpoint(name)) for name in (str(GOLDEN), "omniglot"))
    assert seen.measure().comparisons == 0 and seen.measure().drift is None
    for _ in range(LEAST - 1):
        seen.note(other, 0.5)
    assert (seen.measure().comparisons, seen.measure().drift) == (LEAST - 1, None)
    for _ in range(WINDOW):
        seen.note(other, 0.5)
    full = seen.measure()
    assert full.comparisons == WINDOW and full.drift is not None and full.drift > 0.4
    seen.note(one, 0.5)
    assert (seen.measure().comparisons, seen.measure().drift) == (1, None)


def gauges(service: Application) -> dict[str, float]:
    lines = service.client.get("/metrics").text.splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("diptych_distance_")}


def noisy(path: Path) -> bytes:
    """As a bad scanner would see it."""
    pixels = np.asarray(Image.open(path).convert("L"), np.float64)
    spoilt = np.clip(pixels + np.random.default_rng(0).normal(0, 60, pixels.shape), 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(spoilt.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def plain(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.parametrize(("seen_as", "low", "high"), [(plain, 0.0, 0.15), (noisy, 0.5, 1.0)])
def test_drawings_that_were_spoilt_drift_and_others_do_not(
    in_process: InProcess, seen_as: Callable[[Path], bytes], low: float, high: float
) -> None:
    """Half of the pairs genuine: drawings that the bundled encoder never saw, over the running service. Three
    alphabets of five characters leave more to chance than independent pairs would: 0.12 was measured, and with noise
    0.67; over all 659 characters of Omniglot's evaluation set 0.07 and 0.80."""
    service, rng = in_process("omniglot"), random.Random(0)
    images = {path: seen_as(path) for path in FILES}
    assert np.isnan(gauges(service)["diptych_distance_drift"])
    for number in range(400):
        one = rng.choice(FILES)
        other = rng.choice([path for path in FILES if (path.parent == one.parent) == (number % 2 == 0) and path != one])
        files = {"image_a": images[one], "image_b": images[other]}
        assert service.client.post("/verify", files=files).status_code == 200
    said = gauges(service)
    assert said["diptych_distance_drift_comparisons"] == 400
    assert said["diptych_distance_drift_chance"] == pytest.approx(0.068)
    assert low < said["diptych_distance_drift"] < high, said
    if seen_as is plain:
        assert said["diptych_distance_genuine_share"] == pytest.approx(0.5, abs=0.1)
