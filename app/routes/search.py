"""POST /search: which of those I remember is it?"""

from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, UploadFile

from app import gallery
from app.dependencies import (
    CalibrationDep,
    DatabaseDep,
    DescriptionDep,
    IndexDep,
    MetricsDep,
    PipelineDep,
    strict_form,
)
from app.errors import ConflictingFields
from app.matching import decide
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
    calibration: CalibrationDep,
    metrics: MetricsDep,
    image: Annotated[UploadFile, File(description="The probe.")],
    collection: CollectionForm = "default",
    top_k: Annotated[int, Form(ge=1, le=1000, description="How many identities to answer.")] = 5,
    threshold: ThresholdForm = None,
    target_fpir: Annotated[
        float | None,
        Form(
            gt=0,
            lt=1,
            description="Of searches for somebody who is not enrolled, the share that may find somebody: the threshold "
            "follows from it and from the gallery's size.",
        ),
    ] = None,
) -> SearchAnswer:
    """Finds the enrolled identities nearest to an image, one entry each, nearest first.

    The threshold only decides the verdicts. The larger the gallery, the likelier somebody in it is near by chance:
    `target_fpir` chooses a threshold that knows its size.
    """
    if threshold is not None and target_fpir is not None:
        raise ConflictingFields("Give `threshold` or `target_fpir`, not both.")
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
    each = -(-references // max(1, gallery_size))  # references of an identity, rounded up
    if target_fpir is None:
        chosen = calibration.choose(max(1, each), threshold=threshold)
    else:
        chosen = calibration.threshold_for_search(target_fpir, gallery_size, each)
    fpir, false_matches = calibration.search_rates(chosen.value, gallery_size, each)
    matches = [
        Match(distance=hit.distance, verdict=decide(hit.distance, chosen.value), **about[hit.reference_key])
        for hit in hits
        if hit.reference_key in about
    ]
    found = matches[0].identity if matches and matches[0].verdict == "similar" else None
    metrics.verdicts.labels("similar" if found is not None else "dissimilar").inc()
    return SearchAnswer(
        identity=found,
        matches=matches,
        gallery_size=gallery_size,
        references=references,
        threshold=chosen.value,
        threshold_source=chosen.source,
        target_fpir=target_fpir,
        fpir=fpir,
        expected_false_matches=false_matches,
        model_id=description.model_id,
        calibration_id=description.calibration_id,
    )
