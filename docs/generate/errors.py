"""The error codes, from the error tree."""

from app.errors import DiptychError, GalleryError, ImageError, MigrationBlocked, TrainingFailed, UsageError
from app.http.problems import _HTTP_CODES
from docs.generate.markdown import cell, table

# Only their subclasses are raised.
ABSTRACT = {ImageError, GalleryError}


def subclasses(kind: type[DiptychError]) -> set[type[DiptychError]]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def codes_on_the_wire() -> dict[tuple[int, str], str]:
    """The title of each status and code that a client can meet."""
    commands_only = subclasses(UsageError) | {TrainingFailed, MigrationBlocked}
    found = {
        (status, code): "The request is not valid HTTP, or nothing is at that path"
        for status, code in _HTTP_CODES.items()
    }
    for kind in subclasses(DiptychError) - commands_only - ABSTRACT:
        # A subclass that shares its parent's code shares its line.
        parent = next((k for k in kind.__mro__[1:] if getattr(k, "code", None) == kind.code), kind)
        title = getattr(parent, "title", kind.title) if parent not in ABSTRACT else kind.title
        found[kind.status, kind.code] = title
    titles = {405: "The path exists, but not for this method", 404: "Nothing is at this path"}
    return found | {(s, c): titles[s] for s, c in _HTTP_CODES.items() if s in titles}


def errors() -> str:
    """One table, by status."""
    rows = [(str(status), f"`{code}`", cell(title)) for (status, code), title in sorted(codes_on_the_wire().items())]
    return table(("status", "code", "title"), rows)
