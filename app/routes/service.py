"""The service about itself: what is loaded, whether it lives, what it counted."""

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse

from app import gallery, models
from app.dependencies import DatabaseDep, MetricsDep, ResourcesDep, ServingDep
from app.errors import ModelMismatch, StorageUnavailable, Unavailable
from app.schemas import CheckpointAnswer, Health

router = APIRouter(tags=["service"])


@router.get("/checkpoint", response_model=CheckpointAnswer)
def checkpoint(serving: ServingDep) -> dict[str, Any]:
    """What is loaded and how well it measured."""
    return {**serving.description.model_dump(), "runtime": serving.runtime}


@router.get("/healthz", response_model=Health)
async def healthz() -> Health:
    """The process lives."""
    return Health(status="ok")


@router.get("/readyz", response_model=Health)
def readyz(resources: ResourcesDep) -> Health:
    """A warm-up embedding has run and the gallery can be read and written; otherwise 503, and what is wrong."""
    if not resources.ready:
        raise Unavailable("The encoder is warming up.")
    for trouble in (resources.database.trouble, resources.originals.trouble, resources.keeper.stranded):
        if trouble is not None:
            raise type(trouble)(trouble.detail)
    with resources.database.read() as connection:
        try:
            models.key_of(connection, resources.keeper.serving.loaded)
        except ModelMismatch as mismatch:
            raise Unavailable(mismatch.detail) from None
    resources.database.is_writable()
    return Health(status="ready")


@router.get("/metrics", response_class=Response)
def metrics(metrics: MetricsDep, database: DatabaseDep) -> Response:
    """Counters of this process for Prometheus, and the gallery's size."""
    with suppress(StorageUnavailable), database.read() as connection:
        identities, references = gallery.sizes(connection)
        metrics.identities.set(identities)
        metrics.references.set(references)
    return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """The console comes later; until then, the documentation that can be tried out."""
    return RedirectResponse("docs")
