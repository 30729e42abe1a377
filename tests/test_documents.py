"""The documents against the project: what they name exists, what they type works, and what exists they name."""

import doctest
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

import docs.generate.__main__ as site
from app import errors
from app.cli import cli
from app.http.problems import HTTP_CODES
from app.settings import Settings
from docs.generate.commands import every_command
from docs.generate.errors import codes_on_the_wire
from docs.generate.http import endpoints
from docs.generate.settings import GROUPS
from tests.service import DIPTYCH, Serve, Service

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *(ROOT / name for name in site.FROM_ROOT if name != "README.md"), *sorted(DOCS.rglob("*.md"))]
TEXT = {page: page.read_text() for page in PAGES}
# The changelog and old results speak of what is no more.
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md" and page.parent.name not in ("results", "decisions")]
# Settings of other programs that share the prefix.
FOREIGN = {"DIPTYCH_DB_PASSWORD"}
HOW_TO = DOCS / "how-to"
# In this order, in one folder, against one service; then, with the service stopped, the rest.
WHILE_IT_SERVES = [
    DOCS / "tutorial" / "index.md",
    README,
    *(HOW_TO / f"{name}.md" for name in ("choose-a-threshold", "prepare-your-images", "import-and-export")),
    *(HOW_TO / f"{name}.md" for name in ("back-up-and-restore", "delete-and-forget", "stop-and-repair")),
]
WHEN_STOPPED = [
    HOW_TO / f"{name}.md" for name in ("back-up-and-restore", "change-the-encoder", "use-api-keys", "monitor")
]


def shell_blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", TEXT[page], re.DOTALL | re.MULTILINE)


def typed(page: Path) -> list[str]:
    """Every line of a shell block, without its comment."""
    return [line.split("  #")[0].strip() for block in shell_blocks(page) for line in block.splitlines()]


