"""What is not counted but looked at, each time that Prometheus asks."""

from contextlib import suppress
from importlib.metadata import version

from app.errors import StorageUnavailable
from app.gallery.collections import count_enrolled
from app.serving import readiness
from app.serving.resources import Resources


def observe(resources: Resources) -> None:
    """Bring every gauge up to the moment. What can't be read keeps what it said before."""
    metrics, serving = resources.metrics, resources.keeper.serving
    metrics.build.info(
        {
            "version": version("diptych"),
            "model_id": serving.model_id,
            "calibration_id": serving.description.calibration_id,
        }
    )
    metrics.threshold.set(serving.description.default_threshold.value)
    at_once, taken = resources.settings.concurrency, resources.pipeline.taken
    metrics.places.set(at_once)
    metrics.embedding.set(min(taken, at_once))
    metrics.waiting.set(max(0, taken - at_once))
    made = readiness.checks(resources)
    if not any(check.name == "gallery" and check.problem for check in made):
        with suppress(StorageUnavailable), resources.database.read() as connection:
            identities, references = count_enrolled(connection)
            metrics.identities.set(identities)
            metrics.references.set(references)
    metrics.ready.set(all(check.problem is None for check in made))
    for check in made:
        metrics.checks.labels(check.name).set(check.problem is None)
    for name, fails in resources.keeper.failing.items():
        metrics.tasks.labels(name).set(fails)
    for place, path in readiness.places(resources):
        with suppress(StorageUnavailable):
            metrics.free.labels(place).set(readiness.bytes_free(path))
    metrics.look_at_drift()
