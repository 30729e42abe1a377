"""Forms and the images in them: what can't be used is refused by name and field."""

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.files import drawings
from tests.service import Application, assert_problem

ANGELIC, KANNADA, TIBETAN = "Angelic/character01", "Kannada/character02", "Tibetan/character03"
A, B = drawings(ANGELIC), drawings(KANNADA)
TEXT = Path(__file__)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 422, "empty_image"),
        (b"just text", 415, "unsupported_format"),
        (A[0].read_bytes()[:100], 422, "damaged_image"),
        (png(Image.new("L", (100, 100), 255)), 422, "blank_image"),
        (png(Image.new("1", (7000, 7000))), 413, "too_many_pixels"),
        (bytes(1_000_001), 413, "image_too_large"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused_by_name_and_field(
    service: Application, data: bytes, status: int, code: str
) -> None:
    """Wherever an image may be sent."""
    good = A[0].read_bytes()
    problem = assert_problem(service.client.post("/verify", files={"image_a": good, "image_b": data}), status, code)
    assert problem["field"] == "image_b"
    assert_problem(service.client.post("/embed", files={"image": data}), status, code)


def test_bytes_decide_not_names_nor_content_types(service: Application) -> None:
    """A PNG that calls itself text is a PNG, a text that calls itself PNG is none."""
    good, text = A[0].read_bytes(), TEXT.read_bytes()
    right = service.client.post("/embed", files={"image": ("notes.txt", good, "text/plain")})
    assert right.status_code == 200
    assert_problem(
        service.client.post("/embed", files={"image": ("a.png", text, "image/png")}), 415, "unsupported_format"
    )


def test_a_body_over_the_limit_is_refused_whether_or_not_it_says_so(service: Application) -> None:
    """By its Content-Length, or by what arrives."""
    limit = 2 * 1_000_000 + 2**20
    large = {"image_a": A[0].read_bytes(), "image_b": bytes(limit)}
    assert_problem(service.client.post("/verify", files=large), 413, "request_too_large")

    request = service.client.build_request("POST", "/verify", files=large)
    body = request.read()
    chunks = (body[start : start + 65536] for start in range(0, len(body), 65536))
    headers = {"Content-Type": request.headers["content-type"]}
    assert_problem(service.client.post("/verify", content=chunks, headers=headers), 413, "request_too_large")


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"--x\r\nrubbish", "multipart/form-data; boundary=x", 422),
        (b"rubbish", "multipart/form-data", 400),
        (b"{}", "application/json", 422),
    ],
)
def test_a_malformed_body_is_a_problem_document(
    service: Application, content: bytes, content_type: str, status: int
) -> None:
    """The parser's complaint is the caller's to mend."""
    response = service.client.post("/verify", content=content, headers={"Content-Type": content_type})
    assert_problem(response, status, "malformed_request" if status == 400 else "invalid_request")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"treshold": "0.1"}, "no field 'treshold'"),
        ({"threshold": ["0.1", "0.9"]}, "given 2 times"),
        ({"threshold": ""}, "is empty"),
    ],
)
def test_a_misspelt_repeated_or_empty_field_is_not_passed_over(
    service: Application, fields: dict[str, str | list[str]], words: str
) -> None:
    """A threshold that was meant and ignored would be a wrong verdict."""
    files = {"image_a": A[0].read_bytes(), "image_b": A[1].read_bytes()}
    response = service.client.post("/verify", data=fields, files=files)
    assert words in assert_problem(response, 422, "invalid_request")["detail"]
