"""What a route may ask for, each under one name, so that its signature says what it touches.

They are `async` although they wait for nothing: FastAPI would look up each of the others in a thread. The routes that
take images ask for `ResourcesDep` alone, since each further one takes FastAPI some 25 microseconds a request.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.database.open import open_database
from app.database.transactions import Database
from app.gallery.keys import Caller
from app.gallery.originals import Originals
from app.http.audit import Audit
from app.serving import loaded as serving
from app.serving import tracing
from app.serving.housekeeping import Keeper
from app.serving.loaded import Serving
from app.serving.metrics import Metrics
from app.serving.pipeline import Pipeline
from app.settings import Settings


@dataclass
class Resources:
    """What the service holds while it lives."""

    settings: Settings
    pipeline: Pipeline
    database: Database
    originals: Originals
    keeper: Keeper
    metrics: Metrics
    ready: bool = False
    # Told to stop: what is under way is answered, and no more should be sent.
    draining: bool = False

    def close(self) -> None:
        """Finish what is begun, leave snapshots, give the gallery free. Twice is no harm."""
        self.ready = False
        self.pipeline.close()
        self.keeper.close()
        self.database.close()
        if self.metrics.tracing is not None:
            self.metrics.tracing.close()


@contextmanager
def opened(settings: Settings) -> Iterator[Resources]:
    """Load the checkpoint and open the gallery. Raises `UsageError` for what the operator has to mend."""
    database = open_database(settings)
    try:
        originals = Originals(settings.data_dir, settings.keep_images, database)
        current = serving.load(settings.checkpoint, settings, database)
        serving.check_gallery(database, current.loaded, settings.checkpoint)
        metrics = Metrics(tracing.opened(settings))
        resources = Resources(
            settings=settings,
            pipeline=Pipeline(settings, metrics),
            database=database,
            originals=originals,
            keeper=Keeper(settings, database, originals, current),
            metrics=metrics,
        )
    except BaseException:
        database.close()
        raise
    try:
        yield resources
    finally:
        resources.close()


async def _resources(request: Request) -> Resources:
    resources: Resources = request.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(_resources)]


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]


async def _audit(request: Request, caller: CallerDep) -> Audit:
    return Audit(caller.name, request.state.request_id)


async def _serving(resources: ResourcesDep) -> Serving:
    """One for the whole request: another checkpoint may take its place meanwhile."""
    return resources.keeper.serving


async def _database(resources: ResourcesDep) -> Database:
    return resources.database


async def _metrics(resources: ResourcesDep) -> Metrics:
    return resources.metrics


AuditDep = Annotated[Audit, Depends(_audit)]
ServingDep = Annotated[Serving, Depends(_serving)]
DatabaseDep = Annotated[Database, Depends(_database)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
