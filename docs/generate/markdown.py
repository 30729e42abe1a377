"""Text from the code as Markdown."""

from collections.abc import Iterable, Sequence


def cell(text: object) -> str:
    """Text for a cell of a table: one line, with what Markdown or HTML would take for markup escaped."""
    line = " ".join(str(text).split())
    parts = line.split("`")
    # Every second part stands between backticks, where only the bar needs an escape.
    escaped = [
        part if number % 2 else part.replace("<", "&lt;").replace("*", r"\*").replace("_", r"\_")
        for number, part in enumerate(parts)
    ]
    return "`".join(escaped).replace("|", r"\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are Markdown already. A column after the first two that is empty throughout is left out."""
    rows = list(rows)
    kept = [number for number in range(len(head)) if number < 2 or any(row[number] for row in rows)]
    head, rows = [head[number] for number in kept], [[row[number] for number in kept] for row in rows]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def paragraphs(text: str) -> str:
    """A docstring or description as paragraphs. Angle brackets are shown as they are."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")).replace("<", "&lt;")
