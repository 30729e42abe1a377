"""Imports point one way: who may know whom, as a test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.import_graph import circles, file_graph, modules, room_graph, room_of

ROOT = Path(__file__).parent.parent
FILES = modules(ROOT)
GRAPH = file_graph(ROOT)

# Each room may import from those before it, and from itself.
APP = (
    "errors",
    "arrays",
    "progress",
    "files",
    "image",
    "checkpoint",
    "settings",
    "database",
    "gallery",
    "search",
    "serving",
    "http",
)
MAY_IMPORT = {f"app.{room}": {f"app.{before}" for before in APP[:at]} for at, room in enumerate(APP)}
MAY_IMPORT["app.maintenance"] = MAY_IMPORT["app.serving"]
MAY_IMPORT["app.main"] = MAY_IMPORT["app.http"] | {"app.http"}
MAY_IMPORT["app.cli"] = MAY_IMPORT["app.main"] | {"app.main", "app.maintenance"}
# Training sees exactly the pixels and the distance that will serve, and nothing else of the service.
SHARED = {"app.errors", "app.arrays", "app.progress", "app.files", "app.image", "app.checkpoint"}
TRAINING = (
    *("recipe", "data", "network", "calibration", "run", "export"),  # folder to checkpoint
    *("embed", "evaluate", "recalibrate", "summary", "report", "train"),  # a checkpoint on other images, and in words
    *("options", "cli"),
)
MAY_IMPORT |= {
    f"training.{room}": SHARED | {f"training.{before}" for before in TRAINING[:at]} for at, room in enumerate(TRAINING)
}


def test_there_are_files_to_check() -> None:
    """A test that looks at nothing would always pass."""
    assert {"app.main", "app.checkpoint.matching", "training.train", "training.run.loss"} <= set(FILES)


def test_rooms_rest_on_each_other_in_one_direction() -> None:
    """As the tables above say: app knows nothing of training, and training the lowest rooms of app."""
    crossing = set()
    for name, others in GRAPH.items():
        for other in others:
            here, there = room_of(name), room_of(other)
            if there != here and there not in MAY_IMPORT[here]:
                crossing.add((name, other))
    assert sorted(crossing) == []


def test_no_files_and_no_rooms_import_each_other_in_a_circle() -> None:
    """Whoever reads a file can read those below it first."""
    assert circles(GRAPH) == []
    assert circles(room_graph(ROOT)) == []


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("app")])
def test_the_service_never_imports_what_only_training_has(name: str) -> None:
    """Where only serving is installed, there is no PyTorch."""
    names = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    assert not names & {"torch", "torchvision", "onnx", "training", "scipy", "sklearn"}


def test_a_decoder_process_imports_little() -> None:
    """No web server, no runtime, no database: it starts in a tenth of a second, and a hole in it opens onto nothing."""
    script = "import sys, app.image.child; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"PIL", "numpy"} <= loaded
    assert not loaded & {
        "fastapi",
        "starlette",
        "pydantic",
        "uvicorn",
        "onnxruntime",
        "sqlalchemy",
        "faiss",
        "pillow_heif",
    }


def test_the_verdict_is_decided_in_one_place() -> None:
    """No other file of the service compares a distance with a threshold."""
    comparing = set()
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and name.startswith("app."):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                if any("distance" in side or "apart" in side for side in sides) and any(
                    "threshold" in side for side in sides
                ):
                    comparing.add(name)
    assert comparing == {"app.checkpoint.matching"}
