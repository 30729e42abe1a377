"""What surrounds every request: its id, the headers of its answer, metrics, the access line and the trace."""

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import DiptychError, Unavailable
from app.http import logs
from app.http.admission import path_of
from app.http.problems import problem
from app.serving.resources import Resources, resources_of
from app.serving.tracing import RequestSpan

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
# /docs has an inline script. Nothing is loaded from other sites, and no page may frame ours.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
# Paths that contain no name, for requests that were refused before they were routed.
UNROUTED = frozenset({"/verify", "/embed", "/enroll", "/search", "/collections", "/checkpoint", "/metrics"})
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Outermost:
    """Gives each request an id (the caller's own, if harmless), ends JSON with a newline, answers unexpected errors."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = is_json = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            nonlocal is_json
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                is_json = "json" in headers.get("content-type", "") and message["status"] != 204
                if is_json and (size := headers.get("content-length")):
                    headers["content-length"] = str(int(size) + 1)
            elif is_json and not message.get("more_body", False):
                message["body"] = message.get("body", b"") + b"\n"
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the time that uvicorn gives requests at the end is over
            if started:
                raise
            stopping = Unavailable(
                "The service is stopping, and this request took too long. Send it again in a moment, or to another "
                "instance."
            )
            await problem(stopping, scope)(scope, receive, send_with_id)
        except Exception:
            log.exception("unexpected error, request %s", request_id, extra={"request_id": request_id})
            if started:
                raise  # part of the answer is sent: only closing the connection tells the caller
            failure = DiptychError("The service failed. Its log has the error under this request_id.")
            await problem(failure, scope)(scope, receive, send_with_id)


class Counted:
    """Counts, times and logs answers, by declared route: names in paths must not become labels."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        status, sent = 500, 0

        async def send_and_note(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        resources = resources_of(scope)
        resources.metrics.under_way.inc()
        try:
            await self.app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            status, scope["state"]["problem"] = Unavailable.status, Unavailable.code
            raise
        except Exception:
            scope["state"].setdefault("problem", DiptychError.code)  # what `Outermost` answers
            raise
        finally:
            route = route_of(scope)
            # A caller may invent methods, and a series stays for the life of the process.
            method = scope["method"] if scope["method"] in METHODS else "other"
            seconds = time.perf_counter() - started
            resources.metrics.under_way.dec()
            resources.metrics.requests.labels(method, route, status).inc()
            resources.metrics.seconds.labels(method, route).observe(seconds)
            if resources.settings.access_log:
                logs.note(scope, route, status, seconds, sent)
            if code := scope["state"].get("problem"):
                resources.metrics.problems.labels(code).inc()


class Traced:
    """A span for each request, except those that machines send every few seconds."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        resources: Resources | None = scope.get("state", {}).get("resources")
        tracing = resources.metrics.tracing if resources else None
        if scope["type"] != "http" or resources is None or tracing is None or path_of(scope) in logs.QUIET:
            return await self.app(scope, receive, send)
        state = scope["state"]
        method = scope["method"] if scope["method"] in METHODS else "other"
        span, status = RequestSpan(tracing, method, Headers(scope=scope)), 500
        state["trace_id"] = span.trace_id

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with span.current():
                await self.app(scope, receive, send_and_note)
        finally:
            model_id = resources.live.checkpoint.model_id
            span.end(route_of(scope), status, state["request_id"], model_id, state.get("problem"))


def route_of(scope: Scope) -> str:
    """The declared route; `none` for unknown paths. A request that was refused before routing has its path at most."""
    route = getattr(scope.get("route"), "path", "")
    return route or (path if (path := path_of(scope)) in UNROUTED else "none")
