"""Who enrolled, changed and deleted what: one line of JSON each on standard output, written after the commit."""

import json
import logging
import sys
from datetime import UTC, datetime

log = logging.getLogger("diptych.audit")
log.setLevel(logging.INFO)
log.propagate = False
log.addHandler(logging.StreamHandler(sys.stdout))


class Audit:
    """The audit lines of one request."""

    def __init__(self, caller: str, request_id: str) -> None:
        self._caller = caller
        self._request_id = request_id

    def note(self, action: str, **what: object) -> None:
        """Write a line. Its `caller` is the name of the key, null without keys. Pass names and ids only, no image."""
        line = {
            "audit": action,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "caller": self._caller or None,
            "request_id": self._request_id,
            **what,
        }
        log.info("%s", json.dumps(line, ensure_ascii=True))
