"""What Prometheus is told, in a registry of the application's own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
DISTANCE_BUCKETS = tuple(round(0.1 * step, 1) for step in range(1, 21))


class Metrics:
    """Counters of one process."""

    def __init__(self, model_id: str, version: str) -> None:
        self.registry = CollectorRegistry()
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
        self.stages = Histogram(
            "diptych_stage_seconds",
            "Time in each stage: waiting for a turn, decoding an image, embedding a batch, searching the gallery.",
            ["stage"],
            registry=self.registry,
            buckets=STAGE_BUCKETS,
        )
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
        self.references = Gauge("diptych_references", "References in the gallery.", registry=self.registry)
        self.identities = Gauge("diptych_identities", "Identities with references.", registry=self.registry)
        self.verdicts = Counter("diptych_verdicts", "Verdicts, by kind.", ["verdict"], registry=self.registry)
        self.refusals = Counter("diptych_refused_images", "Images refused, by code.", ["code"], registry=self.registry)
        Info("diptych_build", "What is running.", registry=self.registry).info(
            {"version": version, "model_id": model_id}
        )

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
