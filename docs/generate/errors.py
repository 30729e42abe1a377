"""The error codes, from the error tree."""

from app.errors import DiptychError, GalleryError, ImageError, MigrationBlocked, TrainingFailed, UsageError
from app.http.problems import HTTP_CODES
from docs.generate.markdown import cell, table

# Only their subclasses are raised.
ABSTRACT = {ImageError, GalleryError}
FRAMEWORK = {404: "There is nothing at this path", 405: "The path does not take this method"}


def subclasses(kind: type[DiptychError]) -> set[type[DiptychError]]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def codes_on_the_wire() -> dict[tuple[int, str], str]:
    """The title of each status and code that a client can meet."""
    commands_only = subclasses(UsageError) | {TrainingFailed, MigrationBlocked}
    found: dict[tuple[int, str], str] = {}
    # Where classes share a code, the most general one gives the title.
    for kind in sorted(subclasses(DiptychError) - commands_only - ABSTRACT, key=lambda kind: -len(kind.__mro__)):
        found[kind.status, kind.code] = kind.title
    # Those that the web framework raises have no class of their own.
    for status, code in HTTP_CODES.items():
        if (status, code) not in found:
            found[status, code] = FRAMEWORK[status]
    return found


def errors() -> str:
    """One table, by status."""
    rows = [(str(status), f"`{code}`", cell(title)) for (status, code), title in sorted(codes_on_the_wire().items())]
    return table(("status", "code", "title"), rows)
