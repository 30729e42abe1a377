"""The service about itself: what is loaded, whether it is ready, what it counted."""

from dataclasses import replace

from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse

from app.checkpoint.thresholds import OperatingPoint
from app.http import rounding
from app.http.routes.dependencies import CheckpointDep, DirectRoute, ExpositionDep, ReadinessDep
from app.http.routes.responses import may_answer
from app.http.routes.schemas import CheckAnswer, CheckpointAnswer, Health, Readiness

router = APIRouter(tags=["service"], route_class=DirectRoute)


@router.get(
    "/checkpoint", response_model=CheckpointAnswer, summary="Show the checkpoint that is loaded", responses=may_answer()
)
async def checkpoint(checkpoint: CheckpointDep) -> CheckpointAnswer:
    """The checkpoint, its thresholds, and the error rates measured for them on identities not used in training."""
    description = checkpoint.description
    facts = description.calibration
    return CheckpointAnswer(
        name=description.name,
        model_id=description.model_id,
        calibration_id=description.calibration_id,
        created_at=description.created_at,
        embedding_dim=description.embedding_dim,
        preprocessing=description.preprocessing,
        margin=description.margin,
        threshold=rounding.round_threshold(description.default_threshold),
        threshold_source=description.threshold_source,
        target_fmr=description.target_fmr,
        operating_points=[_rounded(point) for point in description.operating_points],
        calibration=facts.model_copy(
            update={
                "eer": rounding.round_rate(facts.eer),
                "same_group_eer": rounding.round_rate(facts.same_group_eer),
                "smallest_fmr": rounding.round_rate_up(facts.smallest_fmr),
                "llr_bounds": facts.llr_bounds and tuple(map(rounding.round_log_ratio, facts.llr_bounds)),
                "cllr": rounding.round_rate(facts.cllr),
                "cllr_min": rounding.round_rate(facts.cllr_min),
            }
        ),
        dataset=description.dataset,
        runtime=checkpoint.runtime.model_copy(
            update={"max_distance_drift": rounding.round_rate_up(checkpoint.runtime.max_distance_drift)}
        ),
    )


def _rounded(point: OperatingPoint) -> OperatingPoint:
    return replace(
        point,
        threshold=None if point.threshold is None else rounding.round_calibrated(point.threshold),
        fmr=rounding.round_rate(point.fmr),
        fmr_ci95=rounding.round_interval(point.fmr_ci95),
        fnmr=rounding.round_rate(point.fnmr),
        fnmr_ci95=rounding.round_interval(point.fnmr_ci95),
    )


@router.get("/healthz", response_model=Health, summary="Alive", responses=may_answer())
async def healthz() -> Health:
    """Answers 200 as long as the process lives. Takes no key."""
    return Health(status="ok")


@router.get("/readyz", response_model=Readiness, summary="Ready", responses=may_answer())
def readyz(run_checks: ReadinessDep) -> Readiness:
    """Answers 200 if every check passes: the encoder is warm, the gallery can be read and written and fits this
    version and this encoder, there is room on the disk, and the service is not stopping. Otherwise 503 with every
    failed check, and the code of the first one. Takes no key."""
    made = run_checks()
    checks = {check.name: CheckAnswer(ok=check.problem is None, detail=check.detail) for check in made}
    problems = [check.problem for check in made if check.problem is not None]
    if problems:
        details = " ".join(dict.fromkeys(problem.detail for problem in problems))  # one cause may fail several checks
        raise type(problems[0])(details, checks={name: check.model_dump() for name, check in checks.items()})
    return Readiness(status="ready", checks=checks)


@router.get("/metrics", response_class=Response, summary="Metrics for Prometheus", responses=may_answer())
def metrics(expose: ExpositionDep) -> Response:
    """Counts of this process, the size of the gallery, the checks of /readyz, and drift, in Prometheus's format."""
    return Response(expose(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """To the documentation, where requests can be tried."""
    return RedirectResponse("docs")
