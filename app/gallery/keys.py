"""API keys: who may do what, and with which collections. A key is shown once, when it is made; its hash is kept.

A key is 256 random bits, so a plain SHA-256 of it can't be turned back: slow hashes are for what people choose.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from app.database.tables import api_key
from app.errors import KeyRequired, KeyUnknown, NotAllowed, UsageError

# watch: read /metrics; verify: that, compare and search, and see what is enrolled; enroll: that, and change identities;
# admin: everything.
SCOPES = ("watch", "verify", "enroll", "admin")
# What a scope contains.
CONTAINS = {
    "watch": {"watch"},
    "verify": {"watch", "verify"},
    "enroll": {"watch", "verify", "enroll"},
    "admin": set(SCOPES),
}
TOKEN = re.compile(r"diptych_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Caller:
    """Whoever asks: the holder of a key, or anybody where there are no keys."""

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
            raise NotAllowed(f"This key is not for the collection {collection!r}.")


ANYBODY = Caller("", frozenset(SCOPES))


@dataclass(frozen=True)
class Keyring:
    """All keys, as they were read."""

    by_id: Mapping[str, tuple[str, Caller]] = field(default_factory=dict)

    def caller(self, token: str | None) -> Caller:
        """Raises `KeyRequired` or `KeyUnknown`."""
        if token is None:
            raise KeyRequired(
                "This service asks for an API key: send it as `Authorization: Bearer KEY`, or as `X-API-Key: KEY`."
            )
        match = TOKEN.fullmatch(token)
        sha256, caller = self.by_id.get(match[1] if match else "", ("", None))
        # In constant time, so that no prefix of a hash can be found out by asking often.
        if not hmac.compare_digest(sha256, _hash(token)) or caller is None:
            raise KeyUnknown("Unknown or revoked API key.")
        return caller


def keyring(connection: sa.Connection) -> Keyring:
    """The keys that are valid now."""
    rows = connection.execute(sa.select(api_key))
    return Keyring({row.key_id: (row.sha256, _caller(row.name, row.scopes, row.collections)) for row in rows})


def _caller(name: str, scopes: Iterable[str], collections: Iterable[str] | None) -> Caller:
    # A scope that this version does not know allows nothing.
    contained = frozenset(scope for one in scopes for scope in CONTAINS.get(one, ()))
    return Caller(name, contained, None if collections is None else frozenset(collections))


def create(connection: sa.Connection, name: str, scopes: Iterable[str], collections: Iterable[str]) -> str:
    """Make a key and return it, for the only time. Raises `UsageError` for a name that is taken, or none."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{name[:64]!r} can't name a key: use up to 64 letters, digits, `.`, `_` and `-`.")
    if connection.scalar(sa.select(api_key.c.key).where(api_key.c.name == name)) is not None:
        raise UsageError(f"There is a key {name!r} already. Revoke it first, or take another name.")
    key_id = secrets.token_hex(4)
    token = f"diptych_{key_id}_{secrets.token_urlsafe(32)}"
    connection.execute(
        sa.insert(api_key).values(
            key_id=key_id,
            name=name,
            sha256=_hash(token),
            scopes=sorted(set(scopes)),
            collections=sorted(set(collections)) or None,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    )
    return token


def listed(connection: sa.Connection) -> list[dict[str, Any]]:
    """Names, scopes, collections and dates, by name."""
    rows = connection.execute(sa.select(api_key).order_by(api_key.c.name)).mappings()
    return [{name: row[name] for name in ("name", "scopes", "collections", "created_at")} for row in rows]


def revoke(connection: sa.Connection, name: str, *, last: bool = False) -> None:
    """Raises `UsageError` for a key that there is not, and for the last one unless `last` says that it is meant."""
    known = NAME.fullmatch(name) is not None
    if not (known and connection.execute(sa.delete(api_key).where(api_key.c.name == name)).rowcount):
        raise UsageError(f"There is no key {name!r}: diptych keys list shows those that there are.")
    if not last and connection.scalar(sa.select(api_key.c.key).limit(1)) is None:
        raise UsageError(
            f"{name!r} is the last key: without any, a service on loopback, or with DIPTYCH_ALLOW_NO_KEYS, is open to "
            "everybody who reaches it. Make another one first, or revoke it all the same with --last."
        )


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
