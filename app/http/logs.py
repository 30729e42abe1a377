"""What the service says on standard error: a line each, for people or as JSON. Standard output is the audit's alone.

An access line names the route as declared, not the path, which may hold the name of an identity; and of a key its
name. No image, no embedding, no metadata and no key is ever in a line.
"""

import json
import logging
import logging.config
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

access = logging.getLogger("diptych.access")

# Asked every few seconds by machines, which would bury the rest.
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
# What a record may carry beside its message, in this order.
FIELDS = ("request_id", "trace_id", "method", "route", "status", "milliseconds", "caller", "received", "sent", "code")


class JsonFormatter(logging.Formatter):
    """A line of JSON each; a traceback is one string in it."""

    def format(self, record: logging.LogRecord) -> str:
        said = record.__dict__
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: said[name] for name in FIELDS if name in said}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`2026-11-24 13:40:01.123 info     POST /verify 200 ...`, in the machine's own time."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(level)-8s %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.level = record.levelname.lower()
        return super().format(record)


def config(log_format: str, level: str) -> dict[str, Any]:
    """For `logging.config.dictConfig`, and for uvicorn, which hands it to its workers."""
    formatter = JsonFormatter if log_format == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{__name__}.{formatter.__name__}"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            name: {"level": level.upper(), "handlers": ["stderr"], "propagate": False}
            for name in ("uvicorn", "diptych.access")
        },
    }


def install(log_format: str, level: str) -> None:
    """From here on, in this process; Python's own warnings included."""
    logging.config.dictConfig(config(log_format, level))
    logging.captureWarnings(True)


def note(scope: Scope, route: str, status: int, seconds: float, sent: int) -> None:
    """One line about a request that was answered, or cut off: `sent` bytes of body went out."""
    level = logging.DEBUG if route in QUIET and status < 400 else logging.INFO
    if not access.isEnabledFor(level):
        return
    state = scope["state"]
    caller, code = state.get("caller"), state.get("problem")
    said = Headers(scope=scope).get("content-length", "")
    received = int(said) if said.isdecimal() and len(said) < 20 else None  # null: in chunks, as long as it takes
    name, milliseconds = caller.name if caller else "", round(1000 * seconds, 1)
    access.log(
        level,
        "%s %s %d%s in %.1f ms%s, request %s",
        *(scope["method"][:20], route, status, f" {code}" if code else "", milliseconds),
        *(f" for {name}" if name else "", state["request_id"]),
        extra={
            **({"trace_id": state["trace_id"]} if "trace_id" in state else {}),
            "request_id": state["request_id"],
            "method": scope["method"][:20],
            "route": route,
            "status": status,
            "milliseconds": milliseconds,
            "caller": name or None,
            "received": received,
            "sent": sent,
            "code": code,
        },
    )
