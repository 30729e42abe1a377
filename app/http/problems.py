"""Errors to problem documents (RFC 9457): one handler for the whole tree."""

import json
import logging
import re
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from app.errors import (
    DiptychError,
    ModelMismatch,
    Overloaded,
    TooManyRequests,
    Unavailable,
)
from app.http.routes.responses import MEDIA_TYPE
from app.http.routes.schemas import Problem
from app.http.validation import describe_errors
from app.serving.resources import resources_of

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = "1"
# These take no key: orchestrators have none.
OPEN = ("/healthz", "/readyz")
KEY = {"type": "http", "scheme": "bearer", "description": "An API key, if the service has any."}
# Of errors that no code of ours raises.
HTTP_CODES = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
}


def problem(error: DiptychError, scope: Scope) -> Response:
    """The problem document of an error."""
    headers = {"Retry-After": RETRY_AFTER_SECONDS} if isinstance(error, Unavailable) else {}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):
        headers["Connection"] = "close"  # the rest of the body, if any, is not waited for
    return _document(error.status, error.code, error.title, error.detail, scope, headers, error.extra)


def _document(
    status: int,
    code: str,
    title: str,
    detail: str,
    scope: Scope,
    headers: dict[str, str],
    extra: dict[str, Any],
) -> Response:
    scope.setdefault("state", {})["problem"] = code  # `Counted` counts it
    content = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": scope.get("state", {}).get("request_id"),
        **extra,
    }
    return JSONResponse(content, status, headers, media_type=MEDIA_TYPE)


async def _diptych_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DiptychError)  # noqa: S101  registered for this class alone
    # `GalleryMoved` knows by the embeddings left behind; where those were deleted at once, the live state remembers.
    if isinstance(error, ModelMismatch) and resources_of(request.scope).live.owns_gallery:
        error = Unavailable("The gallery is moving to another encoder. Try again in a moment.")
    if error.status >= 500 and not isinstance(error, Overloaded):  # those are many, and each has its access line
        request_id = request.scope.get("state", {}).get("request_id")
        log.error("%s: %s (request %s)", error.code, error, request_id, extra={"request_id": request_id})
    return problem(error, request.scope)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return problem(describe_errors(error.errors()), request.scope)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    if isinstance(error.__cause__, DiptychError):
        return problem(error.__cause__, request.scope)
    code, path = HTTP_CODES.get(error.status_code, "http_error"), request.url.path
    detail, headers = str(error.detail), dict(error.headers or {})
    if error.status_code == 404:
        detail = f"There is nothing at {path}. GET /docs lists every endpoint."
    if error.status_code == 405:
        methods = _methods(request)
        headers["Allow"] = ", ".join(methods)
        detail = f"{request.method} is not allowed at {path}. Use {' or '.join(methods)}."
    return _document(error.status_code, code, code.replace("_", " ").capitalize(), detail, request.scope, headers, {})


def _methods(request: Request) -> list[str]:
    """Every method that this path has. The router would name only those of the first route that matches."""
    served_under = re.escape(request.scope.get("root_path", ""))
    return sorted(
        method.upper()
        for path, operations in request.app.openapi()["paths"].items()
        if re.fullmatch(served_under + re.sub(r"{\w+}", "[^/]+", path), request.url.path)
        for method in operations
    )


# For the OpenAPI document. FastAPI has one media type for each route, so `install` puts the right one in.
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "Any other problem document (RFC 9457), with a stable `code`."}
}


def install(app: FastAPI) -> None:
    """Answer every error of this application with a problem document, and say so in its OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            examples = json.loads((files("app.http.routes") / "examples.json").read_text())
            for schema, example in examples.items():  # here, since FastAPI drops every null from its document
                document["components"]["schemas"][schema]["examples"] = [example]
            # Only so that /docs has a field for the key. `Guard` checks keys before a body is read.
            document["components"]["securitySchemes"] = {"key": KEY}
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    content = operation["responses"]["4XX"]["content"]
                    content[MEDIA_TYPE] = content.pop("application/json")
                    # A key, or nothing where the service has no keys.
                    operation["security"] = [] if path in OPEN else [{"key": []}, {}]
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_exception_handler(DiptychError, _diptych_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
