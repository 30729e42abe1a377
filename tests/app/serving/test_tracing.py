"""OpenTelemetry traces: what a real collector on loopback is sent, and that nothing is sent unasked."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.files import drawings
from tests.service import Serve, Service, diptych

A = drawings("Angelic/character01")
PRIVATE = "frau-mustermann"


class Collector:
    """Takes OTLP over HTTP, and keeps it."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Tests are quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> list[Span]:
        assert {path for path, _ in self.bodies} <= {"/v1/traces"}
        requests = [ExportTraceServiceRequest.FromString(body) for _, body in self.bodies]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Named by OpenTelemetry's own variable, as an operator does."""
    running = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")  # whose spans would hold paths
    yield running
    running.server.shutdown()
    running.server.server_close()


def said(span: Span) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def use(service: Service) -> dict[str, httpx.Response]:
    service.client.headers["traceparent"] = f"00-{'a' * 32}-{'b' * 16}-01"
    answers = {
        "POST /enroll": service.enroll(PRIVATE, *A[:2]),
        "POST /verify": service.verify(A[0], A[1]),
        "POST /search": service.search(A[2]),
        "POST /embed": service.client.post("/embed", files={"image": b"no image"}),
        "GET /collections/{collection}/identities/{identity}": service.client.get(
            f"/collections/default/identities/{PRIVATE}"
        ),
    }
    service.client.get("/metrics")
    return answers


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_collector_is_sent_a_span_for_each_request_and_stage(
    serve: Serve, collector: Collector, workers: str
) -> None:
    """As children of the caller's own; with the ids by which logs and answers know them, and no name of anything."""
    service = serve(tracing="1", log_format="json", workers=workers)
    answers = use(service)
    model_id = service.client.get("/checkpoint").json()["model_id"]
    service.stop()  # sends what is left
    spans = collector.spans()
    requests = {span.name: span for span in spans if span.kind == Span.SPAN_KIND_SERVER}
    assert set(requests) == {*answers, "GET /checkpoint"}
    for name, answer in answers.items():
        span = requests[name]
        assert span.trace_id.hex() == "a" * 32 and span.parent_span_id.hex() == "b" * 16
        assert said(span)["diptych.request_id"] == answer.headers["x-request-id"]
        assert said(span)["http.response.status_code"] == answer.status_code
        assert said(span)["diptych.model_id"] == model_id
        assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 30e9
    assert said(requests["POST /embed"])["diptych.code"] == "unsupported_format"
    stages: dict[str, list[str]] = {name: [] for name in requests}
    by_id = {span.span_id: name for name, span in requests.items()}
    for span in spans:
        if span.kind != Span.SPAN_KIND_SERVER:
            stages[by_id[span.parent_span_id]].append(span.name)
    assert sorted(stages["POST /enroll"]) == ["commit", "decode", "decode", "embed", "wait"]
    assert sorted(stages["POST /verify"]) == ["decode", "decode", "embed", "wait"]
    assert sorted(stages["POST /search"]) == ["decode", "embed", "search", "wait"]
    whole = b"".join(body for _, body in collector.bodies)
    assert PRIVATE.encode() not in whole and b"IHDR" not in whole and b"no image" not in whole
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert {line["trace_id"] for line in lines if line.get("route") == "/verify"} == {"a" * 32}


def test_nothing_is_sent_unless_it_is_asked_for(serve: Serve, collector: Collector) -> None:
    """An address in the environment, meant for something else, is no wish; nor is FastAPI's own variable."""
    service = serve()
    use(service)
    service.stop()
    assert collector.bodies == []


def test_a_collector_that_is_gone_holds_nobody_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an answer nor the end."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    service = serve(tracing="1")
    started = time.monotonic()
    use(service)
    assert time.monotonic() - started < 5
    assert service.stop() < 10


WITHOUT = "import sys; sys.modules['opentelemetry.sdk.trace'] = None; from app.cli import main; main()"


@pytest.mark.parametrize(
    ("missing", "words"), [("address", "OTEL_EXPORTER_OTLP_ENDPOINT"), ("packages", "EXTRAS=tracing")]
)
def test_what_traces_lack_is_named_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, words: str
) -> None:
    """In one line."""
    monkeypatch.setenv("DIPTYCH_TRACING", "1")
    if missing == "address":
        done = diptych("serve", "--data-dir", tmp_path, "--port", "0")
    else:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        command = [sys.executable, "-c", WITHOUT, "serve", "--data-dir", str(tmp_path), "--port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
