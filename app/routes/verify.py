"""POST /verify: are these two the same? POST /embed: the embedding alone."""

from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, UploadFile

from app.calibration import probability
from app.dependencies import (
    CallerDep,
    DatabaseDep,
    MetricsDep,
    PipelineDep,
    ServingDep,
    SettingsDep,
    strict_form,
)
from app.errors import ConflictingFields, InvalidRequest
from app.image import SERVED
from app.matching import decide, distance, distances
from app.references import references_of
from app.schemas import ClaimForm, CollectionForm, EmbedAnswer, ThresholdForm, VerifyAnswer

router = APIRouter(tags=["verification"], dependencies=[Depends(strict_form)])

IMAGE = f"{SERVED}; bytes decide, not the name."


@router.post("/verify", response_model=VerifyAnswer, form_limits={"max_files": 4, "max_fields": 16})
def verify(
    serving: ServingDep,
    settings: SettingsDep,
    pipeline: PipelineDep,
    database: DatabaseDep,
    metrics: MetricsDep,
    caller: CallerDep,
    image_a: Annotated[UploadFile, File(description=IMAGE)],
    image_b: Annotated[UploadFile | None, File(description="The other image; or give `identity`.")] = None,
    identity: ClaimForm = None,
    collection: CollectionForm = "default",
    threshold: ThresholdForm = None,
    target_fmr: Annotated[
        float | None,
        Form(gt=0, lt=1, description="A false-match rate to keep, instead of a threshold; refused if unsupported."),
    ] = None,
    inconclusive_fmr: Annotated[
        float | None,
        Form(
            gt=0,
            lt=1,
            description="A larger false-match rate: distances between its threshold and the other are `inconclusive`.",
        ),
    ] = None,
    prior: Annotated[float, Form(gt=0, lt=1, description="How likely `similar` is before looking.")] = 0.5,
) -> VerifyAnswer:
    """Says whether two images show the same thing, or whether one shows the identity that it claims to.

    A claimed identity is compared with all of its references; the nearest decides, at the threshold for so many.
    """
    if threshold is not None and target_fmr is not None:
        raise ConflictingFields("Give `threshold` or `target_fmr`, not both.")
    description, calibration = serving.description, serving.calibration
    reference_id, compared = None, 1
    if image_b is not None and identity is not None:
        raise ConflictingFields("Give `image_b` to compare two images, or `identity` to test a claim, not both.")
    if image_b is not None:
        first, second = pipeline.embed(serving.encoder, ("image_a", image_a), ("image_b", image_b))
        apart = distance(first.embedding_D, second.embedding_D)
    elif identity is not None:
        caller.check(collection)
        # Before decoding: an unknown name costs nothing to refuse.
        with database.read() as connection:
            stored = references_of(connection, collection, identity, serving.loaded)
        (probe,) = pipeline.embed(serving.encoder, ("image_a", image_a))
        to_each = distances(probe.embedding_D, stored.embeddings_RD)
        nearest, compared = int(to_each.argmin()), len(to_each)
        apart, reference_id = float(to_each[nearest]), stored.reference_ids[nearest]
    else:
        raise InvalidRequest("Give a second image as `image_b`, or an enrolled `identity` to compare with.")

    chosen = calibration.choose(compared, threshold=threshold, target_fmr=target_fmr)
    inconclusive_to = (
        calibration.usual_band(chosen, settings.inconclusive_fmr, compared)
        if inconclusive_fmr is None
        else calibration.band(chosen, inconclusive_fmr, compared)
    )
    verdict = decide(apart, chosen.value, inconclusive_to)
    metrics.verdicts.labels(verdict).inc()
    metrics.distances.labels("verify").observe(apart)
    said = calibration.said(apart, chosen, compared)
    ratio = said.log_likelihood_ratio
    return VerifyAnswer(
        verdict=verdict,
        distance=apart,
        threshold=chosen.value,
        threshold_source=chosen.source,
        inconclusive_to=inconclusive_to,
        margin=description.margin,
        model_id=serving.model_id,
        calibration_id=description.calibration_id,
        target_fmr=chosen.point.target_fmr if chosen.point else None,
        fmr=said.fmr,
        fmr_ci95=said.fmr_ci95,
        fnmr=said.fnmr,
        fnmr_ci95=said.fnmr_ci95,
        log_likelihood_ratio=ratio,
        probability=None if ratio is None else probability(ratio, prior),
        prior=prior,
        percentile=said.percentile,
        reference_id=reference_id,
        references=compared,
    )


@router.post("/embed", response_model=EmbedAnswer, form_limits={"max_files": 4, "max_fields": 16})
def embed(
    pipeline: PipelineDep,
    serving: ServingDep,
    image: Annotated[UploadFile, File(description=IMAGE)],
) -> EmbedAnswer:
    """The unit embedding of one image."""
    (embedded,) = pipeline.embed(serving.encoder, ("image", image))
    return EmbedAnswer(embedding=embedded.embedding_D.tolist(), model_id=serving.model_id)
