"""The gallery as /readyz sees it: its database, its schema, its encoder, and the images kept beside it."""

from collections.abc import Iterator

from app.database.transactions import SCHEMA, Database
from app.errors import ModelMismatch, Unavailable
from app.gallery.encoders import find_model_key
from app.gallery.originals import Originals
from app.serving.live import LiveState
from app.serving.readiness import Check, make_check


class ServedGallery:
    """Three checks from one read: a database server that does not answer is waited for once."""

    def __init__(self, database: Database, live: LiveState) -> None:
        self._database = database
        self._live = live

    def check(self) -> Iterator[Check]:
        schema: str | None = None
        unreadable: Unavailable | None = None
        moved: Unavailable | None = None
        try:
            with self._database.read() as connection:
                schema = self._database.schema(connection)
                try:
                    find_model_key(connection, self._live.checkpoint.gallery_encoder)
                except ModelMismatch as mismatch:
                    moved = Unavailable(mismatch.detail)
        except Unavailable as problem:
            unreadable = problem
        yield make_check("gallery", lambda: self._check_database(unreadable))
        yield make_check("schema", lambda: self._check_schema(schema, unreadable))
        yield make_check("model", lambda: self._check_encoder(unreadable or moved))

    def _check_database(self, unreadable: Unavailable | None) -> str:
        _raise_again(self._database.trouble)
        _raise_again(unreadable)
        self._database.is_writable()
        return "can be read and written"

    def _check_schema(self, schema: str | None, unreadable: Unavailable | None) -> str:
        _raise_again(unreadable)
        if schema != SCHEMA:
            raise Unavailable(
                f"The gallery has schema {schema}, but this version of Diptych needs {SCHEMA}: another version of "
                "Diptych migrated it. Restart the service with that version."
            )
        return f"is {SCHEMA}, which this version needs"

    def _check_encoder(self, problem: Unavailable | None) -> str:
        _raise_again(self._live.stranded)
        _raise_again(problem)
        return f"the gallery belongs to {self._live.checkpoint.model_id}"


class KeptImages:
    """Where the images of references are kept, if they are."""

    def __init__(self, originals: Originals) -> None:
        self._originals = originals

    def check(self) -> Iterator[Check]:
        yield make_check("images", self._check)

    def _check(self) -> str:
        _raise_again(self._originals.trouble)
        return "are kept" if self._originals.keeps else "are not kept"


def _raise_again(problem: Unavailable | None) -> None:
    """Raise a problem that was met before as a new one, without the frames of that time."""
    if problem is not None:
        raise type(problem)(problem.detail)
