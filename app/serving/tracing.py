"""OpenTelemetry traces, if asked for: a span for each request, and inside it one for each stage.

Spans carry the declared route, ids, status and error code; no path, no name of an identity, nothing of an image.
OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT` and others) say where they go. Unless
`DIPTYCH_TRACING` is set, nothing is sent and the exporter is not even imported.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version

from opentelemetry.trace import SpanKind, StatusCode, TracerProvider, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

from app.errors import UsageError
from app.settings import Settings

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# How long the end of the service waits for a collector to take the last spans.
FLUSH_SECONDS = 3.0


class RequestSpan:
    """The span of one request; route and status are noted at its end."""

    def __init__(self, tracing: "Tracing", method: str, headers: Headers) -> None:
        parent = TraceContextTextMapPropagator().extract(headers)
        self._span = tracing.tracer.start_span(method, context=parent, kind=SpanKind.SERVER)
        self._method = method
        self.trace_id = f"{self._span.get_span_context().trace_id:032x}"

    def current(self) -> AbstractContextManager[object]:
        """While entered, spans of stages become its children, also in threads that run in a copy of the context."""
        return use_span(self._span, record_exception=False, set_status_on_exception=False)

    def end(self, route: str, status: int, request_id: str, model_id: str, code: str | None) -> None:
        self._span.update_name(f"{self._method} {route}")
        self._span.set_attributes(
            {
                "http.request.method": self._method,
                "http.route": route,
                "http.response.status_code": status,
                "diptych.request_id": request_id,
                "diptych.model_id": model_id,
                **({"diptych.code": code} if code else {}),
            }
        )
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Tracing:
    """Makes spans, and sends them in batches from a thread of its own."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self.tracer = provider.get_tracer("diptych", version("diptych"))

    @contextmanager
    def stage(self, name: str, timer: AbstractContextManager[object]) -> Iterator[None]:
        """A span around what `timer` times."""
        with (
            self.tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False),
            timer,
        ):
            yield

    def waited(self, seconds: float) -> None:
        """A span for a wait of this many seconds that has just ended."""
        now = time.time_ns()
        self.tracer.start_span("wait", start_time=now - int(1e9 * seconds)).end(now)

    def close(self) -> None:
        """Send the last spans, if the collector takes them in time."""
        shutdown = getattr(self._provider, "shutdown", None)  # only the SDK's provider has it
        if shutdown is not None:
            last = threading.Thread(target=shutdown, name="last-spans", daemon=True)
            last.start()
            last.join(FLUSH_SECONDS)


def open_tracing(settings: Settings) -> Tracing | None:
    """None unless traces are asked for. Raises `UsageError` where a package or a collector's address is missing."""
    if not settings.tracing:
        return None
    if not any(os.environ.get(name) for name in ENDPOINTS):
        raise UsageError(
            f"DIPTYCH_TRACING=1 needs a collector: set {ENDPOINTS[0]} to the address of one that takes OTLP over HTTP, "
            "such as http://127.0.0.1:4318."
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider as SdkProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise UsageError(
            "DIPTYCH_TRACING=1 needs packages that are not installed. Install them with: make env EXTRAS=tracing"
        ) from None
    attributes = {"service.version": version("diptych")}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = "diptych"
    provider = SdkProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
