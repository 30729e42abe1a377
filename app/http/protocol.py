"""uvicorn's HTTP/1.1 with limits on the head of a request.

uvicorn's parser (llhttp) accepts a head of any length, and a connection that sends half of one may stay open for ever.
Here a head must arrive within a number of bytes and seconds, and bytes that are not HTTP are answered with a problem
document, like every other error. `tests/app/http/test_uvicorn.py` names the private parts of uvicorn used here.
"""

import asyncio
import json
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0


class Protocol(HttpToolsProtocol):
    """One connection. A timer runs while the client must send: the rest of a head, or of a body answered already."""

    # Bytes so far of an incomplete head; None while a body arrives.
    _head: int | None = 0
    # Bytes since the last piece of a body: chunk sizes and trailers.
    _beside = 0
    _timer: asyncio.TimerHandle | None = None
    _deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._head is None:
            self._beside += len(data)
        else:
            self._head += len(data)
            if self.cycle is None or self.cycle.response_complete:
                self._wait()
        super().data_received(data)
        if max(self._head or 0, self._beside) > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The request head has more than the {HEAD_BYTES:,} bytes allowed.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is not None:  # a trailer is not a header (RFC 9110, 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head, self._beside = None, 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head, self._beside = 0, 0
        self._stop_waiting()
        super().on_message_complete()
        if self.cycle.response_complete:
            self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and self._head != 0 and not self.transport.is_closing():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not a request, and close the connection.

        While another answer is due, the client would take this one for it: then that one is sent, as the last.
        """
        if self.cycle is not None and not self.cycle.response_complete and self._head is not None:
            self.cycle.keep_alive = False
            self._deaf = True
            return
        request_id = uuid.uuid4().hex
        content: dict[str, Any] = {
            "type": "about:blank",
            "title": "Malformed request",
            "status": 400,
            "detail": msg,
            "code": "malformed_request",
            "request_id": request_id,
        }
        body = json.dumps(content).encode() + b"\n"
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
