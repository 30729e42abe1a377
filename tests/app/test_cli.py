"""The command line stays light: what each command imports, and how it names mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import diptych

HEAVY = {
    "onnxruntime",
    "PIL",
    "numpy",
    "pydantic",
    "limits",
    "fastapi",
    "faiss",
    "sqlalchemy",
    "torch",
    "scipy",
    "tqdm",
}
OF_THE_SERVICE = {"fastapi", "starlette", "uvicorn", "onnxruntime", "faiss", "torch"}
SCRIPT = """
import json, sys
sys.argv = ["diptych", *sys.argv[1:]]
from app.cli import main
try:
    main()
finally:
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def imported(*arguments: str | Path) -> set[str]:
    """Packages that are loaded when a command has run."""
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["keys", "--help"], ["backup", "--help"]])
def test_help_loads_no_package_that_takes_long(arguments: list[str]) -> None:
    """`diptych --help` answers at once, although it lists the commands of training too."""
    loaded = imported(*arguments)
    assert "click" in loaded and not loaded & HEAVY


def test_commands_on_a_gallery_load_neither_web_server_nor_encoder(tmp_path: Path) -> None:
    """Keys and backups are the gallery's alone."""
    data = ["--data-dir", tmp_path / "data"]
    assert not imported("keys", "create", "till", *data) & OF_THE_SERVICE
    assert not imported("keys", "list", *data) & OF_THE_SERVICE
    assert not imported("backup", tmp_path / "copy", "--quiet", *data) & OF_THE_SERVICE


def test_the_help_of_serve_lists_every_setting() -> None:
    """So that nobody has to look for them elsewhere."""
    from app.settings import Settings

    shown = diptych("serve", "--help").stdout
    assert not {name for name in Settings.model_fields if f"DIPTYCH_{name.upper()}" not in shown}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serv"], "No such command 'serv'"),
        (["serve", "--port", "70000"], "70000 is not in the range"),
        (["serve", "--checkpoint", "nowhere"], "There is no checkpoint 'nowhere'. Give a directory"),
        (["keys", "list", "--data-dir", "nowhere"], "There is no gallery"),
    ],
)
def test_a_mistake_is_named_in_one_line(arguments: list[str], says: str) -> None:
    """With status 2 and without a traceback."""
    done = diptych(*arguments)
    assert done.returncode == 2 and says in done.stderr
    assert len(done.stderr.splitlines()) == 1
