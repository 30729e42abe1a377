"""Multipart bodies to uploads and fields, while they arrive (RFC 7578). Uploads stay in memory.

    body, piece by piece ── python_multipart finds the parts ──> pieces of each ── joined once ──> bytes

`admission` has already limited each body and the memory of all bodies together, so nothing is written to a disk. A
photo is copied once here.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import MalformedRequest

MAX_FIELD_BYTES = 2**20


@dataclass(frozen=True)
class Upload:
    """One file: its bytes, and the name that the sender gave it, which is never trusted."""

    filename: str
    data: bytes = field(repr=False)


Part = tuple[str, Upload | str]


class Parts:
    """Reads the parts of one body, at most `max_files` and `max_fields`. Raises `MalformedRequest`."""

    def __init__(self, content_type: str, *, max_files: int, max_fields: int) -> None:
        _, options = parse_options_header(content_type)
        self._boundary = options.get(b"boundary", b"")
        self._found: list[Part] = []
        self._left = {"files": max_files, "fields": max_fields}

    async def read(self, body: AsyncIterator[bytes]) -> list[Part]:
        """All parts, in order. A part that does not end is left out."""
        # Not an attribute: the parser refers to this object, and the circle would keep uploads until the next garbage
        # collection.
        parser = self._parser()
        try:
            async for piece in body:
                parser.write(piece)
            parser.finalize()
        except FormParserError:
            raise MalformedRequest("The body is not valid multipart/form-data.") from None
        return self._found

    def _parser(self) -> MultipartParser:
        try:
            if self._boundary:
                return MultipartParser(
                    self._boundary,
                    {
                        "on_part_begin": self._begin,
                        "on_header_field": self._header_name,
                        "on_header_value": self._header_value,
                        "on_header_end": self._header_end,
                        "on_headers_finished": self._named,
                        "on_part_data": self._data,
                        "on_part_end": self._end,
                    },
                )
        except FormParserError:
            pass
        raise MalformedRequest("The Content-Type has no usable boundary, so the body cannot be read.")

    def _begin(self) -> None:
        self._header = [b"", b""]
        self._disposition = b""
        self._pieces: list[memoryview] = []
        self._size = 0

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = [b"", b""]

    def _named(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise MalformedRequest("A part of the body has no name in its Content-Disposition.")
        self._name = _text(options[b"name"])
        self._filename = _text(options[b"filename"]) if b"filename" in options else None
        kind = "fields" if self._filename is None else "files"
        self._left[kind] -= 1
        if self._left[kind] < 0:
            raise MalformedRequest(f"The body has too many {kind}.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._filename is None and self._size > MAX_FIELD_BYTES:
            raise MalformedRequest(
                f"The field {self._name[:40]!r} has more than the {MAX_FIELD_BYTES:,} bytes allowed."
            )
        self._pieces.append(memoryview(data)[start:end])  # no copy yet

    def _end(self) -> None:
        data = b"".join(self._pieces)
        self._pieces = []
        self._found.append((self._name, _text(data) if self._filename is None else Upload(self._filename, data)))


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")
