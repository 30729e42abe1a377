"""Bodies to uploads and fields: whatever the pieces, the same parts; whatever the bytes, parts or a named error."""

import asyncio
import gc
import itertools
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import MalformedRequest
from app.http.routes.multipart import MAX_FIELD_BYTES, Part, Parts, Upload

CONTENT_TYPE = "multipart/form-data; boundary=xyz"


def read(body: bytes, cuts: list[int], content_type: str = CONTENT_TYPE, files: int = 8, fields: int = 8) -> list[Part]:
    """The parts of a body that arrives in pieces, cut at these places."""

    async def pieces() -> AsyncIterator[bytes]:
        places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
        for start, end in itertools.pairwise(places):
            yield body[start:end]

    return asyncio.run(Parts(content_type, max_files=files, max_fields=fields).read(pieces()))


def sent(parts: list[Part]) -> bytes:
    """As a client sends them."""
    body = b""
    for name, value in parts:
        extra = f'; filename="{value.filename}"' if isinstance(value, Upload) else ""
        data = value.data if isinstance(value, Upload) else value.encode()
        body += f'--xyz\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + data + b"\r\n"
    return body + b"--xyz--\r\n"


names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)
uploads = st.builds(Upload, names, st.binary(max_size=300).filter(lambda data: b"\r\n--xyz" not in data))
values = st.text(max_size=100).filter(lambda text: "\r\n--xyz" not in text)


@given(st.lists(st.tuples(names, st.one_of(uploads, values)), max_size=6), st.lists(st.integers(0, 5000), max_size=6))
def test_parts_arrive_as_they_were_sent_however_the_body_is_cut(parts: list[Part], cuts: list[int]) -> None:
    """Also in the middle of a boundary or a header."""
    assert read(sent(parts), cuts) == parts


@given(st.binary(max_size=500), st.lists(st.integers(0, 500), max_size=4))
def test_any_bytes_are_parts_or_a_named_error(body: bytes, cuts: list[int]) -> None:
    """Nothing else comes out of the parser."""
    with suppress(MalformedRequest):
        read(b"--xyz" + body, cuts)


def test_a_part_that_does_not_end_is_none() -> None:
    """What was cut off is not taken for a smaller file."""
    body = sent([("a", Upload("a.png", b"1234")), ("b", Upload("b.png", b"5678"))])
    assert read(body[: body.index(b"5678") + 2], []) == [("a", Upload("a.png", b"1234"))]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([(f"f{n}", Upload("x", b"")) for n in range(9)], "too many files"),
        ([(f"f{n}", "x") for n in range(9)], "too many fields"),
        ([("long", "x" * (MAX_FIELD_BYTES + 1))], "1,048,576 bytes"),
    ],
    ids=["files", "fields", "long field"],
)
def test_what_nobody_means_is_refused(parts: list[Part], words: str) -> None:
    """By number and size, before it is kept."""
    with pytest.raises(MalformedRequest, match=words):
        read(sent(parts), [])


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 5000])
def test_a_boundary_that_is_missing_or_endless_is_named(content_type: str) -> None:
    """As what makes the body unreadable."""
    with pytest.raises(MalformedRequest, match="boundary"):
        read(b"", [], content_type)


def test_a_part_without_a_name_is_refused() -> None:
    """It can belong to no field."""
    with pytest.raises(MalformedRequest, match="no name"):
        read(b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xyz--\r\n", [])


def test_uploads_are_gone_with_their_last_user() -> None:
    """Not when the garbage collector comes by: a photo has megabytes, and it counts objects."""
    gc.disable()
    try:
        (part,) = read(sent([("a", Upload("a.png", b"1234"))]), [20])
        upload = weakref.ref(part[1])
        del part
        assert upload() is None
    finally:
        gc.enable()
