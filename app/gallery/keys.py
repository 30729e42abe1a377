"""API keys: who may do what, and with which collections. A key is shown once, when it is created; its hash is kept.

A key is 256 random bits, so a plain SHA-256 of it can't be reversed: slow hashes are for what people choose.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from app.database.tables import api_key, timestamp
from app.errors import KeyRequired, KeyUnknown, NotAllowed, UsageError
from app.gallery.scopes import SCOPES

TOKEN = re.compile(r"diptych_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Caller:
    """Whoever sends a request: the holder of a key, or anybody where there are no keys."""

    name: str
    scopes: frozenset[str]
    # None: all.
    collections: frozenset[str] | None = None

    def may(self, scope: str) -> bool:
        return scope in self.scopes

    def sees(self, collection: str) -> bool:
        return self.collections is None or collection in self.collections

    def check(self, collection: str) -> None:
        """Raises `NotAllowed` for a collection that this key is not for."""
        if not self.sees(collection):
            raise NotAllowed(f"The key {self.name!r} is not for the collection {collection!r}.")


ANYBODY = Caller("", frozenset(SCOPES))


@dataclass(frozen=True)
class Keyring:
    """All keys, as they were at one moment."""

    by_id: Mapping[str, tuple[str, Caller]] = field(default_factory=dict)

    def caller(self, token: str | None) -> Caller:
        """The holder of a key. Raises `KeyRequired` where there is none, `KeyUnknown` where it is not valid."""
        if token is None:
            raise KeyRequired(
                "This service requires an API key: send it as `Authorization: Bearer KEY`, or as `X-API-Key: KEY`."
            )
        match = TOKEN.fullmatch(token)
        sha256, caller = self.by_id.get(match[1] if match else "", ("", None))
        # In constant time, so that no prefix of a hash can be found by repeated attempts.
        if not hmac.compare_digest(sha256, _hash(token)) or caller is None:
            raise KeyUnknown("Unknown or revoked API key.")
        return caller


def read_keyring(connection: sa.Connection) -> Keyring:
    """The keys that are valid now."""
    rows = connection.execute(sa.select(api_key))
    return Keyring({row.key_id: (row.sha256, _caller(row.name, row.scopes, row.collections)) for row in rows})


def _caller(name: str, scopes: Iterable[str], collections: Iterable[str] | None) -> Caller:
    # A scope that this version does not know allows nothing.
    contained = {inner for scope in scopes for inner in SCOPES.get(scope, ())}
    if collections is not None:
        return Caller(name, frozenset(contained - {"watch"}), frozenset(collections))
    return Caller(name, frozenset(contained))


def create_key(connection: sa.Connection, name: str, scopes: Iterable[str], collections: Iterable[str]) -> str:
    """Create a key and return it, for the only time.

    Raises `UsageError` for a name that is taken or not allowed, and for `watch` limited to collections.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name[:64]!r} can't be the name of a key: use up to 64 letters, digits, `.`, `_` and `-`.")
    if connection.scalar(sa.select(api_key.c.key).where(api_key.c.name == name)) is not None:
        raise UsageError(f"There is already a key {name!r}. Revoke it first, or use another name.")
    if "watch" in scopes and collections:
        raise UsageError(
            "The scope `watch` can't be limited to a collection: /metrics is about all of them. Create a key for "
            "/metrics alone: diptych keys create NAME --scope watch"
        )
    key_id = secrets.token_hex(4)
    token = f"diptych_{key_id}_{secrets.token_urlsafe(32)}"
    connection.execute(
        sa.insert(api_key).values(
            key_id=key_id,
            name=name,
            sha256=_hash(token),
            scopes=sorted(set(scopes)),
            collections=sorted(set(collections)) or None,
            created_at=timestamp(),
        )
    )
    return token


def list_keys(connection: sa.Connection) -> list[dict[str, Any]]:
    """Names, scopes, collections and dates, by name."""
    rows = connection.execute(sa.select(api_key).order_by(api_key.c.name)).mappings()
    return [{name: row[name] for name in ("name", "scopes", "collections", "created_at")} for row in rows]


def revoke_key(connection: sa.Connection, name: str, *, last: bool = False) -> None:
    """Delete a key. Raises `UsageError` where there is none of that name, and for the last one without `last`."""
    known = NAME.fullmatch(name) is not None
    if not (known and connection.execute(sa.delete(api_key).where(api_key.c.name == name)).rowcount):
        raise UsageError(f"There is no key {name!r}. `diptych keys list` shows all keys.")
    if not last and connection.scalar(sa.select(api_key.c.key).limit(1)) is None:
        raise UsageError(
            f"{name!r} is the last key. Without keys, a service on loopback, or with DIPTYCH_ALLOW_NO_KEYS, is open to "
            "everybody who can reach it. Create another key first, or revoke this one with --last."
        )


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
