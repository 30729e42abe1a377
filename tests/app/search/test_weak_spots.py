"""Weak spots of a gallery: made by hand, and found in a real one through the command."""

import json
from pathlib import Path

import numpy as np

from app.gallery.references import Enrolled
from app.search.weak_spots import find_weak_spots
from tests.files import CALIBRATED, GOLDEN, drawings
from tests.service import InProcess, diptych


def enrolled(identity: str, angle: float, number: int = 0) -> Enrolled:
    """A reference on the unit circle: two an angle apart are 2 sin(angle / 2) apart."""
    embedding_D = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
    return Enrolled("default", identity, f"{identity}{number}", "a.png", embedding_D)


def test_each_kind_of_weak_spot_is_named_with_its_references() -> None:
    """Disagreeing within, too close between, and nearer to another than to its own."""
    gallery = [
        *(enrolled("torn", 0.0, 0), enrolled("torn", 2.0, 1)),
        *(enrolled("twin a", 3.0), enrolled("twin b", 3.1)),
        *(enrolled("good", -1.0, 0), enrolled("good", -1.05, 1), enrolled("good", -2.0, 2)),
        *(enrolled("other", -2.05, 0), enrolled("other", -2.08, 1)),
    ]
    found = find_weak_spots(gallery, threshold=0.5, progress=False)
    assert [spot.identity_a for spot in found.disagreeing] == ["torn", "good"]
    assert {spot.reference_a for spot in found.disagreeing[:1]} <= {"torn0", "torn1"}
    close = [{spot.identity_a, spot.identity_b} for spot in found.too_close]
    assert close == [{"good", "other"}, {"twin a", "twin b"}]
    assert [(spot.reference_a, spot.identity_b) for spot in found.mislabelled] == [("good2", "other")]
    assert found.mislabelled[0].distance == found.too_close[0].distance
    assert (found.identities, found.references) == (5, 9)


def test_a_gallery_larger_than_a_batch_gives_what_a_loop_over_all_pairs_gives() -> None:
    """The nearest two of each pair of identities, however they fall into batches."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(1100, 8))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    gallery = [
        Enrolled("default", f"i{number % 60:02d}", str(number), "a.png", point.astype(np.float32))
        for number, point in enumerate(points)
    ]
    found = find_weak_spots(gallery, threshold=0.4, progress=False)
    expected: dict[tuple[str, str], float] = {}
    for a in gallery:
        for b in gallery:
            if a.identity < b.identity:
                apart = float(np.linalg.norm(a.embedding_D.astype(float) - b.embedding_D.astype(float)))
                if apart <= 0.4:
                    pair = (a.identity, b.identity)
                    expected[pair] = min(apart, expected.get(pair, 2.0))
    assert len(expected) > 3
    assert {tuple(sorted((s.identity_a, s.identity_b))) for s in found.too_close} == set(expected)
    assert np.allclose([s.distance for s in found.too_close], sorted(expected.values()), atol=1e-6)
    assert len(found.disagreeing) == 60


def test_the_report_finds_what_was_enrolled_by_mistake(in_process: InProcess, tmp_path: Path) -> None:
    """The same drawing under two names, while the service runs; nothing is changed by looking."""
    service = in_process(CALIBRATED)
    angelic, kannada = drawings("Angelic/character01"), drawings("Kannada/character02")
    service.enroll("angelic", *angelic[:2])
    service.enroll("mistake", angelic[0])
    service.enroll("kannada", kannada[0], collection="other")
    before = service.client.get("/collections").json()
    options = ("--checkpoint", CALIBRATED, "--data-dir", service.data_dir)
    done = diptych("report", *options, "--output", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    assert "angelic | mistake" in done.stdout or "mistake | angelic" in done.stdout
    default, other = json.loads((tmp_path / "report.json").read_text())
    assert (default["collection"], default["identities"], default["references"]) == ("default", 2, 3)
    assert default["too_close"][0]["distance"] == 0
    assert (other["collection"], other["too_close"]) == ("other", [])
    assert service.client.get("/collections").json() == before


def test_a_report_on_what_it_cannot_judge_says_why(in_process: InProcess, tmp_path: Path) -> None:
    """No gallery, no rate, and a gallery of another encoder."""
    service = in_process(GOLDEN)
    done = diptych("report", "--data-dir", tmp_path / "none")
    assert done.returncode == 2 and "--data-dir" in done.stderr
    assert not (tmp_path / "none").exists()
    for target in ("7", "nan"):
        done = diptych("report", "--data-dir", service.data_dir, "--checkpoint", GOLDEN, "--target-fmr", target)
        assert done.returncode == 2 and "Traceback" not in done.stderr
    service.enroll("a", drawings("Angelic/character01")[0])
    done = diptych("report", "--data-dir", service.data_dir)
    assert done.returncode == 2 and "--checkpoint" in done.stderr
