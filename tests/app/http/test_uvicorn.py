"""The private parts of uvicorn that `app.http.protocol` and `app.serving.drain` build on, each by name.

uvicorn promises none of them. Where one is gone or another version is installed, this fails and says what to read.
"""

import inspect
from importlib.metadata import version

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

READ_AGAIN = "read app/http/protocol.py and app/serving/drain.py against the new source, then change this test"
# The version whose source both files were read against.
VERSION = "0.54.0"
METHODS = [
    # Overridden in `Protocol`, and called on the base.
    (HttpToolsProtocol, "connection_made", ["self", "transport"]),
    (HttpToolsProtocol, "connection_lost", ["self", "exc"]),
    (HttpToolsProtocol, "data_received", ["self", "data"]),
    (HttpToolsProtocol, "on_header", ["self", "name", "value"]),
    (HttpToolsProtocol, "on_headers_complete", ["self"]),
    (HttpToolsProtocol, "on_body", ["self", "body"]),
    (HttpToolsProtocol, "on_message_complete", ["self"]),
    (HttpToolsProtocol, "on_response_complete", ["self"]),
    (HttpToolsProtocol, "send_400_response", ["self", "msg"]),
    # Called by `Protocol`.
    (HttpToolsProtocol, "timeout_keep_alive_handler", ["self"]),
    # Overridden in `Workers`, and called on the base.
    (Multiprocess, "terminate_all", ["self"]),
    (Multiprocess, "join_all", ["self"]),
    (Multiprocess, "__init__", ["self", "config", "sockets"]),
    (Process, "terminate", ["self"]),
    # `announce_stop` waits with the handler that uvicorn set for SIGTERM.
    (Server, "handle_exit", ["self", "sig", "frame"]),
]
ATTRIBUTES = [
    (HttpToolsProtocol, "__init__", ["transport", "cycle", "loop"]),
    (RequestResponseCycle, "__init__", ["response_complete", "keep_alive"]),
    (Multiprocess, "__init__", ["sockets", "processes", "signal_queue"]),
    (Process, "__init__", ["process"]),
]


def test_the_version_is_the_one_that_was_read() -> None:
    """Another one may have changed what these names mean."""
    assert version("uvicorn") == VERSION, f"uvicorn {version('uvicorn')} instead of {VERSION}: {READ_AGAIN}"


@pytest.mark.parametrize(("owner", "name", "parameters"), METHODS, ids=[f"{o.__name__}.{n}" for o, n, _ in METHODS])
def test_a_method_that_we_use_takes_what_we_give_it(owner: type, name: str, parameters: list[str]) -> None:
    """Its name and the names of its parameters."""
    method = getattr(owner, name, None)
    assert method is not None, f"{owner.__name__}.{name} is gone: {READ_AGAIN}"
    found = list(inspect.signature(method).parameters)
    assert found == parameters, f"{owner.__name__}.{name} takes {found} instead of {parameters}: {READ_AGAIN}"


@pytest.mark.parametrize(("owner", "name", "attributes"), ATTRIBUTES, ids=[o.__name__ for o, *_ in ATTRIBUTES])
def test_an_attribute_that_we_use_is_set(owner: type, name: str, attributes: list[str]) -> None:
    """By the method that makes the object."""
    source = inspect.getsource(getattr(owner, name))
    gone = [attribute for attribute in attributes if f"self.{attribute}" not in source]
    assert not gone, f"{owner.__name__} has no {gone}: {READ_AGAIN}"


def test_uvicorn_listens_to_signals_before_the_lifespan_begins() -> None:
    """`announce_stop` takes uvicorn's handler over: it must be set by then, in a main thread."""
    source = inspect.getsource(Server.serve)
    assert "capture_signals" in source, f"uvicorn sets its signal handlers elsewhere: {READ_AGAIN}"
    assert "self.handle_exit" in inspect.getsource(Server.capture_signals), READ_AGAIN
