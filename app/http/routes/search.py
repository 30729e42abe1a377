"""POST /search: which of the enrolled identities does this image show?"""

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool

from app.arrays import EmbeddingsF32
from app.checkpoint.verdict import SearchWish, judge_search
from app.errors import (
    ConflictingFields,
    InvalidMetadata,
    InvalidName,
    ModelMismatch,
    NotSupported,
    UnknownCollection,
)
from app.gallery.collections import collection_key, count_searched
from app.gallery.encoders import find_model_key
from app.gallery.filters import parse_filter
from app.http import rounding
from app.http.routes.dependencies import CallerDep, CheckpointDep, DatabaseDep, DirectRoute, MetricsDep, PipelineDep
from app.http.routes.forms import SearchForm, document_form, read_form
from app.http.routes.responses import FORM, IMAGES, may_answer
from app.http.routes.schemas import Match, SearchAnswer
from app.search.nearest import find_nearest

router = APIRouter(tags=["gallery"], route_class=DirectRoute)


@router.post(
    "/search",
    response_model=SearchAnswer,
    summary="Find the enrolled identities nearest to an image",
    responses=may_answer(
        FORM, IMAGES, ConflictingFields, InvalidName, InvalidMetadata, NotSupported, UnknownCollection, ModelMismatch
    ),
    openapi_extra=document_form(SearchForm),
)
async def search(
    form: Annotated[SearchForm, Depends(read_form(SearchForm))],
    caller: CallerDep,
    checkpoint: CheckpointDep,
    pipeline: PipelineDep,
    database: DatabaseDep,
    metrics: MetricsDep,
) -> SearchAnswer:
    """Finds the `top_k` identities nearest to an image, one entry each, nearest first, whatever their verdicts.

    In a large gallery, some identity is likely to be close by chance. `target_fpir` chooses the threshold for the
    size of the gallery.
    """
    wish = SearchWish(threshold=form.threshold, target_fpir=form.target_fpir)
    caller.check(form.collection)
    wanted = parse_filter(form.filter)

    def embed_probe() -> EmbeddingsF32:
        with database.read() as connection:  # before decoding: an unknown name costs nothing to refuse
            collection_key(connection, form.collection)
            find_model_key(connection, checkpoint.gallery_encoder)
        (probe_D,) = pipeline.embed(checkpoint.encoder, image=form.image.data)
        return probe_D

    def find_and_judge() -> SearchAnswer:
        with metrics.stage("search"), database.read() as connection:
            key = collection_key(connection, form.collection)
            model_key = find_model_key(connection, checkpoint.gallery_encoder)
            hits = find_nearest(connection, checkpoint.proposer, model_key, key, probe_D, form.top_k, wanted)
            gallery_size, references = count_searched(connection, key, wanted)
        judgement = judge_search([hit.distance for hit in hits], checkpoint.calibration, wish, gallery_size, references)
        threshold = rounding.round_threshold(judgement.threshold)
        matches = [
            Match(
                identity=hit.identity,
                distance=rounding.round_distance(hit.distance, verdict, threshold),
                verdict=verdict,
                reference_id=hit.reference_id,
                metadata=hit.metadata,
            )
            for hit, verdict in zip(hits, judgement.verdicts, strict=True)
        ]
        found = matches[0].identity if matches and matches[0].verdict == "similar" else None
        if hits:
            metrics.distances.labels("search").observe(hits[0].distance)
        metrics.verdicts.labels("dissimilar" if found is None else "similar").inc()
        return SearchAnswer(
            identity=found,
            matches=matches,
            gallery_size=gallery_size,
            references=references,
            threshold=threshold,
            threshold_source=judgement.threshold.source,
            target_fpir=judgement.target_fpir,
            fpir=rounding.round_rate(judgement.fpir),
            expected_false_matches=rounding.round_rate(judgement.expected_false_matches),
            model_id=checkpoint.model_id,
            calibration_id=checkpoint.description.calibration_id,
        )

    probe_D = await pipeline.turn(embed_probe)
    # Not in the turn: an index that has to catch up would keep others from the encoder.
    return await run_in_threadpool(find_and_judge)
