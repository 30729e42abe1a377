"""More than the service can answer: refused at once and in words, and the rest answered."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from app.http.protocol import HEAD_BYTES, HEAD_SECONDS
from tests.files import GOLDEN, drawings
from tests.service import Serve, Service, assert_problem

A = drawings("Angelic/character01")
HEAD = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(GOLDEN, tmp_path_factory.mktemp("overload") / "data")
    yield running
    running.stop()


def test_a_burst_is_answered_or_refused_with_when_to_come_again(serve: Serve) -> None:
    """Nothing else, and the service is as before."""
    service = serve(concurrency="1", queue_length="1")
    images = [("images", path.read_bytes()) for path in A[:5]] * 6

    def ask(number: int) -> httpx.Response:
        with httpx.Client(base_url=service.client.base_url, timeout=30) as client:
            return client.post("/enroll", data={"identity": f"i{number}"}, files=images)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(36)))
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) == {201, 503} and counts[201] >= 2, counts
    for answer in answers:
        if answer.status_code == 503:
            assert_problem(answer, 503, "overloaded")
            assert answer.headers["retry-after"] == "1"
    listed = service.client.get("/collections/default/identities?limit=1000").json()["identities"]
    assert len(listed) == counts[201]
    assert service.verify(A[0], A[1]).status_code == 200


def test_bodies_together_have_a_bound(serve: Serve) -> None:
    """Uploads that stop half way hold what they sent; one more is refused, and let in when they are gone."""
    service = serve(max_held_bytes="1000000")
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
    with ExitStack() as open_ones:
        for _ in range(2):
            connection = open_ones.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            connection.sendall(HEAD + b"Content-Length: 800000\r\n\r\n" + part + bytes(499_000))
        for _ in range(100):  # until both have been read
            answer = service.client.post("/embed", files={"image": A[0].read_bytes() + bytes(20_000)})
            if answer.status_code == 503:
                break
            time.sleep(0.05)
        assert "uploads" in assert_problem(answer, 503, "overloaded")["detail"]
    deadline = time.monotonic() + 5
    while service.client.post("/embed", files={"image": A[0].read_bytes()}).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def conversation(service: Service, sent: bytes, wait: float) -> tuple[bytes, float]:
    """What comes back until the connection ends, and how long that took."""
    started, said = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", service.port), timeout=wait) as connection:
        try:
            connection.sendall(sent)
            while more := connection.recv(65536):
                said += more
        except ConnectionError:
            pass
    return said, time.monotonic() - started


@pytest.mark.parametrize("endless", [b"GET / HTTP/1.1\r\nX-Long: ", b"GET /"], ids=["header", "path"])
def test_a_head_without_end_is_refused(usual: Service, endless: bytes) -> None:
    """By its size, as a problem document with an id; and whoever goes on sending is cut off."""
    said, _ = conversation(usual, endless + b"a" * (HEAD_BYTES + 1 - len(endless)), 5)
    assert said.startswith(b"HTTP/1.1 400") and b"application/problem+json" in said and b"x-request-id: " in said
    said, _ = conversation(usual, endless + b"a" * (HEAD_BYTES + 300_000), 5)
    assert said == b"" or said.startswith(b"HTTP/1.1 400")  # what was on its way may cost the sender the answer
    assert usual.client.get("/readyz").status_code == 200


def test_what_is_no_http_gets_a_problem_document(usual: Service) -> None:
    """With an id of its own, although no request came to be."""
    said, _ = conversation(usual, b"GET / HTTP/9.9\r\n\r\n", 5)
    assert said.startswith(b"HTTP/1.1 400") and b"x-request-id: " in said and b"malformed_request" in said


def test_an_answer_that_is_due_comes_before_what_is_no_request(usual: Service) -> None:
    """Garbage behind a request does not take its answer away, and ends the connection after it."""
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
    body = part + A[0].read_bytes() + b"\r\n--x--\r\n"
    sent = HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body + b"garbage\r\n" * 100
    said, taken = conversation(usual, sent, 10)
    assert said.startswith(b"HTTP/1.1 200") and said.count(b"HTTP/1.1 ") == 1 and taken < 4


def test_half_a_head_and_silence_are_not_waited_for(usual: Service) -> None:
    """Connections that never become a request end by themselves, all at the same time."""
    taken = []

    def wait(sent: bytes) -> None:
        taken.append(conversation(usual, sent, HEAD_SECONDS + 10)[1])

    threads = [threading.Thread(target=wait, args=(sent,)) for sent in (b"", b"GET / HTTP/1.1\r\nHost: loc")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 2 and all(HEAD_SECONDS - 2 < one < HEAD_SECONDS + 5 for one in taken)


def test_trailers_are_no_headers_and_have_an_end(usual: Service) -> None:
    """What a proxy has checked stays as it was; and a megabyte of them is too many."""
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n--x\r\n\r\n0\r\n"
    said, _ = conversation(usual, chunked + b"Origin: http://evil\r\nX-Request-ID: mine\r\n\r\n", 15)
    assert said.startswith(b"HTTP/1.1 422") and b"x-request-id: mine" not in said
    with socket.create_connection(("127.0.0.1", usual.port), timeout=5) as connection:
        connection.sendall(chunked)
        cut_off = False
        for _ in range(200):
            try:
                connection.sendall(b"a:b\r\n" * 10_000)
            except OSError:
                cut_off = True
                break
            time.sleep(0.01)
    assert cut_off
    assert usual.client.get("/readyz").status_code == 200


def test_a_body_that_is_too_large_is_not_asked_for(usual: Service) -> None:
    """A client that waits to be asked hears the refusal instead."""
    head = HEAD + b"Expect: 100-continue\r\nContent-Length: 999999999\r\n\r\n"
    said, taken = conversation(usual, head, 5)
    assert said.startswith(b"HTTP/1.1 413") and b"connection: close" in said.lower() and taken < 4


def test_a_body_that_was_answered_already_does_not_hold_the_connection(usual: Service) -> None:
    """Neither if it never ends nor if it ends later."""

    def take(rest: bytes) -> float:
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", usual.port), timeout=HEAD_SECONDS + 10) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(0.5)
            connection.sendall(rest)
            while connection.recv(65536):
                pass
        return time.monotonic() - started

    with ThreadPoolExecutor(2) as threads:
        unfinished, finished_late = threads.map(take, [b"x", b"xy"])
    assert unfinished < HEAD_SECONDS + 5 and finished_late < HEAD_SECONDS + 5


def test_large_uploads_leave_no_memory_behind(usual: Service) -> None:
    """Neither what is embedded nor what is refused, and not more than a few at a time meanwhile."""
    status = Path(f"/proc/{usual.process.pid}/status")

    def mib(field: str) -> int:
        return int(status.read_text().partition(f"{field}:")[2].split()[0]) // 1024

    drawing, padding = A[0].read_bytes(), bytes(8_000_000)
    files = {"image_a": drawing + padding, "image_b": drawing + padding}
    usual.client.post("/verify", files=files)
    before = mib("VmRSS")
    Path(f"/proc/{usual.process.pid}/clear_refs").write_text("5")  # the peak is that from here on
    for refused in (False, True):
        sent = {name: padding if refused else data for name, data in files.items()}
        for _ in range(25):
            assert usual.client.post("/verify", files=sent).status_code == (415 if refused else 200)
    assert mib("VmHWM") - before < 200
