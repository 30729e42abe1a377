"""POST /verify: are these two the same? POST /embed: the embedding alone."""

from typing import Annotated

from fastapi import APIRouter, Depends

from app.checkpoint.matching import distance, distances
from app.checkpoint.verdict import Judgement, Wish, judge
from app.errors import (
    ConflictingFields,
    InvalidName,
    InvalidRequest,
    ModelMismatch,
    NoReferences,
    NotSupported,
    UnknownCollection,
    UnknownIdentity,
)
from app.gallery.references import references_of
from app.http import rounding
from app.http.routes.dependencies import (
    CallerDep,
    CheckpointDep,
    DatabaseDep,
    DirectRoute,
    MetricsDep,
    PipelineDep,
    SettingsDep,
)
from app.http.routes.forms import EmbedForm, VerifyForm, document_form, read_form
from app.http.routes.responses import FORM, IMAGES, may_answer
from app.http.routes.schemas import EmbedAnswer, VerifyAnswer
from app.serving.loaded import LoadedCheckpoint

router = APIRouter(tags=["verification"], route_class=DirectRoute)


@router.post(
    "/verify",
    response_model=VerifyAnswer,
    summary="Compare two images, or an image with an enrolled identity",
    responses=may_answer(
        FORM,
        IMAGES,
        ConflictingFields,
        InvalidName,
        NotSupported,
        UnknownCollection,
        UnknownIdentity,
        NoReferences,
        ModelMismatch,
    ),
    openapi_extra=document_form(VerifyForm),
)
async def verify(
    form: Annotated[VerifyForm, Depends(read_form(VerifyForm))],
    caller: CallerDep,
    checkpoint: CheckpointDep,
    pipeline: PipelineDep,
    database: DatabaseDep,
    metrics: MetricsDep,
    settings: SettingsDep,
) -> VerifyAnswer:
    """Says whether two images show the same thing, or whether an image shows the identity that it claims to show.

    For a claim, the image is compared with every reference of the identity, and the nearest one decides. More
    references mean more chances of a false match, so the threshold is adjusted to their number.
    """
    wish = Wish(
        threshold=form.threshold,
        target_fmr=form.target_fmr,
        inconclusive_fmr=form.inconclusive_fmr,
        usual_inconclusive_fmr=settings.inconclusive_fmr,
        prior=form.prior,
    )
    if form.image_b is not None and form.identity is not None:
        raise ConflictingFields("Give `image_b` to compare two images, or `identity` to test a claim, not both.")
    if form.image_b is None and form.identity is None:
        raise InvalidRequest(
            "Give a second image as `image_b`, or an enrolled `identity` to compare with.", title="A field is missing"
        )
    if form.identity is not None:
        caller.check(form.collection)

    def compare() -> tuple[float, str | None, int]:
        """The distance that decides, the reference that it is to, and how many references there are."""
        if form.image_b is not None:
            first_D, second_D = pipeline.embed(checkpoint.encoder, image_a=form.image_a.data, image_b=form.image_b.data)
            return distance(first_D, second_D), None, 1
        # Before decoding: an unknown name costs nothing to refuse.
        with database.read() as connection:
            stored = references_of(connection, form.collection, form.identity or "", checkpoint.gallery_encoder)
        (probe_D,) = pipeline.embed(checkpoint.encoder, image_a=form.image_a.data)
        to_each = distances(probe_D, stored.embeddings_RD)
        nearest = int(to_each.argmin())
        return float(to_each[nearest]), stored.reference_ids[nearest], len(to_each)

    def answer() -> VerifyAnswer:
        deciding, reference_id, references = compare()
        judgement = judge(deciding, checkpoint.calibration, wish, references)
        metrics.verdicts.labels(judgement.verdict).inc()
        metrics.distances.labels("verify").observe(deciding)
        if references == 1:  # the nearest of several is closer by chance too
            metrics.drift.note(checkpoint.calibration, deciding)
        return _rounded(judgement, checkpoint, reference_id)

    return await pipeline.turn(answer)


def _rounded(judgement: Judgement, checkpoint: LoadedCheckpoint, reference_id: str | None) -> VerifyAnswer:
    threshold = rounding.round_threshold(judgement.threshold)
    inconclusive_to = rounding.round_band(judgement.inconclusive_to, threshold)
    return VerifyAnswer(
        verdict=judgement.verdict,
        distance=rounding.round_distance(judgement.distance, judgement.verdict, threshold, inconclusive_to),
        threshold=threshold,
        threshold_source=judgement.threshold.source,
        inconclusive_to=inconclusive_to,
        margin=checkpoint.description.margin,
        model_id=checkpoint.model_id,
        calibration_id=checkpoint.description.calibration_id,
        target_fmr=judgement.target_fmr,
        fmr=rounding.round_rate(judgement.fmr),
        fmr_ci95=rounding.round_interval(judgement.fmr_ci95),
        fnmr=rounding.round_rate(judgement.fnmr),
        fnmr_ci95=rounding.round_interval(judgement.fnmr_ci95),
        log_likelihood_ratio=rounding.round_log_ratio(judgement.log_likelihood_ratio),
        probability=rounding.round_rate(judgement.probability),
        prior=judgement.prior,
        percentile=rounding.round_percentile(judgement.percentile),
        reference_id=reference_id,
        references=judgement.references,
    )


@router.post(
    "/embed",
    response_model=EmbedAnswer,
    summary="Compute the embedding of an image",
    responses=may_answer(FORM, IMAGES),
    openapi_extra=document_form(EmbedForm),
)
async def embed(
    form: Annotated[EmbedForm, Depends(read_form(EmbedForm))], checkpoint: CheckpointDep, pipeline: PipelineDep
) -> EmbedAnswer:
    """The unit embedding of one image. Compare it only with embeddings of the same `model_id`."""
    (embedding_D,) = await pipeline.turn(lambda: pipeline.embed(checkpoint.encoder, image=form.image.data))
    return EmbedAnswer(embedding=rounding.shortest_decimals(embedding_D), model_id=checkpoint.model_id)