def commands_shown() -> list[tuple[Path, str]]:
    """Every line that calls `diptych`, in blocks of code of any kind."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", TEXT[page], re.DOTALL | re.MULTILINE):
            lines = [re.sub(r"^(\w+=\S+ )*(\.venv/bin/)?", "", line.split("  #")[0]) for line in block.splitlines()]
            found += [(page, line) for line in lines if line.startswith("diptych ")]
    return found


def shown(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_is_short() -> None:
    """It is read by people who do not know yet whether they want to read on."""
    assert len(TEXT[README].splitlines()) <= 150


def test_every_command_has_a_line() -> None:
    """The table of commands is whole, and names nothing else."""
    listed = set(re.findall(r"^\| `diptych ([a-z]+)", TEXT[DOCS / "reference" / "commands.md"], re.MULTILINE))
    assert listed == set(cli.list_commands(click.Context(cli)))


@pytest.mark.parametrize(
    ("page", "line"), commands_shown(), ids=lambda value: shown(value) if isinstance(value, Path) else value
)
def test_every_command_shown_is_understood(page: Path, line: str) -> None:
    """Its arguments, options and their values are those that the command takes."""
    words = shlex.split(line)[1:]
    parsed: click.Command = cli
    context = click.Context(cli, info_name="diptych")
    while isinstance(parsed, click.Group):
        name = words.pop(0)
        command = parsed.get_command(context, name)
        assert command is not None, f"{shown(page)}: there is no command {name}"
        parsed = command
    try:
        parsed.make_context(parsed.name, words, parent=context)
    except click.BadParameter as problem:
        if "does not exist" not in problem.message:  # a file that earlier commands would have written
            raise


def test_make_targets_are_those_of_the_reference() -> None:
    """But for `help`, which lists itself; and every `make` that is typed anywhere is one of them."""
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)) - {"help"}
    table = TEXT[DOCS / "reference" / "commands.md"].split("## make")[1]
    assert set(re.findall(r"`make ([a-z-]+)`", table)) == targets
    for page in PRESENT:
        assert set(re.findall(r"`make ([a-z-]+)", TEXT[page])) <= targets, shown(page)
        assert {line.split()[1] for line in typed(page) if line.startswith("make ")} <= targets, shown(page)


def test_endpoints_spoken_of_exist() -> None:
    """Methods and paths, in prose and in requests with curl."""
    paths = {path for _, path in endpoints()} | {"/docs", "/openapi.json"}
    patterns = [re.compile(re.sub(r"\{\w+\}", "[^/]+", path)) for path in paths]
    for page in PRESENT:
        named = {(method, path) for method, path in re.findall(r"`(GET|POST|PATCH|DELETE) (/[^`]*)`", TEXT[page])}
        assert named <= endpoints(), shown(page)
        for path in re.findall(r"http://127\.0\.0\.1:800\d(/[^\s>]*)", TEXT[page]):
            assert any(pattern.fullmatch(path) for pattern in patterns), f"{shown(page)}: {path}"


def test_settings_spoken_of_exist() -> None:
    """Every name with the prefix is a setting."""
    known = {f"DIPTYCH_{name.upper()}" for name in Settings.model_fields}
    for page in PRESENT:
        assert set(re.findall(r"DIPTYCH_[A-Z_]*[A-Z]", TEXT[page])) <= known | FOREIGN, shown(page)


def test_every_setting_is_in_one_group() -> None:
    """Also the eight that most people need, which come first."""
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(Settings.model_fields)
    assert len(next(iter(GROUPS.values()))) == 8


def test_the_table_of_settings_has_their_defaults() -> None:
    """As they are written in the environment."""
    listed = dict(
        re.findall(r"^\| `DIPTYCH_([A-Z_]+)` \| `?([^`|]*?)`? ?\|", site.GENERATED["settings"](), re.MULTILINE)
    )
    assert set(listed) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        if field.default_factory is None:
            default = "" if field.default in (None, []) else field.default
            default = int(default) if isinstance(default, bool) else default
            assert listed[name.upper()] == (f"{default:g}" if isinstance(default, float) else str(default)), name


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_error_codes_are_those_of_the_tree() -> None:
    """Each under its status; and every code that is named beside a status is one of them."""
    abstract = {errors.ImageError, errors.GalleryError, errors.TrainingFailed, errors.MigrationBlocked}
    raised = subclasses(errors.DiptychError) - abstract - subclasses(errors.UsageError)
    assert set(codes_on_the_wire()) == {(kind.status, kind.code) for kind in raised} | set(HTTP_CODES.items())
    for page in PRESENT:
        named = {(int(status), code) for status, code in re.findall(r"\b([45]\d\d) `([a-z_]+)`", TEXT[page])}
        assert named <= set(codes_on_the_wire()), shown(page)


def test_the_rooms_are_those_of_the_readme() -> None:
    """The tree has every room of both halves, in one line each, and nothing that does not exist."""
    tree = TEXT[README].split("```text\n")[1].split("```")[0]
    listed, above = set(), ""
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        above = above if indent else name
        listed.add(above + name if indent else name)
        assert line.rstrip() != f"{indent}{name}", f"{name} has no gloss"
    rooms = {
        f"{path.parent.relative_to(ROOT)}/"
        for half in ("app", "training")
        for path in (ROOT / half).glob("*/__init__.py")
    }
    assert rooms <= listed
    assert all((ROOT / name).is_dir() for name in listed)


def test_files_spoken_of_exist() -> None:
    """A moved file takes its mention along."""
    tops = "app|benchmarks|deploy|docs|requirements|tests|training|\\.ci"
    for page in PRESENT:
        for name in re.findall(rf"(?<![\w/.-])((?:{tops})/[\w./-]*[\w/])", TEXT[page]):
            assert (ROOT / name).exists(), f"{shown(page)}: {name}"


def test_links_lead_to_files() -> None:
    """Read on a forge, where the site is not built; the site's own build checks headings too."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", TEXT[page]):
            if not re.match(r"https?:", target):
                assert (page.parent / target).resolve().exists(), f"{shown(page)}: {target}"


def test_every_page_is_in_the_navigation() -> None:
    """A page that no menu leads to is not found. Decisions are listed from their folder."""
    listed = set(re.findall(r'"([\w/-]+\.md)"', (DOCS / "zensical.toml").read_text()))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if page.parent.name != "decisions"}
    assert listed == pages | set(site.FROM_ROOT.values()) | {"decisions/index.md"}


