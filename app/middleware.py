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
from app.errors import DiptychError, RequestError, RequestTooLarge, UploadTooSlow
from app.problems import problem

log = logging.getLogger("uvicorn.error")

REQUEST_ID = "X-Request-ID"
# The documentation's page has its script in itself; nothing is loaded from elsewhere, and nothing frames it.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
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
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
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
            if code := scope["state"].get("problem"):
                resources.metrics.problems.labels(code).inc()


class BodyLimit:
    """Answers 413 to a body larger than `limit(path)` bytes, said or found to be, before anything parses it; and 408
    to one that takes longer than `seconds` to arrive."""

    def __init__(self, app: ASGIApp, limit: Callable[[str], int], seconds: float) -> None:
        self.app = app
        self.limit = limit
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, deadline = self.limit(path_of(scope)), anyio.current_time() + self.seconds
        too_large = RequestTooLarge(f"The request's body has more than the {limit:,} bytes allowed here.")
        said = Headers(scope=scope).get("content-length", "0")
        if not said.isdecimal() or int(said) > limit:
            await drain(receive, DRAIN_FACTOR * limit)
            await problem(too_large, scope)(scope, receive, send)
            return
        received = 0
        arrived = started = False
        refusal: RequestError | None = None

        async def receive_counted() -> Message:
            nonlocal received, arrived, refusal
            if arrived:
                return await receive()
            try:
                with anyio.fail_after(deadline - anyio.current_time()):
                    message = await receive()
            except TimeoutError:
                refusal = UploadTooSlow(f"The body took longer than {self.seconds:g} seconds. Send it again, or less.")
                raise refusal from None
            arrived = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > limit:
                refusal = too_large
                if not arrived:
                    await drain(receive, DRAIN_FACTOR * limit)
                raise refusal
            return message

        async def send_unless_refused(message: Message) -> None:
            nonlocal started
            if refusal is not None and not started:
                return  # what the parser made of the interruption; the answer follows below
            started = True
            await send(message)

        try:
            await self.app(scope, receive_counted, send_unless_refused)
        except (RequestTooLarge, UploadTooSlow):
            if started:
                raise
        if refusal is not None and not started:
            await problem(refusal, scope)(scope, receive, send)


def path_of(scope: Scope) -> str:
    """The path as routes have it, behind a proxy that serves it under another one (`root_path`)."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


async def drain(receive: Receive, at_most: int) -> None:
    """Read on for a while what is not wanted: a client that is still sending does not read the answer."""
    read, more = 0, True
    with anyio.move_on_after(DRAIN_SECONDS):
        while more and read <= at_most:
            message = await receive()
            read += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
