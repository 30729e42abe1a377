"""Who may ask, decided before a body is read: by API key, or without keys by where a browser's request comes from.

A browser sends requests on behalf of any web page, also to loopback. Without keys nothing else tells such a request
from an intended one. So the page's origin must be the service's own, and the host name must be one that no foreign name
server can point here (DNS rebinding): an address, `localhost`, or a name listed in DIPTYCH_ALLOWED_HOSTS. Names without
a dot are accepted only with DIPTYCH_ALLOW_NO_KEYS, as between containers: elsewhere the local network decides where
they point.
"""

import ipaddress
import re
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import ForeignOrigin, NotAllowed, RequestError, UnknownHost
from app.gallery.keys import ANYBODY, Caller
from app.http.admission import path_of, refuse
from app.http.limits import Limits
from app.serving.resources import resources_of

# Open to everybody: health for orchestrators, which have no key, and the documentation.
OPEN = re.compile(r"/|/healthz|/readyz|/openapi\.json|/docs|/docs/oauth2-redirect|/static-offline-docs/.*")
# The scope that each call needs; the first match counts. A call that is not listed needs `admin`.
CALLS = [
    (method, re.compile(path), scope)
    for method, path, scope in (
        ("GET", r"/metrics", "watch"),
        ("GET", r"/checkpoint|/collections(/.*)?", "verify"),
        ("POST", r"/verify|/search|/embed", "verify"),
        ("POST", r"/enroll", "enroll"),
        ("PATCH", r"/collections/[^/]+/identities/[^/]+", "enroll"),
        ("DELETE", r"/collections/[^/]+/identities/.+", "enroll"),
    )
]
UNLISTED = "admin"


class Guard:
    """Puts the caller into the state of the request, or answers 401, 403, 421 or 429."""

    def __init__(self, app: ASGIApp, limit: Callable[[str], int], limits: Limits) -> None:
        self.app = app
        self._limit = limit
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = path_of(scope)
        with ExitStack() as turn:
            try:
                caller = scope["state"]["caller"] = self._identify(scope)
                if not OPEN.fullmatch(path):
                    turn.enter_context(self._limits.turn(caller.name or (scope["client"] or ("",))[0]))
            except RequestError as refusal:
                await refuse(refusal, self._limit(path), scope, receive, send)
                return
            await self.app(scope, receive, send)

    def _identify(self, scope: Scope) -> Caller:
        headers, resources = Headers(scope=scope), resources_of(scope)
        keyring, settings = resources.live.keyring, resources.settings
        if not keyring.by_id and settings.is_open:
            if headers.get("origin") not in settings.cors_origins:
                check_browser(scope["method"], headers, settings.allowed_hosts, dotless=settings.allow_no_keys)
            return ANYBODY
        path = path_of(scope)
        if scope["method"] in ("GET", "HEAD") and OPEN.fullmatch(path):
            return ANYBODY
        caller = keyring.caller(token_in(headers))
        wanted = scope_of(scope["method"], path)
        if not caller.may(wanted):
            raise NotAllowed(f"The key {caller.name!r} lacks the scope `{wanted}`.")
        return caller


def scope_of(method: str, path: str) -> str:
    """The scope that a call needs."""
    fitting = (scope for listed, paths, scope in CALLS if listed == method and paths.fullmatch(path))
    return next(fitting, UNLISTED)


def token_in(headers: Headers) -> str | None:
    """The key that a request carries."""
    kind, _, bearer = headers.get("authorization", "").partition(" ")
    return bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key")


def check_browser(method: str, headers: Headers, allowed: Collection[str], *, dotless: bool) -> None:
    """Raises `UnknownHost` or `ForeignOrigin`. Following a link is allowed: its page does not see the answer."""
    host = headers.get("host", "")
    if not (is_ours(_name(host), dotless=dotless) or _name(host) in allowed):
        raise UnknownHost(
            f"Without API keys, the service cannot be called by the name {host[:80]!r}. Use its address, make a key "
            "(diptych keys create), or add the name to DIPTYCH_ALLOWED_HOSTS."
        )
    origin = headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2] != host
    # Not in a frame: a user could be made to click on it without seeing it.
    linked = (
        method == "GET"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest", "document") == "document"
    )
    if foreign or (headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not linked):
        page = f"The page {origin[:80]}" if origin and "://" in origin else "A page of another site"
        raise ForeignOrigin(f"{page} may not call this service. Add its origin to DIPTYCH_CORS_ORIGINS.")


@lru_cache(maxsize=256)
def is_ours(name: str, *, dotless: bool) -> bool:
    """Whether no foreign name server can point the name here: an address, `localhost`, or, if `dotless`, `diptych`."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost") or name.endswith(".localhost") or (dotless and "." not in name)
    return True


def _name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().removesuffix(".")
