"""What Prometheus is told, in a registry of the application's own."""

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, generate_latest


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
        self.verdicts = Counter("diptych_verdicts", "Verdicts, by kind.", ["verdict"], registry=self.registry)
        self.refusals = Counter("diptych_refused_images", "Images refused, by code.", ["code"], registry=self.registry)
        Info("diptych_build", "What is running.", registry=self.registry).info(
            {"version": version, "model_id": model_id}
        )

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
