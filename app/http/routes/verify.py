"""POST /verify: are these two the same? POST /embed: the embedding alone."""

from typing import Annotated

from fastapi import APIRouter, Depends

from app.checkpoint.calibration import probability
from app.checkpoint.matching import decide, distance, distances
from app.errors import ConflictingFields, InvalidRequest
from app.gallery.references import references_of
from app.http.routes.forms import EmbedForm, VerifyForm, documented, read
from app.http.routes.schemas import EmbedAnswer, VerifyAnswer
from app.serving.resources import CallerDep, ResourcesDep

router = APIRouter(tags=["verification"])


@router.post("/verify", response_model=VerifyAnswer, openapi_extra=documented(VerifyForm))
async def verify(
    resources: ResourcesDep, caller: CallerDep, form: Annotated[VerifyForm, Depends(read(VerifyForm))]
) -> VerifyAnswer:
    """Says whether two images show the same thing, or whether one shows the identity that it claims to.

    A claimed identity is compared with all of its references; the nearest decides, at the threshold for so many.
    """
    if form.threshold is not None and form.target_fmr is not None:
        raise ConflictingFields("Give `threshold` or `target_fmr`, not both.")
    if form.image_b is not None and form.identity is not None:
        raise ConflictingFields("Give `image_b` to compare two images, or `identity` to test a claim, not both.")
    if form.image_b is None and form.identity is None:
        raise InvalidRequest("Give a second image as `image_b`, or an enrolled `identity` to compare with.")
    if form.identity is not None:
        caller.check(form.collection)
    pipeline, metrics = resources.pipeline, resources.metrics
    serving = resources.keeper.serving  # once: another may take its place meanwhile
    description, calibration = serving.description, serving.calibration

    def compare() -> tuple[float, str | None, int]:
        """The distance that decides, to which reference, of how many."""
        if form.image_b is not None:
            first_D, second_D = pipeline.embed(serving.encoder, image_a=form.image_a, image_b=form.image_b)
            return distance(first_D, second_D), None, 1
        # Before decoding: an unknown name costs nothing to refuse.
        with resources.database.read() as connection:
            stored = references_of(connection, form.collection, form.identity or "", serving.loaded)
        (probe_D,) = pipeline.embed(serving.encoder, image_a=form.image_a)
        to_each = distances(probe_D, stored.embeddings_RD)
        nearest = int(to_each.argmin())
        return float(to_each[nearest]), stored.reference_ids[nearest], len(to_each)

    def answer() -> VerifyAnswer:
        apart, reference_id, compared = compare()
        chosen = calibration.choose(compared, threshold=form.threshold, target_fmr=form.target_fmr)
        inconclusive_to = (
            calibration.usual_band(chosen, resources.settings.inconclusive_fmr, compared)
            if form.inconclusive_fmr is None
            else calibration.band(chosen, form.inconclusive_fmr, compared)
        )
        verdict = decide(apart, chosen.value, inconclusive_to)
        metrics.verdicts.labels(verdict).inc()
        metrics.distances.labels("verify").observe(apart)
        if compared == 1:  # the nearest of several is closer by chance too
            metrics.drift.note(calibration, apart)
        said = calibration.figures(apart, chosen, compared)
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
            probability=None if ratio is None else probability(ratio, form.prior),
            prior=form.prior,
            percentile=said.percentile,
            reference_id=reference_id,
            references=compared,
        )

    return await pipeline.turn(answer)


@router.post("/embed", response_model=EmbedAnswer, openapi_extra=documented(EmbedForm))
async def embed(resources: ResourcesDep, form: Annotated[EmbedForm, Depends(read(EmbedForm))]) -> EmbedAnswer:
    """The unit embedding of one image."""
    serving, pipeline = resources.keeper.serving, resources.pipeline
    (embedding_D,) = await pipeline.turn(lambda: pipeline.embed(serving.encoder, image=form.image))
    return EmbedAnswer(embedding=embedding_D.tolist(), model_id=serving.model_id)
