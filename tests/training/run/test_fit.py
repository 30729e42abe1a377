"""The loop: interrupted and resumed, in one process and in two, stopped early, and when it goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.checkpoint.format import Description
from app.checkpoint.store import load_checkpoint
from app.errors import TrainingFailed, UsageError
from tests.files import BACKGROUND
from tests.service import DIPTYCH, diptych
from training.network.backbones import build
from training.recipe import Recipe
from training.run.health import CHECK_EVERY, EpochSums, judge_epoch, warn_of_kept_epoch, warn_of_recipe
from training.run.resume import Progress
from training.run.trainer import learning_rate_share
from training.train import RunOptions, train_encoder

SMALL = ("--width", "0.25", "--image-size", "16", "--threads", "1", "--calibration-share", "0.3", "--test-share", "0.3")
RECIPE = Recipe(width=0.25, image_size=16, threads=1, calibration_share=0.3, test_share=0.3)


def train(output: Path, *, resume: bool = False, **choices: Any) -> Description:
    """A small real run in this process."""
    options = RunOptions(resume=resume, progress=False)
    checkpoint = train_encoder(BACKGROUND, output, RECIPE.but(**choices), options)
    assert checkpoint is not None
    return checkpoint.description


def history(checkpoint: Path) -> list[dict[str, float]]:
    return list(json.loads((checkpoint / "report" / "metrics.json").read_text())["history"])


def test_a_run_that_was_killed_goes_on_to_the_same_result(tmp_path: Path) -> None:
    """To the bit: weights, thresholds, and every epoch's figures; with dropout and augmentation."""
    choices = {"epochs": 12, "dropout": 0.2, "centres": 0.5, "quarter_turns": True}
    whole = train(tmp_path / "whole", **choices)

    output = tmp_path / "cut"
    options = ("--epochs", "12", "--dropout", "0.2", "--centres", "0.5", "--quarter-turns", "--quiet")
    command = [DIPTYCH, "train", BACKGROUND, "--output", output, *SMALL, *options]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 120
        while not (output / "resume.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
    assert (output / "resume.pt").exists() and not (output / "checkpoint.json").exists()

    with pytest.raises(UsageError, match="--resume"):
        train(output, **choices)
    with pytest.raises(UsageError, match="another margin"):
        train(output, resume=True, **choices, margin=0.9)

    resumed = train(output, resume=True, **choices)
    assert not (output / "resume.pt").exists()
    assert (whole.model_id, whole.calibration_id) == (resumed.model_id, resumed.calibration_id)
    for one, two in zip(history(tmp_path / "whole"), history(output), strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_nothing_to_resume_and_damaged_states_are_named(tmp_path: Path) -> None:
    """In one line."""
    with pytest.raises(UsageError, match="nothing to resume"):
        train(tmp_path / "none", resume=True)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "resume.pt").write_bytes(b"\x80\x04rubbish")
    options = ("--epochs", "1", "--resume", "--quiet")
    done = diptych("train", BACKGROUND, "--output", tmp_path / "bad", *SMALL, *options)
    assert done.returncode == 2 and "can't be read" in done.stderr and done.stderr.count("\n") == 1


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Half of each batch each, pairs across them, one checkpoint: the weights that the whole batch gives."""
    choices = {"epochs": 3, "precision": "32", "optimizer": "sgd", "learning_rate": 0.01, "centres": 0.2,
               "supervised": 0.1, "quarter_turns": True, "mirrors": True, "identities_per_batch": 16}  # fmt: skip
    train(tmp_path / "one", **choices)
    options = [f"--{name.replace('_', '-')}" for name, value in choices.items() if value is True]
    for name, value in choices.items():
        options += [] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    torchrun = Path(sys.executable).parent / "torchrun"
    command = [torchrun, "--nproc-per-node", "2", "--no-python", DIPTYCH, "train", BACKGROUND, "--output",
               tmp_path / "two", *SMALL, *options, "--quiet"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checkpoint ") == 1
    one, two = (load_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert two.description.training["processes"] == 2
    torch.manual_seed(0)
    start = build(one.description.architecture).state_dict()
    a, b = load_file(one.weights), load_file(two.weights)
    for name in a:
        step = float((a[name].float() - start[name]).abs().max())
        assert float((a[name].float() - b[name].float()).abs().max()) <= 0.02 * step + 1e-3, name
    for row, other in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert other["train_loss"] == pytest.approx(row["train_loss"], rel=5e-3)


def test_patience_stops_early_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    """Far fewer epochs than allowed, and the figures of the best of them."""
    best = train(tmp_path / "out", epochs=200, patience=2, learning_rate=0.02).training["kept_epoch"]
    rows = history(tmp_path / "out")
    assert len(rows) == best + 2 < 200
    assert min(rows, key=lambda row: row["validation_eer"])["epoch"] == best


def test_a_margin_is_searched_and_each_try_is_recorded(tmp_path: Path) -> None:
    """And the best of them trained with."""
    description = train(tmp_path / "out", epochs=3, margin="search")
    tried = description.training["margins_tried"]
    assert len(tried) == 5
    assert description.margin == min(tried, key=lambda row: row["same_group_eer"])["margin"]
    assert "margin tried" in (tmp_path / "out" / "report" / "index.html").read_text()


def test_scalars_of_every_epoch_go_to_tensorboard(trained: Path) -> None:
    """Readable by TensorBoard itself."""
    events = EventAccumulator(str(trained / "report" / "tensorboard")).Reload()
    assert {"train/loss", "validation/loss", "validation/eer", "validation/accuracy"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("validation/eer")] == list(range(1, 21))


def test_a_margin_that_keeps_nothing_apart_ends_the_run_with_advice(tmp_path: Path) -> None:
    """A silent bad checkpoint would be the worst outcome."""
    with pytest.raises(TrainingFailed, match=r"collapsed.*--margin"):
        train(tmp_path / "out", epochs=150, margin=0.0001, learning_rate=0.01)
    assert not (tmp_path / "out" / "checkpoint.json").exists()


def row(**changes: float | None) -> dict[str, float | None]:
    usual = {"epoch": 10, "steps": 500, "train_genuine_term": 0.1, "train_impostor_term": 0.1, "validation_eer": 0.1,
             "validation_loss": 0.1, "validation_impostor_distance": 1.0}  # fmt: skip
    return {**usual, **changes}


def test_each_trouble_is_named_with_its_advice() -> None:
    """Once each, and a healthy epoch not at all."""
    recipe, warnings = Recipe(epochs=10), list[str]()
    judge_epoch(row(), recipe, warnings)
    assert warnings == []
    judge_epoch(row(train_impostor_term=0.0), recipe, warnings)
    judge_epoch(row(train_impostor_term=0.0), recipe, warnings)
    assert len(warnings) == 1 and "farther apart than the margin" in warnings[0] and "--margin" in warnings[0]
    warn_of_kept_epoch(row(validation_eer=0.48), warnings)
    assert len(warnings) == 2 and "chance" in warnings[1]
    warn_of_kept_epoch(row(validation_impostor_distance=0.01), warnings)
    assert len(warnings) == 3 and "too short to spread the embeddings out" in warnings[2]
    with pytest.raises(TrainingFailed, match=r"became NaN.*--learning-rate"):
        judge_epoch(row(validation_loss=float("nan")), recipe, warnings)
    with pytest.raises(TrainingFailed, match=r"collapsed.*--margin"):
        judge_epoch(row(validation_impostor_distance=0.01), recipe, warnings)
    assert "right angles" in warn_of_recipe(Recipe(margin=1.8))[0]
    assert warn_of_recipe(Recipe(margin=1.0)) == warn_of_recipe(Recipe(margin="search")) == []


def test_a_loss_that_is_no_number_ends_the_run_soon() -> None:
    """Within the epoch, with the settings to change."""
    sums = EpochSums(3, Recipe())
    sums.add_step(torch.tensor(1.0), torch.tensor(0.5), torch.tensor(0.5))
    nan = torch.tensor(float("nan"))
    sums.add_step(nan, nan, nan)
    for _ in range(CHECK_EVERY - 2):
        sums.add_step(nan, nan, nan)
    with pytest.raises(TrainingFailed, match=r"nan in epoch 3.*--learning-rate"):
        sums.add_step(nan, nan, nan)


@given(st.integers(1, 5000), st.floats(0, 0.9))
def test_the_rate_warms_up_and_falls_to_nearly_zero(total: int, warm_up: float) -> None:
    """Never above its peak, never negative, nowhere zero before the end."""
    rates = np.array([learning_rate_share(step, total, warm_up) for step in range(total)])
    assert (rates > 0).all() and (rates <= 1).all()
    peak = int(rates.argmax())
    assert (np.diff(rates[: peak + 1]) >= 0).all() and (np.diff(rates[peak:]) <= 0).all()


def test_progress_knows_its_best_epoch() -> None:
    """By EER; by loss where there is none."""
    done = Progress()
    for epoch, eer in enumerate((0.3, 0.1, 0.2), start=1):
        done.add_epoch({"epoch": epoch, "validation_eer": eer, "validation_loss": 1.0})
    assert (done.epoch, done.best_epoch) == (3, 2)
    done = Progress()
    for epoch, loss in enumerate((0.3, 0.4, 0.2), start=1):
        done.add_epoch({"epoch": epoch, "validation_eer": None, "validation_loss": loss})
    assert done.best_epoch == 3
