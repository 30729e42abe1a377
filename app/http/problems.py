"""Errors to RFC 9457 problem documents: the one handler of the tree."""

import logging
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from app.errors import (
    DiptychError,
    InvalidRequest,
    ModelMismatch,
    Overloaded,
    TooManyRequests,
    Unavailable,
)
from app.http.routes.schemas import Problem
from app.serving.resources import resources_of

log = logging.getLogger("uvicorn.error")

RETRY_AFTER_SECONDS = "1"
MEDIA_TYPE = "application/problem+json"
# Takes no key, for orchestrators have none.
OPEN = ("/healthz", "/readyz")
KEY = {"type": "http", "scheme": "bearer", "description": "An API key, where there are any."}
_HTTP_CODES = {
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
    scope.setdefault("state", {})["problem"] = code  # for `middleware` to count
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
    if error.status >= 500 and not isinstance(error, Overloaded):  # of which there are many, and each is an access line
        request_id = request.scope.get("state", {}).get("request_id")
        log.error("%s: %s (request %s)", error.code, error, request_id, extra={"request_id": request_id})
    return problem(error, request.scope)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    if any(one["type"] == "json_invalid" for one in error.errors()):
        return problem(InvalidRequest("The body is not valid JSON."), request.scope)
    if any(one["type"] == "is_instance_of" for one in error.errors()):
        names = ", ".join(str(one["loc"][1]) for one in error.errors() if one["type"] == "is_instance_of")
        return problem(InvalidRequest(f"{names}: a file is expected; with curl, -F {names}=@path."), request.scope)
    wrong = [
        {"field": ".".join(str(part) for part in one["loc"][1:]) or str(one["loc"][0]), "message": one["msg"]}
        for one in error.errors()
    ]
    detail = "; ".join(f"{one['field']}: {one['message']}" for one in wrong[:5])
    if request.method == "POST" and not request.headers.get("content-type", "").startswith("multipart/form-data"):
        detail += ". Images and fields are sent as multipart/form-data."
    return problem(InvalidRequest(detail, errors=wrong[:20]), request.scope)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    if isinstance(error.__cause__, DiptychError):
        return problem(error.__cause__, request.scope)
    code = _HTTP_CODES.get(error.status_code, "http_error")
    detail = {
        404: f"There is nothing at {request.url.path}. GET /docs lists what there is.",
        405: f"{request.method} is not allowed at {request.url.path}.",
    }.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
    return _document(error.status_code, code, code.replace("_", " ").capitalize(), detail, request.scope, headers, {})


def _methods(request: Request) -> list[str]:
    """All that this path knows; the router names those of its first match."""
    served_under = re.escape(request.scope.get("root_path", ""))
    return sorted(
        method.upper()
        for path, operations in request.app.openapi()["paths"].items()
        if re.fullmatch(served_under + re.sub(r"{\w+}", "[^/]+", path), request.url.path)
        for method in operations
    )


# For the OpenAPI document. FastAPI knows one media type a route, so `install` puts the right one in.
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "A problem document (RFC 9457) with a stable `code`."}
}


def install(app: FastAPI) -> None:
    """Make every error of this application a problem document, and say so in its OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            # Only so that the documentation asks for a key; `guard` decides, before a body is read.
            document["components"]["securitySchemes"] = {"key": KEY}
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    content = operation["responses"]["4XX"]["content"]
                    content[MEDIA_TYPE] = content.pop("application/json")
                    # A key, or none where there are no keys.
                    operation["security"] = [] if path in OPEN else [{"key": []}, {}]
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_exception_handler(DiptychError, _diptych_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
