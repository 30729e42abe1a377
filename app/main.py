"""Assembly: settings to an application, and the life of its resources."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from importlib.metadata import version
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline

from app.errors import UsageError
from app.http import logs, problems
from app.http.admission import Admission
from app.http.guard import Guard
from app.http.limits import Limits
from app.http.middleware import Counted, Outermost, Traced
from app.http.protocol import Protocol
from app.http.routes import collections, enroll, search, service, verify
from app.serving import drain
from app.serving.process import collect_garbage_less_often, end_with_parent, return_freed_memory
from app.serving.resources import Resources, open_resources
from app.serving.start_log import log_start
from app.settings import Settings, read_settings

# Room in a multipart body for everything but its images.
OVERHEAD_BYTES = 2**20
# The groups of /docs, in order.
OPENAPI_TAGS = [
    {"name": "verification", "description": "Compare images."},
    {"name": "gallery", "description": "Enroll identities, search among them, and manage them."},
    {"name": "service", "description": "What is loaded, and how the service is."},
]


def create_app(settings: Settings, resources: Resources | None = None) -> FastAPI:
    """The application. Its lifespan opens the resources, unless they are given, and closes them."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        with nullcontext(resources) if resources else open_resources(settings) as current:
            current.start()
            collect_garbage_less_often()
            try:
                with drain.announce_stop(current.draining, settings.drain_delay_seconds):
                    yield {"resources": current}
            finally:
                current.close()  # here: a signal ends the process before `run` returns

    # The scripts of /docs come from a package, so it works without a network.
    app: FastAPI = FastAPIOffline(
        title="Diptych",
        version=version("diptych"),
        summary="Says whether two images show the same thing, at an error rate you choose.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        responses=problems.RESPONSES,
        swagger_ui_parameters={"defaultModelsExpandDepth": -1},  # no list of every schema at the end of /docs
        openapi_tags=OPENAPI_TAGS,
        # FastAPI's own telemetry would send paths, and so names of identities.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    problems.install(app)
    for group in (verify, enroll, search, collections, service):
        app.include_router(group.router)
    app.add_middleware(
        Admission,
        limit=lambda path: body_limit(settings, path),
        seconds=settings.upload_seconds,
        most_held=settings.max_held_bytes,
    )
    limits = Limits(settings.rate, settings.at_once)
    app.add_middleware(Guard, limit=lambda path: body_limit(settings, path), limits=limits)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Idempotency-Key", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    app.add_middleware(Counted)
    if settings.tracing:
        app.add_middleware(Traced)
    app.add_middleware(Outermost)
    return app


def body_limit(settings: Settings, path: str) -> int:
    """The largest body of a request to `path` in bytes: its images, and a little more."""
    images = {"/verify": 2, "/search": 1, "/embed": 1, "/enroll": settings.max_images}.get(path, 0)
    return min(images * settings.max_image_bytes + OVERHEAD_BYTES, settings.max_request_bytes)


def worker() -> FastAPI:
    """The application of one of several processes. They get their settings from the environment."""
    end_with_parent()
    return_freed_memory()
    settings = read_settings()
    logs.install(settings.log_format, settings.log_level)
    return create_app(settings)


def _check_address(settings: Settings) -> None:
    """Raises `UsageError` where the service cannot listen on the address."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as problem:
        raise UsageError(
            f"Cannot listen on {settings.host} port {settings.port}: {problem.strerror or problem}. "
            "Choose another address with DIPTYCH_HOST or another port with DIPTYCH_PORT."
        ) from None


def run(**given: Any) -> None:
    """Serve until stopped. Raises `UsageError` for settings, checkpoints or galleries that cannot be served."""
    settings = read_settings(**given)
    logs.install(settings.log_format, settings.log_level)
    _check_address(settings)
    return_freed_memory()
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "http": Protocol,
        "ws": "none",
        "timeout_graceful_shutdown": settings.drain_seconds,
        "server_header": False,
        "log_config": logs.config(settings.log_format, settings.log_level),
        "access_log": False,  # `logs` writes its own, without paths
        # Anybody may send these headers: they are believed only from the proxies that are named.
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": settings.trusted_proxies,
        "root_path": settings.root_path,
    }
    with open_resources(settings) as resources:
        settings.check_exposure(has_keys=bool(resources.live.keyring.by_id))
        log_start(resources)
        if settings.workers == 1:
            uvicorn.run(create_app(settings, resources), **options)
            return
    # Workers read the environment only.
    os.environ.update({f"DIPTYCH_{name.upper()}": str(value) for name, value in given.items()})
    config = uvicorn.Config("app.main:worker", factory=True, workers=settings.workers, **options)
    drain.Workers(config, sockets=[config.bind_socket()]).run()
