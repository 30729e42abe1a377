"""Imports point one way: who may know whom, as a test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("app/**/*.py"), *ROOT.glob("training/**/*.py")])
# Rooms that know nothing of any other, so that both halves can rest on them.
LEAVES = {
    "app.errors": set(),
    "app.image.policy": {"app.errors"},
    "app.checkpoint.matching": {"app.errors"},
    # Nor does what runs beside the service, and must start soon and hold little.
    "app.image.suspects": {"app.image.policy"},
    "app.image.confinement": set(),
    "app.image.child": {"app.image.confinement", "app.errors", "app.image.policy", "app.image.suspects"},
}
SHARED_WITH_TRAINING = {
    "app.image.policy",
    "app.checkpoint.encoder",
    "app.checkpoint.format",
    "app.checkpoint.matching",
    "app.errors",
}


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it; `from app import x` counts as app.x."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in inside if (ROOT / Path(*name.split("."))).with_suffix(".py").exists()}
            names |= known or {str(node.module)}
    return names


def rooms(names: set[str], half: str) -> set[str]:
    return {name for name in names if name == half or name.startswith(half + ".")}


def test_there_are_files_to_check() -> None:
    """A test that looks at nothing would always pass."""
    assert {"app.main", "app.checkpoint.matching", "training.run.train", "training.run.loss"} <= {
        module(path) for path in FILES
    }


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_point_one_way(path: Path) -> None:
    """training may use five rooms of app; app uses nothing of training, nor torch; leaves know what is said above."""
    name, names = module(path), imported(path)
    if name.startswith("training"):
        assert rooms(names, "app") <= SHARED_WITH_TRAINING
    else:
        assert not rooms(names, "training")
        assert not {found for found in names if found.split(".")[0] in ("torch", "torchvision", "onnx")}
        if name != "app.main" and not name.startswith("app.http.routes"):
            assert rooms(names, "app.http.routes") <= {"app.http.routes.schemas", "app.http.routes.multipart"}
        if name in LEAVES:
            assert rooms(names, "app") <= LEAVES[name]


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
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and "app." in module(path):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                if any("distance" in side or "apart" in side for side in sides) and any(
                    "threshold" in side for side in sides
                ):
                    comparing.add(module(path))
    assert comparing == {"app.checkpoint.matching"}
