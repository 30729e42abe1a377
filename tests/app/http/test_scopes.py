"""Scopes of keys: what the documents say to type works, and /metrics needs a key for all collections."""

import re
import shlex
from pathlib import Path

import pytest

from app.gallery.scopes import SCOPES
from tests.files import GOLDEN
from tests.service import Service, assert_problem, diptych

ROOT = Path(__file__).parent.parent.parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "deploy").rglob("*.yml")), *sorted((ROOT / "docs").rglob("*.md"))]
# From `diptych keys create` to the end of the line, or of what Markdown marks as code; a shell's redirection ends it.
TYPED = re.compile(r"(?:bin/)?diptych (keys create [^`\n>|(\"]+)")
COMMANDS = sorted({match[1].strip() for path in DOCUMENTS for match in TYPED.finditer(path.read_text())})


def create_key(data: Path, name: str, *options: str) -> dict[str, str]:
    """As the header that carries it."""
    done = diptych("keys", "create", name, "--data-dir", data, *options)
    assert done.returncode == 0, done.stderr
    return {"X-API-Key": done.stdout.strip()}


def test_what_the_documents_type_works(tmp_path: Path) -> None:
    """Every `diptych keys create` in README, docs and the configuration of Prometheus makes a key."""
    assert any("--scope watch" in command for command in COMMANDS)
    for number, command in enumerate(COMMANDS):
        done = diptych(*shlex.split(command.rstrip(".,:;)")), "--data-dir", tmp_path / str(number))
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout.startswith("diptych_")


@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_can_be_typed(tmp_path: Path, scope: str) -> None:
    """The command line takes its list from where keys are checked."""
    create_key(tmp_path, "name", "--scope", scope)
    assert scope in diptych("keys", "list", "--data-dir", tmp_path).stdout


def test_watch_cannot_be_limited_to_a_collection(tmp_path: Path) -> None:
    """/metrics is about all of them; the error says which key to make instead."""
    done = diptych("keys", "create", "k", "--scope", "watch", "--collection", "c", "--data-dir", tmp_path)
    assert done.returncode == 2 and "can't be limited to a collection" in done.stderr and not done.stdout


def test_metrics_take_a_key_that_may_watch_all_collections(tmp_path: Path) -> None:
    """`watch` or `admin`, for all collections; `verify` and `enroll` don't contain it, nor does a limited `admin`."""
    data = tmp_path / "data"
    allowed = [create_key(data, scope, "--scope", scope) for scope in ("watch", "admin")]
    both = create_key(data, "both", "--scope", "verify", "--scope", "watch")
    refused = [create_key(data, scope, "--scope", scope) for scope in ("verify", "enroll")]
    refused += [
        create_key(data, f"limited-{scope}", "--scope", scope, "--collection", "c")
        for scope in ("verify", "enroll", "admin")
    ]
    service = Service(GOLDEN, data)
    try:
        for headers in [*allowed, both]:
            assert service.client.get("/metrics", headers=headers).status_code == 200
        for headers in refused:
            problem = assert_problem(service.client.get("/metrics", headers=headers), 403, "not_allowed")
            assert "`watch`" in problem["detail"]
        assert_problem(service.client.get("/collections", headers=allowed[0]), 403, "not_allowed")
    finally:
        service.stop()
