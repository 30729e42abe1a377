"""What is sent to break the connection: each is refused in words and in time, and the service goes on."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.files import GOLDEN
from tests.service import Service


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With the usual limits, but for the time that an upload may take."""
    running = Service(GOLDEN, tmp_path_factory.mktemp("hostile") / "data", upload_seconds="3")
    yield running
    running.stop()


def resident(service: Service) -> int:
    """MiB."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def test_ten_thousand_form_fields_are_refused(target: Service) -> None:
    """As a request that nobody means."""
    form = {f"field{n}": "x" for n in range(10_000)}
    answer = target.client.post("/verify", data=form, files={"image_a": b"x"})
    assert answer.status_code == 400 and answer.json()["code"] == "malformed_request"


def conversation(service: Service, *parts: bytes, wait: float = 10) -> bytes:
    """What comes back until the connection ends, or for so many seconds."""
    said = b""
    with socket.create_connection(("127.0.0.1", service.port), timeout=wait) as connection, suppress(OSError):
        for part in parts:
            connection.sendall(part)
        while more := connection.recv(65536):
            said += more
    return said


HEAD = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"


def test_an_upload_that_never_ends_is_not_waited_for(target: Service) -> None:
    """Nothing comes for longer than an upload may take: 408, and the connection is closed."""
    started = time.monotonic()
    said = conversation(target, HEAD + b"Content-Length: 1000\r\n\r\n--x\r\nContent-Disp", wait=15)
    assert said.startswith(b"HTTP/1.1 408") and b"upload_too_slow" in said
    assert 2 < time.monotonic() - started < 14


def test_an_upload_that_drips_is_not_waited_for_either(target: Service) -> None:
    """A byte now and then does not start the clock anew."""
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as connection:
        connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n--x\r\n")
        deadline, said = time.monotonic() + 12, b""
        connection.settimeout(0.2)
        while not said and time.monotonic() < deadline:
            try:
                connection.sendall(b"x")
                said = connection.recv(65536)
            except TimeoutError:
                continue
    assert said.startswith(b"HTTP/1.1 408")


def test_a_body_longer_than_it_says_is_cut_there(target: Service) -> None:
    """What comes after is no request, and harms nobody."""
    said = conversation(target, HEAD + b"Content-Length: 10\r\n\r\n" + b"--x\r\n" * 1000, wait=3)
    assert said.startswith(b"HTTP/1.1 4")
    assert target.client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        b"\x00" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Long: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
    ids=["noise", "version", "negative length", "two lengths", "long path", "long header"],
)
def test_what_is_no_http_ends_without_harm(target: Service, text: bytes) -> None:
    """Refused or cut off; the next caller is served."""
    conversation(target, text, wait=2)
    assert target.client.get("/readyz").status_code == 200


def test_a_caller_that_goes_away_leaves_nothing_behind(target: Service) -> None:
    """In the middle of an upload, a hundred times."""
    before = resident(target)
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", target.port), timeout=5) as connection:
            connection.sendall(HEAD + b"Content-Length: 2000000\r\n\r\n--x\r\n" + bytes(100_000))
    assert httpx.get(f"{target.client.base_url}/readyz", timeout=10).status_code == 200
    assert resident(target) - before < 100
