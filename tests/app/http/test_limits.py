"""Limits for each caller: how often, and how much at once."""

import socket
import time
from contextlib import ExitStack
from pathlib import Path

from tests.keys import ask, becomes, made
from tests.service import InProcess, Serve, assert_problem


def test_a_caller_who_asks_too_often_waits(in_process: InProcess, tmp_path: Path) -> None:
    """Each key has its own count; health is asked freely; the answer says how long to wait, and it is true."""
    data = tmp_path / "data"
    one, other = made(data, "one"), made(data, "other")
    service = in_process(data_dir=data, rate="5/3 second")
    statuses = [ask(service, "GET", "/collections", headers=one).status_code for _ in range(8)]
    assert statuses == [200] * 5 + [429] * 3
    refused = ask(service, "GET", "/collections", headers=one)
    assert_problem(refused, 429, "too_many_requests")
    assert ask(service, "GET", "/collections", headers=other).status_code == 200
    assert all(ask(service, "GET", "/readyz").status_code == 200 for _ in range(8))
    time.sleep(int(refused.headers["retry-after"]))
    assert ask(service, "GET", "/collections", headers=one).status_code == 200


def test_a_caller_has_so_many_requests_at_once(serve: Serve) -> None:
    """One that is still sending counts; afterwards there is room again."""
    service = serve(at_once="2")
    head = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with ExitStack() as held:
        for _ in range(2):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10))
            connection.sendall(head + b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 100")  # it was let in, and its body is read
        assert_problem(ask(service, "GET", "/collections"), 429, "too_many_requests")
    assert becomes(service, None, 200)


def test_forwarded_addresses_are_believed_of_named_proxies_alone(serve: Serve, tmp_path: Path) -> None:
    """Else a caller would choose under which address it is counted."""
    for name, proxies, expected in (("none", "", [200, 429, 429]), ("named", "127.0.0.1", [200, 200, 429])):
        service = serve(data_dir=tmp_path / name, rate="1/minute", trusted_proxies=proxies)
        came_from = ({"X-Forwarded-For": address} for address in ("10.0.0.1", "10.0.0.2", "10.0.0.2"))
        assert [ask(service, "GET", "/collections", headers=one).status_code for one in came_from] == expected
