"""POST /search: which of those I remember is it?"""

from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, UploadFile

from app import gallery
from app.dependencies import DatabaseDep, DescriptionDep, IndexDep, MetricsDep, PipelineDep, strict_form
from app.errors import NotSupported
from app.matching import choose_threshold, decide
from app.schemas import CollectionForm, Match, SearchAnswer, ThresholdForm

router = APIRouter(tags=["gallery"], dependencies=[Depends(strict_form)])

# A reference found may be deleted before its name is read; the search is then repeated.
ATTEMPTS = 5


@router.post("/search", response_model=SearchAnswer, form_limits={"max_files": 4, "max_fields": 16})
def search(
    pipeline: PipelineDep,
    index: IndexDep,
    database: DatabaseDep,
    description: DescriptionDep,
    metrics: MetricsDep,
    image: Annotated[UploadFile, File(description="The probe.")],
    collection: CollectionForm = "default",
    top_k: Annotated[int, Form(ge=1, le=1000, description="How many identities to answer.")] = 5,
    threshold: ThresholdForm = None,
    target_fpir: Annotated[float | None, Form(gt=0, lt=1, description="Not supported yet.")] = None,
) -> SearchAnswer:
    """Finds the enrolled identities nearest to an image, one entry each, nearest first.

    The threshold only decides the verdicts: without a `similar` one, it is nobody known.
    """
    if target_fpir is not None:
        raise NotSupported(
            "No checkpoint is calibrated for `target_fpir` yet. Give `threshold`, or leave both out for the "
            "checkpoint's own threshold, whose false-match rate is per comparison."
        )
    chosen = choose_threshold(
        description.default_threshold, description.operating_points, threshold=threshold, target_fmr=None
    )
    with database.read() as connection:
        key = gallery.collection_key(connection, collection)
        gallery.check_model(connection, description.model_id)
    (probe,) = pipeline.embed(("image", image))
    for attempt in range(ATTEMPTS):
        hits = index.search(key, probe.embedding_D, top_k)
        with database.read() as connection:
            about = gallery.describe(connection, [hit.reference_key for hit in hits])
            if len(about) == len(hits) or attempt == ATTEMPTS - 1:
                gallery_size, references = gallery.searched(connection, key)
                break
    matches = [
        Match(distance=hit.distance, verdict=decide(hit.distance, chosen.value), **about[hit.reference_key])
        for hit in hits
        if hit.reference_key in about
    ]
    metrics.verdicts.labels(matches[0].verdict if matches else "dissimilar").inc()
    return SearchAnswer(
        matches=matches,
        gallery_size=gallery_size,
        references=references,
        threshold=chosen.value,
        threshold_source=chosen.source,
        model_id=description.model_id,
        calibration_id=description.calibration_id,
    )
