"""What Prometheus is told, in a registry of the application's own."""

import math
from contextlib import AbstractContextManager
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

from app.checkpoint.drift import Drift
from app.errors import DiptychError
from app.serving.tracing import Tracing

Stage = Literal["decode", "embed", "search", "commit"]
STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
DISTANCE_BUCKETS = tuple(round(0.1 * step, 1) for step in range(1, 21))


class Metrics:
    """Of one process. What counts is counted where it happens; `observe` in `measures` asks for the rest."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        disable_created_metrics()  # when each series began, once more for each
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.drift = Drift()
        self.tracing = tracing
        self.requests = Counter(
            "diptych_requests",
            "Answers, by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "diptych_request_seconds",
            "Time to answer, by route.",
            ["method", "route"],
            registry=self.registry,
        )
        stages = Histogram(
            "diptych_stage_seconds",
            "Time in each stage: waiting for a turn, decoding an image, embedding a batch, searching the gallery, "
            "committing an enrolment.",
            ["stage"],
            registry=self.registry,
            buckets=STAGE_BUCKETS,
        )
        self._wait = stages.labels("wait")
        self._stages = {name: stages.labels(name) for name in get_args(Stage)}
        self.distances = Histogram(
            "diptych_distance",
            "Distances that verdicts were about, to be held against those of the calibration.",
            ["endpoint"],
            registry=self.registry,
            buckets=DISTANCE_BUCKETS,
        )
        self.problems = Counter(
            "diptych_problems", "Requests refused or failed, by code.", ["code"], registry=self.registry
        )
        self.problems.labels(DiptychError.code)  # from the start, so that the first one is an increase
        self.references = Gauge("diptych_references", "References in the gallery.", registry=self.registry)
        self.identities = Gauge("diptych_identities", "Identities with references.", registry=self.registry)
        self.verdicts = Counter("diptych_verdicts", "Verdicts, by kind.", ["verdict"], registry=self.registry)
        self.refusals = Counter("diptych_refused_images", "Images refused, by code.", ["code"], registry=self.registry)
        self.build = Info("diptych_build", "What is running.", registry=self.registry)
        self.under_way = self._gauge("diptych_requests_under_way", "Requests that are being answered.")
        self.waiting = self._gauge("diptych_encoder_waiting", "Requests that wait for a turn at the encoder.")
        self.embedding = self._gauge("diptych_encoder_busy", "Requests that are being decoded and embedded.")
        self.places = self._gauge("diptych_encoder_places", "Requests that may be decoded and embedded at once.")
        self.ready = self._gauge("diptych_ready", "1 if /readyz says so.")
        self.checks = self._gauge("diptych_check", "1 for each check of /readyz that holds.", "check")
        self.tasks = self._gauge("diptych_task_failing", "1 for what is done meanwhile and fails just now.", "task")
        self.free = self._gauge("diptych_disk_free_bytes", "Room on the disk with this.", "place")
        self.threshold = self._gauge("diptych_threshold", "The threshold of one comparison, where none is asked for.")
        self.drifted = self._gauge(
            "diptych_distance_drift",
            "How far the last comparisons' distances are from every mixture of the calibration's (Kolmogorov-Smirnov).",
        )
        self.chance = self._gauge(
            "diptych_distance_drift_chance", "What that stays below in 95 % of cases where nothing has changed."
        )
        self.compared = self._gauge("diptych_distance_drift_comparisons", "How many comparisons that is about.")
        self.genuine = self._gauge(
            "diptych_distance_genuine_share", "The share of genuine pairs in the mixture that is nearest to them."
        )

    def _gauge(self, name: str, says: str, *labels: str) -> Gauge:
        return Gauge(name, says, labels, registry=self.registry)

    def stage(self, name: Stage) -> AbstractContextManager[object]:
        """Time a stage; a span too, where there are traces."""
        timer = self._stages[name].time()
        return timer if self.tracing is None else self.tracing.stage(name, timer)

    def waited(self, seconds: float) -> None:
        """A request's turn has come after so long."""
        self._wait.observe(seconds)
        if self.tracing is not None:
            self.tracing.waited(seconds)

    def look_at_drift(self) -> None:
        """NaN, as Prometheus has it, where there is nothing to say."""
        seen = self.drift.look()
        self.compared.set(seen.comparisons)
        for gauge, value in (
            (self.drifted, seen.drift),
            (self.chance, seen.chance),
            (self.genuine, seen.genuine_share),
        ):
            gauge.set(math.nan if value is None else value)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
