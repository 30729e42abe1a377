"""Builds the site: gathers the pages in `build/docs`, fills in what code knows, and has Zensical write `site`.

python -m docs.generate          (what `make docs` runs)
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from docs.generate.checkpoint import checkpoint
from docs.generate.commands import commands
from docs.generate.errors import errors
from docs.generate.http import http
from docs.generate.metrics import metrics
from docs.generate.settings import settings

ROOT = Path(__file__).parents[2]
SOURCE, PAGES, SITE = ROOT / "docs", ROOT / "build" / "docs", ROOT / "site"
# A page has `<!-- generated: NAME -->` where the text goes.
GENERATED: dict[str, Callable[[], str]] = {
    function.__name__: function for function in (checkpoint, commands, errors, http, metrics, settings)
}
MARKER = re.compile(r"<!-- generated: ([a-z]+) -->")
LOADED = re.compile(r"(?:src|srcset|href|data|poster|action)=[\"']?(?:https?:)?//([^/\"'>\s]+)")
# Pages that stand at the root of the repository, where people expect them.
FROM_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}


def title_of(page: Path) -> str:
    """The first heading."""
    first = page.read_text().split("\n", 1)[0]
    if not first.startswith("# "):
        raise SystemExit(f"{page}: a page begins with its title, `# ...`")
    return first[2:].strip()


def date_of(page: Path) -> str:
    """The page's `Date:` line. A decision without one is refused."""
    found = re.search(r"^Date: (\d{4}-\d\d-\d\d)$", page.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{page}: a decision has a line `Date: YYYY-MM-DD`")
    return found.group(1)


def decisions(folder: Path) -> list[Path]:
    """Every decision, newest first."""
    pages = [page for page in folder.glob("*.md") if page.name != "index.md"]
    by_title = sorted(pages, key=lambda page: title_of(page).lower())
    return sorted(by_title, key=date_of, reverse=True)


def list_of_decisions(pages: list[Path]) -> str:
    """The index: date, and the decision as a sentence."""
    lines = ["| date | decision |", "| --- | --- |"]
    lines += [f"| {date_of(page)} | [{title_of(page)}]({page.name}) |" for page in pages]
    return "\n".join(lines) + "\n"


def from_root(text: str) -> str:
    """Links of a page at the root, as seen from the site: `docs/x.md` is `x.md`."""
    text = re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", text)
    for name, page in FROM_ROOT.items():
        text = re.sub(rf"\]\({re.escape(name)}(#[^)]*)?\)", rf"]({page}\1)", text)
    return text


def gather() -> None:
    """Every page of the site in `build/docs`, and the configuration beside it."""
    shutil.rmtree(PAGES.parent, ignore_errors=True)
    shutil.copytree(SOURCE, PAGES, ignore=shutil.ignore_patterns("generate", "*.toml", "__pycache__", "overrides"))
    for name, page in FROM_ROOT.items():
        (PAGES / page).write_text(from_root((ROOT / name).read_text()))
    pages = decisions(PAGES / "decisions")
    for page in PAGES.rglob("*.md"):
        text = page.read_text()
        text = text.replace("<!-- generated: decisions -->", list_of_decisions(pages))
        # Files at the root that have a page of their own are linked as `../../NAME`.
        for name, target in FROM_ROOT.items():
            up = "../" * (len(page.relative_to(PAGES).parts) - 1)
            text = text.replace(f"]({up}../{name})", f"]({up}{target})")
        page.write_text(MARKER.sub(lambda found: GENERATED[found.group(1)](), text))
    config = (SOURCE / "zensical.toml").read_text()
    entries = "".join(
        f'    {{ {json.dumps(title_of(page).replace("`", ""), ensure_ascii=False)} = "decisions/{page.name}" }},\n'
        for page in pages
    )
    (PAGES.parent / "zensical.toml").write_text(config.replace("    # decisions\n", entries))


def hosts_asked(page: str) -> set[str]:
    """Hosts that a page of the site would have a browser ask for scripts, styles, fonts, images or frames.

    >>> hosts_asked('<a href="https://example.org/">a link is followed on a click</a>')
    set()
    >>> hosts_asked('<script src="https://cdn.example/x.js"></script>')
    {'cdn.example'}
    >>> hosts_asked("a { background: url(//fonts.example/y) }")
    {'fonts.example'}
    """
    loaded = [found for tag in re.findall(r"<(?!a\b)[a-z][^>]*>", page) for found in LOADED.findall(tag)]
    in_styles = re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//([^/\"')\s]+)", page)
    return set(loaded) | set(in_styles)


def check_hosts(site: Path) -> None:
    """Ends with a message where a page or style of the site needs another host."""
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        hosts = hosts_asked(path.read_text())
        if hosts:
            raise SystemExit(f"{path}: the site must not need other hosts, and asks {', '.join(sorted(hosts))}")


def main() -> None:
    gather()
    shutil.rmtree(SITE, ignore_errors=True)
    command = [Path(sys.executable).parent / "zensical", "build", "--clean", "--strict"]
    done = subprocess.run([*command, "-f", PAGES.parent / "zensical.toml"], check=False, cwd=PAGES.parent)
    if done.returncode != 0:
        sys.exit("The site was not built; see the warnings above.")
    check_hosts(PAGES.parent / "site")
    shutil.copytree(PAGES.parent / "site", SITE)
    print(f"The site is in {SITE.relative_to(ROOT)}: open {SITE.relative_to(ROOT)}/index.html.")


if __name__ == "__main__":
    main()
