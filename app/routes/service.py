"""The service about itself: what is loaded, whether it lives, what it counted."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse

from app.dependencies import DescriptionDep, MetricsDep, ResourcesDep
from app.errors import Unavailable
from app.schemas import CheckpointAnswer, Health

router = APIRouter(tags=["service"])


@router.get("/checkpoint", response_model=CheckpointAnswer)
def checkpoint(description: DescriptionDep) -> dict[str, Any]:
    """What is loaded and how well it measured."""
    return description.model_dump()


@router.get("/healthz", response_model=Health)
async def healthz() -> Health:
    """The process lives."""
    return Health(status="ok")


@router.get("/readyz", response_model=Health)
def readyz(resources: ResourcesDep) -> Health:
    """A warm-up embedding has run and the gallery can be read; 503 otherwise."""
    if not resources.ready:
        raise Unavailable("The encoder is warming up.")
    with resources.database.read():
        return Health(status="ready")


@router.get("/metrics", response_class=Response)
def metrics(metrics: MetricsDep) -> Response:
    """Counters for Prometheus."""
    return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """The console comes later; until then, the documentation that can be tried out."""
    return RedirectResponse("docs")
