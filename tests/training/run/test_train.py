"""The commands of training, run as a user runs them, on real drawings."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from app.checkpoint.encoder import Encoder
from app.checkpoint.store import load_checkpoint
from app.errors import TrainingFailed
from app.image.policy import decode
from tests.files import BACKGROUND, CALIBRATED, EVALUATION, GOLDEN, drawings
from tests.service import diptych, diptych_in_process
from training.export import check_parity, round_weights, write_encoder
from training.network.backbones import build
from training.network.encoder import embed_with_network
from training.recipe import Recipe
from training.summary import default_rates
from training.train import RunOptions, train_encoder


def test_training_writes_a_checkpoint_that_serves(trained: Path) -> None:
    """Every file of the format, its threshold and where it comes from, its rates from test identities with counts."""
    description = load_checkpoint(trained).description
    calibrated = description.default_threshold.point is not None
    assert description.threshold_source == ("calibration" if calibrated else "margin")
    assert calibrated or description.threshold == description.margin / 2
    assert 0 <= description.threshold < 2
    assert description.dataset.identities == 40 and description.dataset.images == 400
    splits = {name: split.identities for name, split in description.dataset.splits.items()}
    assert splits == {"train": 16, "calibration": 12, "test": 12}
    for point in description.operating_points:
        expected = ("test", 12 * 45, 66 * 100) if point.supported else (None, None, None)
        assert (point.measured_on, point.genuine_pairs, point.impostor_pairs) == expected
    assert (description.calibration.genuine_pairs, description.calibration.impostor_pairs) == (12 * 45, 66 * 100)
    assert description.runtime.max_distance_drift <= 1e-4
    assert not list(trained.rglob("*.pkl")) and not list(trained.rglob("*.pt"))


def test_training_learns_something(trained: Path) -> None:
    """Better than chance on identities that it never saw, after some seconds."""
    eer = load_checkpoint(trained).description.calibration.eer
    assert eer is not None and eer < 0.42


def test_the_report_shows_the_run(trained: Path) -> None:
    """Plots, a self-contained page, the figures, and who was in which split."""
    report = trained / "report"
    pictures = {
        "learning",
        "distances",
        "error_tradeoff",
        "reliability",
        "projection",
        "hardest_genuine",
        "hardest_impostor",
    }
    for name in pictures:
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (report / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures) == len(list(report.glob("*.png")))
    assert "shows training images" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "diptych train" in page and "--quarter-turns" in page, "the exact command"
    scalars = re.search(r"tensorboard --logdir ([^<]+)<", page)
    assert scalars is not None and Path(scalars[1]).is_dir()
    document = json.loads((report / "metrics.json").read_text())
    nearest = [pair["distance"] for pair in document["hardest"]["impostor"]]
    assert nearest == sorted(nearest) and len(nearest) == 12
    history = document["history"]
    assert [row["epoch"] for row in history] == list(range(1, 21))
    assert {"train_loss", "validation_loss", "validation_accuracy"} <= set(history[0])
    with (report / "split.csv").open() as file:
        split = {row["identity"]: row["split"] for row in csv.DictReader(file)}
    assert len(split) == 40


def test_images_are_left_out_of_the_report_on_request(tmp_path: Path) -> None:
    """Neither thumbnails nor pairs; the curves stay."""
    recipe = Recipe(epochs=1, width=0.25, image_size=16, threads=1)
    train_encoder(BACKGROUND, tmp_path / "out", recipe, RunOptions(report_images=False, progress=False))
    report = tmp_path / "out" / "report"
    page = (report / "index.html").read_text()
    assert "Without images" in page and "hardest" not in page
    assert {path.stem for path in report.glob("*.png")} == {
        *("learning", "distances", "error_tradeoff", "reliability", "projection"),
    }


def test_training_shows_its_progress(trained: Path) -> None:
    """In a log file a few plain lines, the last with the loss and the validation figures."""
    log = (trained.parent / "train.log").read_bytes().decode()
    assert "training" in log and "validation_eer=" in log and "loss=" in log
    assert "\r" not in log and log.count("\n") < 60


def test_the_same_seed_learns_the_same(tmp_path: Path) -> None:
    """On one machine with one thread: the same weights, to the bit."""
    recipe = Recipe(epochs=2, width=0.25, image_size=16, threads=1, seed=3)
    ids = []
    for name in ("a", "b"):
        found = train_encoder(BACKGROUND, tmp_path / name, recipe, RunOptions(progress=False))
        assert found is not None
        ids.append(found.description.model_id)
    assert ids[0] == ids[1]


def test_too_few_calibration_identities_fall_back_to_half_the_margin(tmp_path: Path) -> None:
    """And the checkpoint says so, instead of promising a rate. Trained with plain SGD, for a change."""
    done = diptych(
        *("train", BACKGROUND, "--output", tmp_path / "few", "--epochs", "1", "--width", "0.25", "--image-size", "16"),
        *("--calibration-share", "0.1", "--test-share", "0.1", "--margin", "0.8", "--optimizer", "sgd"),
        *("--learning-rate", "0.05", "--quiet"),
    )
    assert done.returncode == 0, done.stderr
    description = load_checkpoint(tmp_path / "few").description
    assert (description.threshold, description.threshold_source) == (0.4, "margin")
    assert "half the margin and not calibrated" in done.stdout and "FMR not promised" in done.stdout
    assert description.default_threshold.point is None
    page = (tmp_path / "few" / "report" / "index.html").read_text()
    assert re.search(r"<th>FMR</th><td>not promised: too few identities\. Observed on the 4 test identities: ", page)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--output", "out"], "nowhere is not a folder"),
        (
            [BACKGROUND / "Greek" / "character01", "--output", "out"],
            "holds images but no folders of images. Put the images of each",
        ),
        ([BACKGROUND], "Missing option '--output'"),
        ([BACKGROUND, "--output", "out", "--epochs", "0"], "--epochs"),
        ([BACKGROUND, "--output", BACKGROUND], "not empty"),
        ([BACKGROUND, "--output", BACKGROUND / "out"], "would count as images"),
        ([BACKGROUND, "--output", "out", "--weights", "nowhere.pth"], "There is no file or directory"),
        ([BACKGROUND, "--output", "out", "--optimizer", "magic"], "adamw"),
        ([BACKGROUND, "--output", "out", "--learning-rate", "nan"], "not a finite number"),
        ([BACKGROUND, "--output", "out", "--margin", "inf"], "--margin"),
        ([BACKGROUND, "--output", "/proc/nowhere/out"], "can't be written"),
        (["x" * 300, "--output", "out"], "too long"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str | Path], words: str
) -> None:
    """What is wrong, in a line, and nothing written."""
    monkeypatch.chdir(tmp_path)
    done = diptych_in_process("train", *arguments, "--quiet")
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_training_that_diverges_ends_with_advice(tmp_path: Path) -> None:
    """NaN is no checkpoint."""
    done = diptych(
        *("train", BACKGROUND, "--output", tmp_path / "bad", "--epochs", "3", "--width", "0.25", "--image-size", "16"),
        *("--optimizer", "sgd", "--learning-rate", "1e30", "--quiet"),
    )
    assert done.returncode == 1
    assert "--learning-rate" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "bad" / "checkpoint.json").exists()


def test_an_export_that_is_not_the_trained_encoder_fails_the_run(tmp_path: Path) -> None:
    """The parity check compares real distances, and can fail."""
    description = load_checkpoint(GOLDEN).description
    network = build(description.architecture)
    network.load_state_dict(load_file(GOLDEN / "encoder.safetensors"), strict=False)
    paths = sorted(EVALUATION.rglob("*.png"))[:24]
    images = np.stack([decode(path.read_bytes(), description.preprocessing) for path in paths])
    round_weights(network)
    write_encoder(network, images, tmp_path)
    assert check_parity(network, images, tmp_path).max_distance_drift < 1e-4
    network.head.weight.data[0] += 0.05
    with pytest.raises(TrainingFailed, match="differ by up to"):
        check_parity(network, images, tmp_path)


def test_the_weights_file_rebuilds_the_encoder_that_serves() -> None:
    """safetensors and ONNX are the same encoder."""
    checkpoint = load_checkpoint(GOLDEN)
    network = build(checkpoint.description.architecture)
    missing = network.load_state_dict(load_file(checkpoint.weights), strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    pixels = decode(drawings("Angelic/character01")[0].read_bytes(), checkpoint.description.preprocessing)[None]
    assert np.allclose(embed_with_network(network, pixels), Encoder(checkpoint).embed(pixels), atol=1e-5)


# --- evaluate, calibrate, embed ----------------------------------------------------------------------------


def test_evaluate_counts_all_pairs_of_a_folder(tmp_path: Path) -> None:
    """90 drawings of 15 characters: 15 x 15 genuine pairs, the rest impostors; table and metrics.json agree."""
    done = diptych("evaluate", CALIBRATED, "--data", EVALUATION, "--output", tmp_path / "figures", "--quiet")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures" / "metrics.json").read_text())
    assert (figures["genuine_pairs"], figures["impostor_pairs"]) == (15 * 15, 90 * 89 // 2 - 15 * 15)
    assert f"{100 * figures['fmr']:.2f} %" in done.stdout
    assert figures["same_group_impostor_pairs"] == 3 * 10 * 36
    assert figures["model_id"] == load_checkpoint(CALIBRATED).description.model_id


def test_evaluate_on_the_training_folder_counts_its_test_identities_only(trained: Path, tmp_path: Path) -> None:
    """It repeats the figures of the checkpoint, instead of flattering it."""
    done = diptych("evaluate", trained, "--data", BACKGROUND, "--output", tmp_path, "--quiet")
    assert done.returncode == 0, done.stderr
    assert "only its test identities" in done.stdout
    figures = json.loads((tmp_path / "metrics.json").read_text())
    rates = default_rates(load_checkpoint(trained))
    assert figures["identities"] == 12
    assert figures["fmr"] == pytest.approx(rates.fmr_observed, abs=2e-3)
    assert figures["fnmr"] == pytest.approx(rates.fnmr, abs=2e-2)


def test_evaluate_judges_a_list_of_pairs(tmp_path: Path) -> None:
    """Unreadable images are passed over and named in the note."""
    a, b = drawings("Angelic/character01"), drawings("Tibetan/character03")
    rows = [(a[0], a[1], 1), (a[0], b[0], 0), (b[0], b[1], 1), (a[2], b[2], 0)]
    lines = ["image_a,image_b,same"] + [
        f"{x.relative_to(EVALUATION)},{y.relative_to(EVALUATION)},{s}" for x, y, s in rows
    ]
    (tmp_path / "pairs.csv").write_text("\n".join([*lines, "no/such.png,no/other.png,1"]))
    arguments = ("--pairs", tmp_path / "pairs.csv", "--root", EVALUATION, "--output", tmp_path, "--quiet")
    done = diptych("evaluate", CALIBRATED, *arguments)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert (figures["genuine_pairs"], figures["impostor_pairs"], figures["skipped"]) == (2, 2, 2)
    assert "1 pairs were skipped" in done.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lacks a column"),
        ("a,b,c\n1,2,3", "lacks a column"),
        ("image_a,image_b,same\n", "lists no pairs"),
        ("image_a,image_b,same\nx.png,y.png,maybe", "line 2"),
        ("image_a,image_b,same\nx.png,y.png,1", "check --root"),
    ],
)
def test_a_list_of_pairs_that_makes_no_sense_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """With what it should look like."""
    (tmp_path / "pairs.csv").write_text(text)
    done = diptych("evaluate", GOLDEN, "--pairs", tmp_path / "pairs.csv", "--root", EVALUATION, "--quiet")
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_calibrate_keeps_the_encoder_and_measures_anew(tmp_path: Path) -> None:
    """On other images: the same model_id, another calibration_id, rates from the half that chose nothing."""
    data = Path(shutil.copytree(BACKGROUND, tmp_path / "data"))
    shutil.rmtree(data / "Greek")
    done = diptych("calibrate", CALIBRATED, "--data", data, "--output", tmp_path / "new", "--quiet")
    assert done.returncode == 0, done.stderr
    old, new = load_checkpoint(CALIBRATED).description, load_checkpoint(tmp_path / "new").description
    assert new.model_id == old.model_id and new.calibration_id != old.calibration_id
    assert new.calibration.fingerprint != old.calibration.fingerprint
    assert new.calibration.identities == 15
    assert new.dataset == old.dataset
    assert (new.calibration.intervals_over, new.calibration.units) == ("identity", 15)
    point = new.operating_points[0]
    assert point.fmr_ci95 is not None and point.fmr is not None
    assert point.fmr_ci95[0] <= point.fmr <= point.fmr_ci95[1]
    refused = diptych("calibrate", CALIBRATED, "--data", data, "--output", tmp_path / "new", "--quiet")
    assert refused.returncode == 2 and "not empty" in refused.stderr


def test_calibrate_can_keep_whole_groups_apart(tmp_path: Path) -> None:
    """Half of the groups choose, the others measure, and intervals draw groups; with too few it says so."""
    done = diptych(
        *("calibrate", CALIBRATED, "--data", EVALUATION, "--output", tmp_path / "few", "--split-by", "group", "--quiet")
    )
    assert done.returncode == 2 and "3 groups" in done.stderr
    data = Path(shutil.copytree(EVALUATION, tmp_path / "data"))
    shutil.copytree(BACKGROUND / "Greek", data / "Greek")
    done = diptych(
        "calibrate", CALIBRATED, "--data", data, "--output", tmp_path / "new", "--split-by", "group", "--quiet"
    )
    assert done.returncode == 0, done.stderr
    facts = load_checkpoint(tmp_path / "new").description.calibration
    assert (facts.intervals_over, facts.units) == ("group", 2)


def test_folder_names_that_are_no_unicode_and_tiny_splits_still_make_a_checkpoint(tmp_path: Path) -> None:
    """Eight identities of one image each, one of them named by a camera from another century."""
    for number, path in enumerate(drawings("Angelic/character01") + drawings("Kannada/character02")[:2]):
        name = os.fsdecode(b"caf\xe9") if number == 3 else f"i{number}"
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(path, tmp_path / "data" / name / "one.png")
    options = ("--calibration-share", "0.3", "--test-share", "0.3", "--epochs", "1", "--width", "0.25")
    output = tmp_path / "out"
    done = diptych("train", tmp_path / "data", "--output", output, *options, "--image-size", "16", "--quiet")
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(output).description.threshold_source == "margin"
    assert "NaN" not in (output / "report" / "metrics.json").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ("embed", GOLDEN, EVALUATION, "--output", "/proc/nowhere/e.npz"),
        ("embed", GOLDEN, EVALUATION, "--output", EVALUATION),
        ("evaluate", GOLDEN, "--data", EVALUATION, "--output", GOLDEN / "checkpoint.json"),
        ("calibrate", GOLDEN, "--data", EVALUATION, "--output", GOLDEN / "checkpoint.json" / "x"),
        ("evaluate", GOLDEN, "--data", EVALUATION, "--root", EVALUATION),
        ("evaluate", GOLDEN / "checkpoint.json", "--data", EVALUATION),
        ("evaluate", GOLDEN),
    ],
)
def test_outputs_that_cannot_be_written_end_with_one_line(arguments: tuple[str | Path, ...]) -> None:
    """And status 2, before the work."""
    done = diptych(*arguments, "--quiet")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1


def test_embed_writes_paths_and_embeddings_and_counts_what_is_no_image(tmp_path: Path) -> None:
    """As the service would embed them."""
    folder = tmp_path / "images"
    shutil.copytree(EVALUATION / "Angelic", folder / "Angelic")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_bytes(drawings("Angelic/character01")[0].read_bytes())
    done = diptych("embed", GOLDEN, folder, "--output", tmp_path / "e.npz", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "1 files skipped" in done.stdout
    with np.load(tmp_path / "e.npz", allow_pickle=False) as arrays:
        paths, embeddings = arrays["paths"], arrays["embeddings"]
    assert paths.dtype.kind == "U" and len(paths) == 31
    assert paths[:2].tolist() == [".hidden.png", "Angelic/character01/0965_01.png"]
    encoder = Encoder(load_checkpoint(GOLDEN))
    pixels = decode((folder / str(paths[7])).read_bytes(), encoder.preprocessing)
    assert np.allclose(embeddings[7], encoder.embed(pixels[None])[0], atol=1e-5)
