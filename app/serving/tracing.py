"""OpenTelemetry traces, where they are asked for: a span for each request, and in it one for each of its stages.

Spans carry the route as declared, ids, status and code; no path, no name of an identity, nothing of an image. Where
they go is said by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT` and its like); without that nothing is
sent, nor even imported.
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
# What is not yet sent at the end is given up after so long: nobody waits for a collector that is gone.
FLUSH_SECONDS = 3.0


class RequestSpan:
    """The span of one request; what is known only at its end is noted then."""

    def __init__(self, tracing: "Tracing", method: str, headers: Headers) -> None:
        parent = TraceContextTextMapPropagator().extract(headers)
        self._span = tracing.tracer.start_span(method, context=parent, kind=SpanKind.SERVER)
        self._method = method
        self.trace_id = f"{self._span.get_span_context().trace_id:032x}"

    def current(self) -> AbstractContextManager[object]:
        """Inside of it stages are its children; in other threads too, if they run in a copy of the context."""
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
    """Makes spans, and sends them from a thread of its own, in batches."""

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
        """A span for a time that is over just now."""
        now = time.time_ns()
        self.tracer.start_span("wait", start_time=now - int(1e9 * seconds)).end(now)

    def close(self) -> None:
        """Send what is left, if somebody takes it."""
        shutdown = getattr(self._provider, "shutdown", None)  # of the SDK, not of the API
        if shutdown is not None:
            last = threading.Thread(target=shutdown, name="last-spans", daemon=True)
            last.start()
            last.join(FLUSH_SECONDS)


def opened(settings: Settings) -> Tracing | None:
    """None where no traces are asked for. Raises `UsageError` where they can't be made, or have nowhere to go."""
    if not settings.tracing:
        return None
    if not any(os.environ.get(name) for name in ENDPOINTS):
        raise UsageError(
            f"DIPTYCH_TRACING=1 needs to know where traces go: set {ENDPOINTS[0]} to the address of a collector that "
            "takes OTLP over HTTP, such as http://127.0.0.1:4318."
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider as SdkProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise UsageError("DIPTYCH_TRACING=1 takes packages that are not installed: make env EXTRAS=tracing.") from None
    said = {"service.version": version("diptych")}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        said["service.name"] = "diptych"
    provider = SdkProvider(resource=Resource.create(said), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
