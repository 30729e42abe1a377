"""What holds before a body is read and after an answer is sent: request ids, counts, the size of bodies."""

import logging
import re
import time
import uuid
from collections.abc import Callable

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.dependencies import Resources
from app.errors import DiptychError, RequestTooLarge
from app.problems import problem

log = logging.getLogger("uvicorn.error")

REQUEST_ID = "X-Request-ID"
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# A client that is still sending does not read. What is too large is read on and thrown away for so long.
DRAIN_FACTOR = 2
DRAIN_SECONDS = 10.0


class Outermost:
    """Gives each request an id (the caller's own, if it is harmless), and answers for what nobody caught."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            log.exception("unexpected error, request %s", request_id)
            if started:
                raise  # the answer is cut off; only the connection's end can tell the caller
            ours = DiptychError("The service made a mistake, and it is in its log under this request_id.")
            await problem(ours, scope)(scope, receive, send_with_id)


class Counted:
    """Counts answers and times them, by route as declared, so that names in paths are no labels."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            resources: Resources = scope["state"]["resources"]
            route = getattr(scope.get("route"), "path", "none")
            # A caller may invent methods; series are kept for ever.
            method = scope["method"] if scope["method"] in METHODS else "other"
            resources.metrics.requests.labels(method, route, status).inc()
            resources.metrics.seconds.labels(method, route).observe(time.perf_counter() - started)


class BodyLimit:
    """Answers 413 to a body larger than `limit(path)` bytes, said or found to be, before anything parses it."""

    def __init__(self, app: ASGIApp, limit: Callable[[str], int]) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.limit(scope["path"])
        refusal = RequestTooLarge(f"The request's body has more than the {limit:,} bytes allowed here.")
        said = Headers(scope=scope).get("content-length", "0")
        if not said.isdecimal() or int(said) > limit:
            await drain(receive, DRAIN_FACTOR * limit)
            await problem(refusal, scope)(scope, receive, send)
            return
        received = 0
        exceeded = started = False

        async def receive_counted() -> Message:
            nonlocal received, exceeded
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                exceeded = True
                if message.get("more_body", False):
                    await drain(receive, DRAIN_FACTOR * limit)
                raise refusal
            return message

        async def send_unless_exceeded(message: Message) -> None:
            nonlocal started
            if exceeded and not started:
                return  # what the parser made of the interruption; the answer follows below
            started = True
            await send(message)

        try:
            await self.app(scope, receive_counted, send_unless_exceeded)
        except RequestTooLarge:
            if started:
                raise
        if exceeded and not started:
            await problem(refusal, scope)(scope, receive, send)


async def drain(receive: Receive, at_most: int) -> None:
    """Read on for a while what is not wanted: a client that is still sending does not read the answer."""
    read, more = 0, True
    with anyio.move_on_after(DRAIN_SECONDS):
        while more and read <= at_most:
            message = await receive()
            read += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
