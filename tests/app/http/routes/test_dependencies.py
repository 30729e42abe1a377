"""Dependencies that only read the request are called without FastAPI's resolver, and the rest are left to it."""

import asyncio
import inspect
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request

from app.http.routes import collections, enroll, search, service, verify
from app.http.routes.dependencies import DirectRoute, call_readers_directly


async def _color(request: Request) -> str:
    return str(request.state.color)


async def _doubled(request: Request, color: Annotated[str, Depends(_color)]) -> str:
    return 2 * color


Color = Annotated[str, Depends(_color)]
Doubled = Annotated[str, Depends(_doubled)]


def answer(path: str, route_class: type) -> tuple[int, bytes]:
    """What a small application answers, with `red` as the colour of every request."""
    router = APIRouter(route_class=route_class)

    @router.get("/both/{name}")
    async def both(color: Color, name: str, doubled: Doubled, size: Annotated[int, Query(ge=1)] = 3) -> list[Any]:
        return [color, name, doubled, size]

    @router.get("/threaded")
    def threaded(color: Color) -> list[Any]:
        return [color]

    app, sent = FastAPI(), []
    app.include_router(router)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    path, _, query = path.partition("?")
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": []}
    asyncio.run(app({**scope, "state": {"color": "red"}}, receive, send))
    return sent[0]["status"], sent[1]["body"]


def test_an_endpoint_answers_the_same_by_either_route() -> None:
    """With path, query and dependencies of all kinds, as a coroutine and in a thread; and refuses the same."""
    from fastapi.routing import APIRoute

    for path in ("/both/a", "/both/a?size=7", "/both/a?size=0", "/threaded", "/none"):
        assert answer(path, DirectRoute) == answer(path, APIRoute), path
    assert answer("/both/a", DirectRoute) == (200, b'["red","a","redred",3]')


def test_only_what_reads_the_request_alone_is_taken_from_fastapi() -> None:
    """A dependency with dependencies of its own stays; an endpoint without any is as it was."""

    async def endpoint(color: Color, doubled: Doubled, size: int = 1) -> None:
        """Its words."""

    direct = call_readers_directly(endpoint)
    assert list(inspect.signature(direct).parameters) == ["request", "doubled", "size"]
    assert (direct.__name__, direct.__doc__) == ("endpoint", "Its words.")
    assert call_readers_directly(direct) is direct


def test_every_endpoint_is_resolved_directly_and_none_takes_all_resources() -> None:
    """Each signature names what it touches."""
    for module in (verify, search, enroll, collections, service):
        for route in module.router.routes:
            assert isinstance(route, DirectRoute), route
        assert "Resources" not in inspect.getsource(module)
