"""The README against the project: every command, endpoint, setting and code in it exists, and the other way round."""

import json
import re
import subprocess
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from app import errors
from app.cli import cli
from app.http.problems import HTTP_CODES
from app.main import create_app
from app.settings import Settings
from tests.service import Serve

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_commands_are_those_of_the_readme() -> None:
    """The table of commands is whole."""
    listed = set(re.findall(r"^\| `diptych ([a-z]+)", README, re.MULTILINE))
    assert listed == set(cli.commands) | set(entry_points(group="diptych.commands").names)


def test_make_targets_are_those_of_the_readme() -> None:
    """But for `help`, which lists itself."""
    listed = set(re.findall(r"`make ([a-z-]+)`", README))
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert listed == targets - {"help"}


def test_endpoints_are_those_of_the_readme() -> None:
    """Methods and paths."""
    listed = {tuple(found) for found in re.findall(r"`(GET|POST|PATCH|DELETE) (/[^`]*)`", README)}
    paths = create_app(Settings()).openapi()["paths"]
    assert listed == {(method.upper(), path) for path, methods in paths.items() for method in methods}


def test_settings_are_those_of_the_readme_with_their_defaults() -> None:
    """The table of settings is whole and right."""
    listed = dict(re.findall(r"^\| `DIPTYCH_([A-Z_]+)` \| `?([^`|]*?)`? ?\|", README, re.MULTILINE))
    assert set(listed) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        shown = listed[name.upper()]
        if field.default_factory is None:
            default = "" if field.default in (None, []) else field.default
            default = int(default) if isinstance(default, bool) else default
            assert shown == f"{default:g}" if isinstance(default, float) else shown == str(default), name


def test_error_codes_are_those_of_the_readme() -> None:
    """Each under its status."""
    listed = {
        (int(status), code)
        for status, codes in re.findall(r"^\| ([45]\d\d) \| (.*?) \|$", README, re.MULTILINE)
        for code in re.findall(r"`([a-z_]+)`", codes)
    }
    abstract = {errors.ImageError, errors.GalleryError, errors.TrainingFailed, errors.MigrationBlocked}
    raised = {
        (kind.status, kind.code) for kind in subclasses(errors.DiptychError) - abstract - subclasses(errors.UsageError)
    }
    assert listed == raised | set(HTTP_CODES.items())


def test_the_rooms_are_those_of_the_readme() -> None:
    """Every room of both halves has a line, and every line is about something that exists."""
    table = README[README.index("| room | holds |") : README.index("A checkpoint is a directory")]
    listed = set(re.findall(r"`((?:app|training)/[a-z]+(?:/|\.py))`", table))
    rooms = {
        f"{path.parent.relative_to(ROOT)}/"
        for half in ("app", "training")
        for path in (ROOT / half).glob("*/__init__.py")
    }
    assert {name for name in listed if name.endswith("/")} == rooms
    assert all((ROOT / name).exists() for name in listed)


def test_the_readmes_requests_work_as_they_stand(serve: Serve) -> None:
    """Copied from the page, against the bundled checkpoint: verdicts on real drawings."""
    service = serve("default")
    script = "".join(block for block in SHELL if "curl" in block)
    script = script.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}").replace("curl -s", "curl -sSf")
    script = re.sub(r"^(curl .*)$", r"\1; echo", script, flags=re.MULTILINE)
    done = subprocess.run(["bash", "-ec", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    same, different, _, _, found, claim, login, stranger = answers
    assert (same["verdict"], different["verdict"]) == ("similar", "dissimilar")
    assert same["threshold_source"] == "calibration" and same["fmr"] is not None
    assert found["matches"][0]["identity"] == "tibetan-3"
    assert claim["verdict"] == "similar"
    assert (login["target_fmr"], login["references"]) == (0.002, 2) and login["fnmr"] is not None
    assert stranger["identity"] is None and stranger["target_fpir"] == 0.1


@pytest.mark.parametrize("name", ["Dockerfile", "docker-compose.yml", "LICENSE", "benchmarks/RESULTS.md", ".ci/run"])
def test_files_that_the_readme_speaks_of_exist(name: str) -> None:
    """A moved file takes its mention along."""
    assert (ROOT / name).is_file()
