"""POST /search: which of those I remember is it?"""

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool

from app.arrays import EmbeddingsF32
from app.checkpoint.matching import decide
from app.checkpoint.searches import search_rates, threshold_for_search
from app.errors import ConflictingFields
from app.gallery import collections as gallery
from app.gallery import encoders as models
from app.http.routes.forms import SearchForm, documented, read
from app.http.routes.schemas import Match, SearchAnswer, parse_filter
from app.search.nearest import find
from app.serving.resources import CallerDep, ResourcesDep

router = APIRouter(tags=["gallery"])


@router.post("/search", response_model=SearchAnswer, openapi_extra=documented(SearchForm))
async def search(
    resources: ResourcesDep, caller: CallerDep, form: Annotated[SearchForm, Depends(read(SearchForm))]
) -> SearchAnswer:
    """Finds the enrolled identities nearest to an image, one entry each, nearest first.

    The threshold only decides the verdicts. The larger the gallery, the likelier somebody in it is near by chance:
    `target_fpir` chooses a threshold that knows its size.
    """
    if form.threshold is not None and form.target_fpir is not None:
        raise ConflictingFields("Give `threshold` or `target_fpir`, not both.")
    caller.check(form.collection)
    where = parse_filter(form.filter)
    database, pipeline, metrics = resources.database, resources.pipeline, resources.metrics
    serving = resources.keeper.serving  # once: another may take its place meanwhile

    def look() -> EmbeddingsF32:
        with database.read() as connection:  # before decoding: an unknown name costs nothing to refuse
            gallery.collection_key(connection, form.collection)
            models.key_of(connection, serving.loaded)
        (probe_D,) = pipeline.embed(serving.encoder, image=form.image)
        return probe_D

    def answer() -> SearchAnswer:
        with metrics.stage("search"), database.read() as connection:
            key = gallery.collection_key(connection, form.collection)
            model_key = models.key_of(connection, serving.loaded)
            hits = find(connection, serving.proposer, model_key, key, probe_D, form.top_k, where)
            gallery_size, references = gallery.searched(connection, key, where)
        calibration = serving.calibration
        each = -(-references // max(1, gallery_size))  # references of an identity, rounded up
        if form.target_fpir is None:
            chosen = calibration.choose(max(1, each), threshold=form.threshold)
        else:
            chosen = threshold_for_search(calibration, form.target_fpir, gallery_size, each)
        fpir, false_matches = search_rates(calibration, chosen.value, gallery_size, each)
        matches = [
            Match(
                identity=hit.identity,
                distance=hit.distance,
                verdict=decide(hit.distance, chosen.value),
                reference_id=hit.reference_id,
                metadata=hit.metadata,
            )
            for hit in hits
        ]
        found = matches[0].identity if matches and matches[0].verdict == "similar" else None
        if hits:
            metrics.distances.labels("search").observe(hits[0].distance)
        metrics.verdicts.labels("similar" if found is not None else "dissimilar").inc()
        return SearchAnswer(
            identity=found,
            matches=matches,
            gallery_size=gallery_size,
            references=references,
            threshold=chosen.value,
            threshold_source=chosen.source,
            target_fpir=form.target_fpir,
            fpir=fpir,
            expected_false_matches=false_matches,
            model_id=serving.model_id,
            calibration_id=serving.description.calibration_id,
        )

    probe_D = await pipeline.turn(look)
    # Not in the turn: an index that has to catch up would keep others from the encoder.
    return await run_in_threadpool(answer)
