"""The service about itself: what is loaded, whether it lives, what it counted."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse

from app.http.routes.schemas import CheckAnswer, CheckpointAnswer, Health, Readiness
from app.serving import measures, readiness
from app.serving.resources import ResourcesDep, ServingDep

router = APIRouter(tags=["service"])


@router.get("/checkpoint", response_model=CheckpointAnswer)
def checkpoint(serving: ServingDep) -> dict[str, Any]:
    """What is loaded and how well it measured."""
    return {**serving.description.model_dump(), "runtime": serving.runtime}


@router.get("/healthz", response_model=Health)
async def healthz() -> Health:
    """The process lives."""
    return Health(status="ok")


@router.get("/readyz", response_model=Readiness)
def readyz(resources: ResourcesDep) -> Readiness:
    """The encoder is warm, the gallery can be read and written, its schema and model are this version's, the disk has
    room, and the service is not stopping; otherwise 503 with all that is wrong, and the code of the first of it."""
    made = readiness.checks(resources)
    found = {check.name: CheckAnswer(ok=check.problem is None, detail=check.detail) for check in made}
    wrong = [check.problem for check in made if check.problem is not None]
    if wrong:
        every = " ".join(dict.fromkeys(problem.detail for problem in wrong))  # one cause may fail several
        raise type(wrong[0])(every, checks={name: check.model_dump() for name, check in found.items()})
    return Readiness(status="ready", checks=found)


@router.get("/metrics", response_class=Response)
def metrics(resources: ResourcesDep) -> Response:
    """What this process counted, for Prometheus; and the gallery's size, the checks of /readyz, the drift."""
    measures.observe(resources)
    return Response(resources.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """The console comes later; until then, the documentation that can be tried out."""
    return RedirectResponse("docs")
