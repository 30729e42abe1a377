"""Which errors each endpoint may answer, for the OpenAPI document: for each status, its codes and their titles."""

from typing import Any

from app import errors
from app.errors import DiptychError

MEDIA_TYPE = "application/problem+json"
SCHEMA = {"$ref": "#/components/schemas/Problem"}

Errors = tuple[type[DiptychError], ...]

# Whatever is asked: the caller, its browser, its rate, and the state of the service.
ALWAYS: Errors = (
    errors.KeyRequired,
    errors.KeyUnknown,
    errors.NotAllowed,
    errors.ForeignOrigin,
    errors.UnknownHost,
    errors.TooManyRequests,
    errors.Unavailable,
    errors.StorageUnavailable,
    errors.GalleryDamaged,
    errors.DiptychError,
)
FORM: Errors = (errors.MalformedRequest, errors.InvalidRequest, errors.RequestTooLarge, errors.UploadTooSlow)
IMAGES: Errors = (
    errors.EmptyImage,
    errors.UnsupportedFormat,
    errors.DamagedImage,
    errors.BlankImage,
    errors.TooManyBytes,
    errors.TooManyPixels,
    errors.Overloaded,
)


def may_answer(*possible: type[DiptychError] | Errors) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that may answer these errors, and those of every route."""
    every: list[type[DiptychError]] = []
    for entry in (*possible, ALWAYS):
        every += entry if isinstance(entry, tuple) else (entry,)
    by_status: dict[int | str, list[type[DiptychError]]] = {}
    for error in dict.fromkeys(every):
        by_status.setdefault(error.status, []).append(error)
    return {status: _describe(by_status[status]) for status in sorted(by_status, key=int)}


def _describe(kinds: list[type[DiptychError]]) -> dict[str, Any]:
    shown = {error.code: {"summary": error.title, "value": _document(error)} for error in kinds}
    return {
        "description": "\n".join(f"- `{error.code}`: {error.title}." for error in kinds),
        "content": {MEDIA_TYPE: {"schema": SCHEMA, "examples": shown}},
    }


def _document(error: type[DiptychError]) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": f"{error.title}.",
        "code": error.code,
        "request_id": "0d6f7f2b8c0e4a1f9b3d5c7e91a2b4c6",
    }
