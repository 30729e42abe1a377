"""The metrics of one process, in a registry of the application's own, for Prometheus.

Counters and histograms count where something happens; gauges are set by `Resources.exposition` when Prometheus asks.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from app.checkpoint.drift import DriftMonitor
from app.checkpoint.format import Description
from app.errors import DiptychError
from app.serving.readiness import Check
from app.serving.tracing import Tracing

Stage = Literal["decode", "embed", "search", "commit"]
STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
DISTANCE_BUCKETS = tuple(round(0.1 * step, 1) for step in range(1, 21))


class Metrics:
    """Every metric of the process. Counting is safe from any thread."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        disable_created_metrics()  # they would double the number of series
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.drift = DriftMonitor()
        self.tracing = tracing
        self.requests = self._counter(
            "diptych_requests", "Requests answered, by method, route and status.", "method", "route", "status"
        )
        self.seconds = Histogram(
            "diptych_request_seconds",
            "Seconds to answer a request, by method and route.",
            ["method", "route"],
            registry=self.registry,
        )
        stages = Histogram(
            "diptych_stage_seconds",
            "Seconds in each stage of a request: waiting for a turn, decoding one image, embedding a batch, searching "
            "the gallery, committing an enrolment.",
            ["stage"],
            registry=self.registry,
            buckets=STAGE_BUCKETS,
        )
        self._wait = stages.labels("wait")
        self._stages = {name: stages.labels(name) for name in get_args(Stage)}
        self.distances = Histogram(
            "diptych_distance",
            "Distances that verdicts of /verify and /search were based on.",
            ["endpoint"],
            registry=self.registry,
            buckets=DISTANCE_BUCKETS,
        )
        self.problems = self._counter("diptych_problems", "Requests refused or failed, by error code.", "code")
        self.problems.labels(DiptychError.code)  # from the start: else Prometheus would miss the first increase
        self.verdicts = self._counter("diptych_verdicts", "Verdicts of /verify and /search, by verdict.", "verdict")
        self.refusals = self._counter("diptych_refused_images", "Images refused, by error code.", "code")
        self._build = Info(
            "diptych_build",
            "Version of Diptych, and the model and calibration that it serves.",
            registry=self.registry,
        )
        self._references = self._gauge("diptych_references", "References in the gallery.")
        self._identities = self._gauge("diptych_identities", "Identities in the gallery that have references.")
        self.under_way = self._gauge("diptych_requests_under_way", "Requests being answered.")
        self._waiting = self._gauge("diptych_encoder_waiting", "Requests waiting for their turn at the encoder.")
        self._busy = self._gauge("diptych_encoder_busy", "Requests being decoded and embedded.")
        self._places = self._gauge(
            "diptych_encoder_places", "Requests that can be decoded and embedded at the same time."
        )
        self._ready = self._gauge("diptych_ready", "1 if /readyz answers 200.")
        self._checks = self._gauge("diptych_check", "1 if this check of /readyz passes.", "check")
        self._tasks = self._gauge("diptych_task_failing", "1 if this background task failed on its last run.", "task")
        self._free = self._gauge("diptych_disk_free_bytes", "Free bytes on the disk of `place`.", "place")
        self._threshold = self._gauge("diptych_threshold", "Default threshold of /verify with one reference.")
        self._drift = self._gauge(
            "diptych_distance_drift",
            "How far recent distances are from those of the calibration (Kolmogorov-Smirnov distance, 0 to 1).",
        )
        self._chance = self._gauge("diptych_distance_drift_chance", "Drift expected by chance (95th percentile).")
        self._compared = self._gauge("diptych_distance_drift_comparisons", "Comparisons in the drift window.")
        self._genuine = self._gauge(
            "diptych_distance_genuine_share", "Estimated share of genuine pairs in the drift window."
        )

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(name, help_text, labels, registry=self.registry)

    def stage(self, name: Stage) -> AbstractContextManager[object]:
        """Time a stage; a span too, where traces are sent."""
        timer = self._stages[name].time()
        return timer if self.tracing is None else self.tracing.stage(name, timer)

    def waited(self, seconds: float) -> None:
        """A request waited this long for its turn."""
        self._wait.observe(seconds)
        if self.tracing is not None:
            self.tracing.waited(seconds)

    def set_checkpoint(self, description: Description) -> None:
        self._build.info(
            {
                "version": version("diptych"),
                "model_id": description.model_id,
                "calibration_id": description.calibration_id,
            }
        )
        self._threshold.set(description.default_threshold.value)

    def set_encoder_load(self, places: int, taken: int) -> None:
        """`places` requests are worked on at once, `taken` are there, waiting ones included."""
        self._places.set(places)
        self._busy.set(min(taken, places))
        self._waiting.set(max(0, taken - places))

    def set_gallery_size(self, identities: int, references: int) -> None:
        self._identities.set(identities)
        self._references.set(references)

    def set_checks(self, checks: Iterable[Check]) -> None:
        passed = {check.name: check.problem is None for check in checks}
        self._ready.set(all(passed.values()))
        for name, passes in passed.items():
            self._checks.labels(name).set(passes)

    def set_tasks(self, failing: Mapping[str, bool]) -> None:
        for name, fails in failing.items():
            self._tasks.labels(name).set(fails)

    def set_free_bytes(self, free: Iterable[tuple[str, int]]) -> None:
        for place, left in free:
            self._free.labels(place).set(left)

    def set_drift(self) -> None:
        """NaN, as is usual in Prometheus, where there is no figure."""
        seen = self.drift.measure()
        self._compared.set(seen.comparisons)
        for gauge, value in (
            (self._drift, seen.drift),
            (self._chance, seen.chance),
            (self._genuine, seen.genuine_share),
        ):
            gauge.set(math.nan if value is None else value)

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)
