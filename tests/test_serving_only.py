"""Every command where only the packages that serving needs are installed.

They are simulated: the interpreter, and every process that it starts, finds no file of site-packages that does not
belong to a package in `requirements/service.txt`.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from tests.files import BACKGROUND, EVALUATION, GOLDEN, drawings
from tests.service import Serve, diptych

REQUIREMENTS = Path(__file__).parent.parent / "requirements" / "service.txt"
INSTALL = "`make env-training`"
SITECUSTOMIZE = """
import json, re, sys
from importlib.machinery import PathFinder
from pathlib import Path

class ServingOnly(PathFinder):
    site, files, names = json.loads(Path(__file__).with_name("allowed.json").read_text())
    files = set(files)

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        hidden = spec is not None and spec.origin and spec.origin.startswith(cls.site) and spec.origin not in cls.files
        return None if hidden else spec

    @classmethod
    def find_distributions(cls, *context):
        found = super().find_distributions(*context)
        return (package for package in found if re.sub("[-_.]+", "-", package.name).lower() in cls.names)

sys.meta_path[sys.meta_path.index(PathFinder)] = ServingOnly
"""
EVERY_HELP = """
import sys, click
from app.cli import cli

def show(command, path):
    context = click.Context(command, info_name=path[-1])
    assert command.get_help(context).startswith("Usage:")
    print(" ".join(path))
    for name in command.list_commands(context) if isinstance(command, click.Group) else ():
        show(command.get_command(context, name), [*path, name])

show(cli, ["diptych"])
"""


@pytest.fixture(scope="module")
def serving_only(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has only what serving needs."""
    names = re.findall(r"^([a-z0-9-]+)==", REQUIREMENTS.read_text(), re.MULTILINE)
    files = []
    for name in names:
        with suppress(PackageNotFoundError):  # for another platform or version of Python
            package = distribution(name)
            files += [str(package.locate_file(file)) for file in package.files or ()]
    folder = tmp_path_factory.mktemp("serving-only")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    allowed = [sysconfig.get_path("purelib"), files, [*names, "diptych"]]
    (folder / "allowed.json").write_text(json.dumps(allowed))
    return {"PYTHONPATH": str(folder)}


def run(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_the_simulation_hides_what_only_training_has(serving_only: dict[str, str]) -> None:
    """SciPy and PyTorch are not found, and what serving needs is."""
    for name in ("scipy", "sklearn", "torch", "matplotlib", "safetensors", "httpx"):
        assert f"No module named '{name}'" in run(f"import {name}", serving_only).stderr
    done = run("import fastapi, faiss, onnxruntime, opentelemetry.trace, numpy, pydantic, PIL", serving_only)
    assert done.returncode == 0, done.stderr


def test_every_command_shows_its_help(serving_only: dict[str, str]) -> None:
    """Commands and their sub-commands, those of training too."""
    done = run(EVERY_HELP, serving_only)
    assert done.returncode == 0, done.stderr
    shown = set(done.stdout.splitlines())
    assert {f"diptych {name}" for name in ("serve", "train", "lint", "evaluate", "calibrate", "embed")} <= shown
    assert "diptych keys create" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", BACKGROUND, "--output", "out"),
        ("calibrate", GOLDEN, "--data", EVALUATION, "--output", "out"),
    ],
)
def test_commands_that_need_more_say_what_to_install(
    serving_only: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str | Path, ...]
) -> None:
    """In one line, with exit status 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    done = diptych(*arguments, **serving_only)
    assert done.returncode == 2
    assert INSTALL in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_embedding_evaluating_and_checking_images_work(serving_only: dict[str, str], tmp_path: Path) -> None:
    """They need no PyTorch and no SciPy."""
    a, b = drawings("Angelic/character01")[:2]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"image_a,image_b,same\n{a.relative_to(EVALUATION)},{b.relative_to(EVALUATION)},1\n")
    for arguments, text in (
        (("embed", GOLDEN, EVALUATION, "--output", tmp_path / "e.npz"), "90 embeddings"),
        (("evaluate", GOLDEN, "--data", EVALUATION), "EER"),
        (("evaluate", GOLDEN, "--pairs", pairs, "--root", EVALUATION, "--output", tmp_path), "of 1 genuine pairs"),
        (("lint", EVALUATION, "--checkpoint", GOLDEN), "90 images of 15 identities"),
    ):
        done = diptych(*arguments, **serving_only)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert text in done.stdout


def test_a_gallery_is_kept_and_served(
    serving_only: dict[str, str], tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command on a gallery, and the service itself."""
    home = ("--data-dir", tmp_path / "data")
    encoder = ("--checkpoint", GOLDEN)
    for arguments in (
        ("import", EVALUATION / "Angelic", *home, *encoder),
        ("report", *home, *encoder, "--output", tmp_path / "report.json"),
        ("export", tmp_path / "all.jsonl", *home),
        ("backup", tmp_path / "copy", *home),
        ("restore", tmp_path / "copy", "--data-dir", tmp_path / "other"),
        ("import", tmp_path / "all.jsonl", "--data-dir", tmp_path / "third", *encoder),
        ("migrate", "--forget-others", *home),
        ("keys", "create", "office", *home),
        ("keys", "list", *home),
        ("keys", "revoke", "office", "--last", *home),
    ):
        done = diptych(*arguments, **serving_only)
        assert done.returncode == 0, (arguments, done.stderr)
    monkeypatch.setenv("PYTHONPATH", serving_only["PYTHONPATH"])
    service = serve(data_dir=tmp_path / "data")
    assert service.search(drawings("Angelic/character01")[0]).json()["gallery_size"] == 5
