"""The log on standard error, one line for each event, for people or as JSON. Standard output has only the audit.

An access line has the declared route, since the path may contain the name of an identity, and the name of the key. No
line ever contains an image, an embedding, metadata or a key.
"""

import json
import logging
import logging.config
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

access = logging.getLogger("diptych.access")

# Machines ask these every few seconds. Their lines appear only at level debug.
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
# What a record may have besides its message, in this order.
FIELDS = ("request_id", "trace_id", "method", "route", "status", "milliseconds", "caller", "received", "sent", "code")


class JsonFormatter(logging.Formatter):
    """One line of JSON for each record. A traceback is one string in it."""

    def format(self, record: logging.LogRecord) -> str:
        attributes = record.__dict__
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: attributes[name] for name in FIELDS if name in attributes}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`2026-11-24 13:40:01.123 info     POST /verify 200 ...`, in local time."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(level)-8s %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.level = record.levelname.lower()
        return super().format(record)


def config(log_format: str, level: str) -> dict[str, Any]:
    """For `logging.config.dictConfig`, and for uvicorn, which passes it to its workers."""
    formatter = JsonFormatter if log_format == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{__name__}.{formatter.__name__}"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            name: {"level": level.upper(), "handlers": ["stderr"], "propagate": False}
            for name in ("app", "uvicorn", "diptych.access")
        },
    }


def install(log_format: str, level: str) -> None:
    """Set up logging in this process, Python's own warnings included."""
    logging.config.dictConfig(config(log_format, level))
    logging.captureWarnings(True)


def note(scope: Scope, route: str, status: int, seconds: float, sent: int) -> None:
    """The access line of a request: `sent` is the size of the answer's body in bytes."""
    level = logging.DEBUG if route in QUIET and status < 400 else logging.INFO
    if not access.isEnabledFor(level):
        return
    state = scope["state"]
    caller, code = state.get("caller"), state.get("problem")
    announced = Headers(scope=scope).get("content-length", "")
    received = int(announced) if announced.isdecimal() and len(announced) < 20 else None  # null: sent in chunks
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
