"""Who is let in, before a body is read: by API key; without keys, nobody whom a web page elsewhere may have sent.

A browser sends requests for any page that asks it to, also to loopback. Without keys nothing else tells such a request
from one that is meant: so a page's origin has to be the service's own, and the host it was asked by one that no
stranger's name server can point here (DNS rebinding): an address, `localhost`, or one that DIPTYCH_ALLOWED_HOSTS lists.
Names without a dot are believed where DIPTYCH_ALLOW_NO_KEYS is set, as between containers: on somebody else's network
that network says where they point.
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

# For an orchestrator, which has no key, and to read.
OPEN = re.compile(r"/|/healthz|/readyz|/openapi\.json|/docs|/docs/oauth2-redirect|/static-offline-docs/.*")
# The scope that a call takes; the first that fits. What is not listed is for keys that may do everything.
SCOPES = [
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
    """Puts the caller into the request's state, or answers 401, 403, 421 or 429."""

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
                caller = scope["state"]["caller"] = self._let_in(scope)
                if not OPEN.fullmatch(path):
                    turn.enter_context(self._limits.turn(caller.name or (scope["client"] or ("",))[0]))
            except RequestError as refusal:
                await refuse(refusal, self._limit(path), scope, receive, send)
                return
            await self.app(scope, receive, send)

    def _let_in(self, scope: Scope) -> Caller:
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
            raise NotAllowed(f"The key {caller.name!r} may not do this: it takes the scope `{wanted}`.")
        return caller


def scope_of(method: str, path: str) -> str:
    """The scope that a call takes."""
    fitting = (scope for listed, paths, scope in SCOPES if listed == method and paths.fullmatch(path))
    return next(fitting, UNLISTED)


def token_in(headers: Headers) -> str | None:
    """The key that a request carries."""
    kind, _, bearer = headers.get("authorization", "").partition(" ")
    return bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key")


def check_browser(method: str, headers: Headers, allowed: Collection[str], *, dotless: bool) -> None:
    """Raises `UnknownHost` or `ForeignOrigin`. Following a link is allowed: the page it is on learns nothing by it."""
    host = headers.get("host", "")
    if not (is_ours(_name(host), dotless=dotless) or _name(host) in allowed):
        raise UnknownHost(
            f"Without API keys the service does not answer by the name {host[:80]!r}. Ask it by its address, make a "
            "key (diptych keys create), or list the name in DIPTYCH_ALLOWED_HOSTS."
        )
    origin = headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2] != host
    # Followed, not framed: what a frame shows may be clicked on without being seen.
    linked = (
        method == "GET"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest", "document") == "document"
    )
    if foreign or (headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not linked):
        raise ForeignOrigin("Without API keys the service answers no web pages but its own.")


@lru_cache(maxsize=256)
def is_ours(name: str, *, dotless: bool) -> bool:
    """Whether nobody elsewhere can make the name point here: an address, `localhost`; `dotless` names if said so."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost") or name.endswith(".localhost") or (dotless and "." not in name)
    return True


def _name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().removesuffix(".")
