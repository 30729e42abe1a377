"""Limits that apply before a body is parsed: a place at the encoder, the size of the body, and the time it takes.

503  the encoder has no place for another request, or too many bytes are arriving  ->  at once, without parsing
413  the body is larger than this path allows                                      ->  as soon as that is known
408  the body does not arrive in time
"""

import asyncio
from collections.abc import Callable

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import DiptychError, Overloaded, RequestTooLarge, UploadTooSlow
from app.http.problems import problem
from app.serving.resources import resources_of

# Paths whose requests need the encoder.
EMBEDDING = {"/verify", "/search", "/embed", "/enroll"}
# A client that is still sending does not read the answer: so much of a body that is too large is read and discarded.
DRAIN_FACTOR = 2
DRAIN_SECONDS = 10.0


class Admission:
    """Refuses requests, or admits them and watches their bodies arrive.

    `limit(path)` is the largest body in bytes, `seconds` how long it may take, and `most_held` how many bytes of all
    bodies together may be in memory. A single request may always use its whole limit.
    """

    def __init__(self, app: ASGIApp, limit: Callable[[str], int], seconds: float, most_held: int) -> None:
        self.app = app
        self._limit = limit
        self._seconds = seconds
        self._most_held = most_held
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), path_of(scope)
        announced = headers.get("content-length", "0")
        if announced == "0" and "transfer-encoding" not in headers:
            await self.app(scope, receive, send)
            return
        limit = self._limit(path)
        if not announced.isdecimal() or int(announced) > limit:
            await refuse(_too_large(limit), limit, scope, receive, send)
        elif path in EMBEDDING and resources_of(scope).pipeline.is_full:
            busy = Overloaded("Too many requests are waiting for the encoder. Try again in a moment.")
            await refuse(busy, limit, scope, receive, send)
        else:
            await self._watched(limit, scope, receive, send)

    async def _watched(self, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0
        arrived = started = False
        refusal: DiptychError | None = None

        async def receive_counted() -> Message:
            nonlocal received, arrived, refusal
            message = await receive()
            if arrived:
                return message
            arrived = not message.get("more_body", False)
            if arrived:
                clock.reschedule(None)
            size = len(message.get("body", b""))
            received += size
            self._held += size
            if received > limit:
                refusal = _too_large(limit)
            elif self._held > max(self._most_held, received):
                refusal = Overloaded("Too many uploads are arriving. Try again in a moment.")
            if refusal is not None:
                if not arrived:
                    await drain(receive, DRAIN_FACTOR * limit)
                raise refusal
            return message

        async def send_unless_refused(message: Message) -> None:
            nonlocal started
            if refusal is not None and not started:
                return  # the parser's answer to the interruption; ours follows below
            started = True
            await send(message)

        try:
            async with asyncio.timeout(self._seconds) as clock:
                await self.app(scope, receive_counted, send_unless_refused)
        except TimeoutError:
            if started or not clock.expired():
                raise
            refusal = UploadTooSlow(
                f"The body took longer than {self._seconds:g} seconds. Send it again, or send a smaller one."
            )
        except DiptychError as problem_of_body:
            if started or problem_of_body is not refusal:
                raise
        finally:
            self._held -= received
        if refusal is not None and not started:
            await problem(refusal, scope)(scope, receive, send)


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The request body has more than the {limit:,} bytes allowed here.")


async def refuse(refusal: DiptychError, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request without using its body. A client that waits for permission to send it (`Expect`) gets none."""
    answer = problem(refusal, scope)
    if "expect" in Headers(scope=scope):
        answer.headers["Connection"] = "close"
    else:
        await drain(receive, DRAIN_FACTOR * limit)
    await answer(scope, receive, send)


def path_of(scope: Scope) -> str:
    """The path as routes declare it, without the prefix of a proxy (`root_path`)."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


async def drain(receive: Receive, at_most: int) -> None:
    """Read and discard for a while: a client that is still sending does not read the answer."""
    read, more = 0, True
    with anyio.move_on_after(DRAIN_SECONDS):
        while more and read <= at_most:
            message = await receive()
            read += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
