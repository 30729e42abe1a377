"""uvicorn's HTTP/1.1, with bounds on what comes before a request is one.

Its parser (llhttp) takes a head of any length, and a connection that sends half of one may stay for ever: here a head
has a number of bytes and seconds to arrive in, and what is no HTTP gets a problem document like every other mistake.
"""

import asyncio
import json
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0


class Protocol(HttpToolsProtocol):
    """One connection."""

    # Bytes of a head that is not complete; None while a body or an answer is on its way.
    _head: int | None = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += len(data)
            if self._head_timer is None:
                self._wait_for_head()
        super().data_received(data)
        if self._head is not None and self._head > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The request's head has more than the {HEAD_BYTES:,} bytes allowed.")

    def on_headers_complete(self) -> None:
        self._head = None
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, and close the connection."""
        request_id = uuid.uuid4().hex
        content: dict[str, Any] = {
            "type": "about:blank",
            "title": "Malformed request",
            "status": 400,
            "detail": msg,
            "code": "malformed_request",
            "request_id": request_id,
        }
        body = json.dumps(content).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