def test_generated_parts_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathering the pages leaves no marker, and lists every decision with its date."""
    monkeypatch.setattr(site, "PAGES", tmp_path / "build" / "docs")
    site.gather()
    pages = {page: page.read_text() for page in (tmp_path / "build" / "docs").rglob("*.md")}
    assert not [page for page, text in pages.items() if "<!-- generated" in text]
    index = pages[tmp_path / "build" / "docs" / "decisions" / "index.md"]
    for page in (DOCS / "decisions").glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in index
    commands = pages[tmp_path / "build" / "docs" / "reference" / "commands.md"]
    for context, _ in every_command():
        assert f"## {context.command_path}\n" in commands


def test_other_hosts_are_recognised() -> None:
    """The check that ends a build of the site which would ask other hosts for anything."""
    assert doctest.testmod(site).attempted == 3
    assert doctest.testmod(site).failed == 0


def test_what_the_documents_create_is_ignored() -> None:
    """Data, checkpoints and one's own photos are not committed by mistake."""
    created = ["site/index.html", "photos/mug/1.jpg"]
    lines = [line for _, line in commands_shown()]
    created += [f"{name}/x" for name in re.findall(r"--(?:output|data-dir) ([\w./-]+)", "\n".join(lines))]
    created += [f"{line.split()[2]}/x" for line in lines if line.startswith("diptych backup ")]
    created += [line.split()[2] for line in lines if line.startswith("diptych export ")]
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        input="\n".join(created),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(done.stdout.split()) == set(created)


def test_every_page_with_commands_is_typed() -> None:
    """A new page with shell commands has its place among those that the next test types."""
    with_commands = {page for page in PAGES if shell_blocks(page)}
    assert with_commands - {ROOT / "CONTRIBUTING.md"} == {*WHILE_IT_SERVES, *WHEN_STOPPED}


def script(page: Path, port: int, *, restores: bool) -> str:
    """The page's commands as they stand; but the test has the environment, the service, and little time to train."""
    lines = []
    for block in shell_blocks(page):
        if ("diptych restore" in block) == restores:
            lines += [line.split("  #")[0].strip() for line in block.splitlines()]
    # The README's training is the tutorial's with other shares.
    skipped = re.compile(r"make |\. \.venv|diptych serve|diptych train .* --output runs/mine")
    lines = [line for line in (re.sub(r"^\.venv/bin/", "", line) for line in lines) if not skipped.match(line)]
    lines = [re.sub(r"127\.0\.0\.1:800\d", f"127.0.0.1:{port}", line) for line in lines]
    lines = [re.sub(r"^curl -s (.*)$", r"curl -sSf \1; echo", line) for line in lines]
    return "\n".join(f"{line} --epochs 1" if line.startswith("diptych train ") else line for line in lines)


def type_in(folder: Path, text: str, service: Service) -> list[dict[str, Any]]:
    """Run the commands; the JSON objects that they answered."""
    environment = {"PATH": f"{DIPTYCH.parent}:/usr/bin:/bin", "HOME": str(folder), "DIPTYCH_KEEP_IMAGES": "yes"}
    done = subprocess.run(
        ["bash", "-ec", text], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, (
        f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{service.log.read_text()[-2000:]}"
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_the_documents_commands_work_as_they_stand(serve: Serve, tmp_path: Path) -> None:
    """Copied from the pages, in one folder, against one service with the bundled checkpoint."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to("tutorial")
    service = serve("default", tmp_path / "data", keep_images="yes")
    answers = {page: type_in(tmp_path, script(page, service.port, restores=False), service) for page in WHILE_IT_SERVES}
    service.stop()
    for page in WHEN_STOPPED:
        restores = page.name == "back-up-and-restore.md"
        type_in(tmp_path, script(page, service.port, restores=restores), service)

    same, first, second, found = answers[README]
    assert same["verdict"] == "similar"
    shown_in_readme = json.loads(re.findall(r"```json\n(.*?)```", TEXT[README], re.DOTALL)[0])
    assert set(shown_in_readme) - {"..."} <= set(same)
    for field in ("distance", "threshold", "target_fmr", "fmr", "fnmr"):
        assert same[field] == pytest.approx(shown_in_readme[field], abs=1e-3), field
    assert len(first["references"]) == 2 and len(second["references"]) == 1
    assert found["matches"][0]["identity"] == "second"
    _, login, stranger, band = answers[HOW_TO / "choose-a-threshold.md"]
    assert (login["target_fmr"], login["references"]) == (0.002, 2) and login["fnmr"] is not None
    assert stranger["identity"] is None and stranger["target_fpir"] == 0.1
    assert band["verdict"] == "inconclusive"
