"""Who enrolled, changed and deleted what: a line of JSON each on standard output, written after the commit."""

import json
import logging
import sys
from datetime import UTC, datetime

log = logging.getLogger("diptych.audit")
log.setLevel(logging.INFO)
log.propagate = False
log.addHandler(logging.StreamHandler(sys.stdout))


class Audit:
    """Of one request."""

    def __init__(self, caller: str, request_id: str) -> None:
        self._caller = caller
        self._request_id = request_id

    def note(self, action: str, **what: object) -> None:
        """`caller` is the name of the key, null where there are none. Names and ids only: no image, no embedding."""
        line = {
            "audit": action,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "caller": self._caller or None,
            "request_id": self._request_id,
            **what,
        }
        log.info("%s", json.dumps(line, ensure_ascii=True))
