"""What surrounds every request: its id, the headers of its answer, what is counted of it."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.dependencies import Resources
from app.errors import DiptychError
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
