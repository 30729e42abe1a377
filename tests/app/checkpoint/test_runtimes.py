"""Another runtime embeds alike, says so, and is refused where it can't be had."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app.checkpoint.encoder import Encoder
from app.checkpoint.format import RuntimeName
from app.checkpoint.matching import distance
from app.checkpoint.store import load_checkpoint
from app.image.policy import decode
from tests.files import GOLDEN, drawings

RUNTIMES: list[tuple[RuntimeName, float]] = [("openvino", 1e-5), ("openvino-bf16", 0.02)]


def has_bfloat16() -> bool:
    """As the kernel lists what the processor can, unless oneDNN is told to use less of it."""
    if "ONEDNN_MAX_CPU_ISA" in os.environ:
        return False
    return "avx512_bf16" in Path("/proc/cpuinfo").read_text() or "amx_bf16" in Path("/proc/cpuinfo").read_text()


@pytest.mark.parametrize(("runtime", "most"), RUNTIMES if has_bfloat16() else RUNTIMES[:1])
def test_another_runtime_gives_nearly_the_same_distances(runtime: RuntimeName, most: float) -> None:
    """On real drawings; and the drift that it reports is of that size."""
    opened = load_checkpoint(GOLDEN)
    usual, other = Encoder(opened), Encoder(opened, 1, runtime, 2)
    images_NHWC = np.stack([decode(path.read_bytes(), usual.preprocessing) for path in drawings("Angelic/character01")])
    before, now = usual.embed(images_NHWC), other.embed(images_NHWC)
    pairs = itertools.combinations(range(len(images_NHWC)), 2)
    drift = max(abs(distance(before[i], before[j]) - distance(now[i], now[j])) for i, j in pairs)
    assert drift < most
    said = other.runtime()
    assert said.name == "openvino" and said.pairs == 120 and said.max_distance_drift < most


def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """Its telemetry leaves a file in the user's home and starts a process that sends; with ours there is neither."""
    script = f"""
from app.checkpoint.store import load_checkpoint
from app.checkpoint.encoder import Encoder
Encoder(load_checkpoint({str(GOLDEN)!r}), 1, "openvino").warm_up()
import multiprocessing, sys
assert sys.modules["openvino_telemetry"] is None and not multiprocessing.active_children()
"""
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=60)
    assert list(tmp_path.rglob("*")) == []


def test_the_usual_runtime_says_what_the_checkpoint_says() -> None:
    """It was measured on real pairs when it was exported."""
    opened = load_checkpoint(GOLDEN)
    assert Encoder(opened).runtime() == opened.description.runtime


def test_a_runtime_that_is_not_installed_is_named_with_what_to_do() -> None:
    """In an interpreter that does not find it."""
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'openvino' else find(name, *more)\n"
        "from app.checkpoint.encoder import Encoder; from app.errors import UsageError\n"
        "from app.checkpoint.store import load_checkpoint\n"
        "try: Encoder(load_checkpoint('omniglot'), 1, 'openvino')\n"
        "except UsageError as problem: print(problem.detail)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "EXTRAS=openvino" in done.stdout


@pytest.mark.skipif(not has_bfloat16(), reason="this processor does not multiply in bfloat16")
def test_bfloat16_without_its_instructions_is_refused_in_one_line() -> None:
    """oneDNN may be told to use fewer instructions than the processor has."""
    code = (
        "from app.checkpoint.encoder import Encoder; from app.checkpoint.store import load_checkpoint\n"
        "from app.errors import UsageError\n"
        "try: Encoder(load_checkpoint('omniglot'), 1, 'openvino-bf16')\n"
        "except UsageError as problem: print(problem.detail)\n"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "OpenVINO can't compute in bfloat16 here. Use the runtime onnxruntime.\n"
