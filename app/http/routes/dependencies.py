"""What a route may ask for, each under one name, so that its signature says what it touches.

They are ordinary FastAPI dependencies that only read the request. FastAPI's resolver takes some 25 microseconds for
each of them; `DirectRoute` calls them itself, for less than one.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, get_args

from fastapi import Depends, Request, params
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from app.database.transactions import Database
from app.gallery.keys import Caller
from app.gallery.originals import Originals
from app.http.audit import Audit
from app.serving.loaded import LoadedCheckpoint
from app.serving.metrics import Metrics
from app.serving.pipeline import Pipeline
from app.serving.readiness import Check
from app.serving.resources import resources_of
from app.settings import Settings

RequestReader = Callable[[Request], Awaitable[Any]]


async def _settings(request: Request) -> Settings:
    return resources_of(request.scope).settings


async def _pipeline(request: Request) -> Pipeline:
    return resources_of(request.scope).pipeline


async def _database(request: Request) -> Database:
    return resources_of(request.scope).database


async def _originals(request: Request) -> Originals:
    return resources_of(request.scope).originals


async def _metrics(request: Request) -> Metrics:
    return resources_of(request.scope).metrics


async def _checkpoint(request: Request) -> LoadedCheckpoint:
    """One for the whole request: another may take its place meanwhile."""
    return resources_of(request.scope).live.checkpoint


async def _readiness(request: Request) -> Callable[[], list[Check]]:
    return resources_of(request.scope).check


async def _exposition(request: Request) -> Callable[[], bytes]:
    return resources_of(request.scope).exposition


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


async def _audit(request: Request) -> Audit:
    return Audit(request.state.caller.name, request.state.request_id)


SettingsDep = Annotated[Settings, Depends(_settings)]
PipelineDep = Annotated[Pipeline, Depends(_pipeline)]
DatabaseDep = Annotated[Database, Depends(_database)]
OriginalsDep = Annotated[Originals, Depends(_originals)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
CheckpointDep = Annotated[LoadedCheckpoint, Depends(_checkpoint)]
ReadinessDep = Annotated[Callable[[], list[Check]], Depends(_readiness)]
ExpositionDep = Annotated[Callable[[], bytes], Depends(_exposition)]
CallerDep = Annotated[Caller, Depends(_caller)]
AuditDep = Annotated[Audit, Depends(_audit)]


class DirectRoute(APIRoute):
    """A route whose endpoint's plain dependencies are called directly, in the order of its signature."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, call_readers_directly(endpoint), **options)


def call_readers_directly(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint without those parameters that read the request alone: it reads them when it is called.

    Such a parameter is `Annotated` with `Depends` on a coroutine function of the request. Every other parameter stays
    FastAPI's. An endpoint that is no coroutine function runs in a thread, as in FastAPI.
    """
    signature = inspect.signature(endpoint)
    readers: dict[str, RequestReader] = {}
    for name, parameter in signature.parameters.items():
        found = [part.dependency for part in get_args(parameter.annotation)[1:] if isinstance(part, params.Depends)]
        if found and found[0] is not None and _reads_only_the_request(found[0]):
            readers[name] = found[0]
    if not readers:
        return endpoint

    is_coroutine = inspect.iscoroutinefunction(endpoint)

    async def direct(request: Request, **values: Any) -> Any:
        for name, read in readers.items():
            values[name] = await read(request)
        if is_coroutine:
            return await endpoint(**values)
        return await run_in_threadpool(endpoint, **values)

    # Not `functools.wraps`: FastAPI would ask the wrapped function whether it is a coroutine function.
    direct.__name__, direct.__doc__, direct.__module__ = endpoint.__name__, endpoint.__doc__, endpoint.__module__
    left = [parameter for name, parameter in signature.parameters.items() if name not in readers]
    asks = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in left]
    direct.__signature__ = signature.replace(parameters=[asks, *keywords])  # type: ignore[attr-defined]
    return direct


def _reads_only_the_request(dependency: Callable[..., Any]) -> bool:
    parameters = list(inspect.signature(dependency).parameters.values())
    return inspect.iscoroutinefunction(dependency) and [one.annotation for one in parameters] == [Request]
