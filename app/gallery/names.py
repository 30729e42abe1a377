"""What callers may call things, and the metadata that they may keep with them. Checks only: no database."""

import json
import unicodedata
from typing import Any

from app.errors import InvalidMetadata, InvalidName

NAME_LENGTH = 128
NAME_RULE = f"1 to {NAME_LENGTH} characters, no control characters, no `/`, not `.` or `..`"
METADATA_DEPTH = 16
MAX_METADATA_BYTES = 16 * 1024
FILENAME_LENGTH = 255


def check_name(name: str) -> str:
    """The name of a collection or identity, if it is allowed. Raises `InvalidName` where it is not.

    >>> check_name("mug 7")
    'mug 7'
    """
    forbidden = [c for c in name if c == "/" or unicodedata.category(c) in ("Cc", "Cs")]
    # Clients fold `.` and `..` out of a path: DELETE .../identities/.. would arrive as DELETE of the collection.
    if forbidden or name in (".", "..") or not 1 <= len(name) <= NAME_LENGTH:
        raise InvalidName(f"{name[:40]!r} is not allowed as a name: use {NAME_RULE}.")
    return name


def printable_filename(filename: str | None) -> str:
    """A caller's file name, kept only for display: without its path, and without characters that can't be printed.

    >>> printable_filename("C:\\\\photos\\\\mug\\x07.jpg")
    'mug.jpg'
    """
    name = (filename or "").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in name if c.isprintable())[:FILENAME_LENGTH] or "image"


def check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata, if it can be stored and returned as JSON. Raises `InvalidMetadata` where it can't."""
    layer: list[Any] = [metadata]
    for _ in range(METADATA_DEPTH):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if layer:
        raise InvalidMetadata(f"`metadata` is nested too deeply: at most {METADATA_DEPTH} levels are allowed.")
    try:
        # Not every string that JSON can spell is Unicode (lone surrogates), and not every float is JSON.
        text = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except ValueError as problem:
        raise InvalidMetadata(f"`metadata` holds a value that JSON can't represent: {problem}.") from None
    if "\\u0000" in text:
        raise InvalidMetadata("`metadata` holds the character NUL, which a database can't store. Remove it.")
    check_metadata_size(size)
    return metadata


def check_metadata_size(size: int) -> None:
    """Raises `InvalidMetadata` if an identity's metadata, merged, takes more bytes of JSON than the limit."""
    if size > MAX_METADATA_BYTES:
        raise InvalidMetadata(f"`metadata` takes {size:,} bytes; at most {MAX_METADATA_BYTES:,} are allowed.")


def parse_metadata(text: str | None, field: str = "metadata") -> dict[str, Any]:
    """The JSON object in a form field; an empty one if the field is absent. Raises `InvalidMetadata`.

    >>> parse_metadata('{"year": 2015}')
    {'year': 2015}
    """
    if text is None:
        return {}
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise InvalidMetadata(f'`{field}` is not valid JSON ({problem}). Send an object such as {{"a": 1}}.') from None
    if not isinstance(parsed, dict):
        raise InvalidMetadata(f'`{field}` must be a JSON object such as {{"a": 1}}.')
    return check_metadata(parsed)
