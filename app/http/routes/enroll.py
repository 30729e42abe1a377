"""POST /enroll: remember these images of an identity."""

import hashlib
import json
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Header
from fastapi.concurrency import run_in_threadpool

from app.arrays import EmbeddingsF32
from app.errors import (
    DeletedSince,
    IdempotencyKeyReused,
    ImageError,
    InvalidMetadata,
    InvalidName,
    ModelMismatch,
    NothingEnrolled,
    Overloaded,
    TooManyImages,
)
from app.gallery.enrolment import NewReference, enroll_images
from app.gallery.idempotency import claim_key, recall_answer, remember_answer
from app.gallery.names import parse_metadata, printable_filename
from app.gallery.originals import Originals
from app.http.routes.dependencies import (
    AuditDep,
    CallerDep,
    CheckpointDep,
    DatabaseDep,
    DirectRoute,
    MetricsDep,
    OriginalsDep,
    PipelineDep,
    SettingsDep,
)
from app.http.routes.forms import EnrollForm, document_form, read_form
from app.http.routes.multipart import Upload
from app.http.routes.responses import FORM, may_answer
from app.http.routes.schemas import EnrollAnswer

router = APIRouter(tags=["gallery"], route_class=DirectRoute)
# Up to here the answer says how many images there were (`too_many_images`); beyond, only that there are too many.
MAX_FILES = 1001


@router.post(
    "/enroll",
    response_model=EnrollAnswer,
    status_code=201,
    summary="Enroll images of an identity",
    responses=may_answer(
        FORM,
        TooManyImages,
        Overloaded,
        InvalidName,
        InvalidMetadata,
        NothingEnrolled,
        IdempotencyKeyReused,
        DeletedSince,
        ModelMismatch,
    ),
    openapi_extra=document_form(EnrollForm),
)
async def enroll(
    form: Annotated[EnrollForm, Depends(read_form(EnrollForm, max_files=MAX_FILES))],
    caller: CallerDep,
    audit: AuditDep,
    checkpoint: CheckpointDep,
    pipeline: PipelineDep,
    database: DatabaseDep,
    originals: OriginalsDep,
    metrics: MetricsDep,
    settings: SettingsDep,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="Repeating the request with the same key changes nothing."),
    ] = None,
) -> dict[str, Any]:
    """Enrolls images as references of an identity. When it has answered, they are on disk.

    Images that cannot be used are listed in `rejected`, and the others are enrolled. An image that the identity
    already has keeps its reference.
    """
    collection, identity, images = form.collection, form.identity, form.images
    caller.check(collection)
    if len(images) > settings.max_images:
        raise TooManyImages(f"{len(images)} images in one request; at most {settings.max_images} are allowed.")
    metadata = parse_metadata(form.metadata)
    if idempotency_key is not None:
        # Each caller has its own: nobody learns which ones others have used.
        idempotency_key = f"{caller.name} {idempotency_key}"

    def embed_or_recall() -> tuple[str, dict[str, Any] | list[EmbeddingsF32 | ImageError]]:
        """The request's fingerprint, and the answer that it had before or the result for each image."""
        fingerprint = ""
        if idempotency_key is not None:
            fingerprint = _fingerprint(collection, identity, metadata, images)
            with database.read() as connection:
                before = recall_answer(connection, idempotency_key, fingerprint)
            if before is not None:
                return fingerprint, before
        return fingerprint, pipeline.embed_each(checkpoint.encoder, [upload.data for upload in images])

    fingerprint, results = await pipeline.turn(embed_or_recall)
    if isinstance(results, dict):
        return results

    def store() -> dict[str, Any]:
        accepted, rejected = _sorted(images, results, originals)

        def write(connection: sa.Connection) -> dict[str, Any]:
            if idempotency_key is not None:
                # Again, now that nobody else writes: the same request may have come twice at once.
                claim_key(connection, idempotency_key)
                before = recall_answer(connection, idempotency_key, fingerprint)
                if before is not None:
                    return before
            references = enroll_images(connection, collection, identity, metadata, accepted, checkpoint.gallery_encoder)
            answer = {
                "collection": collection,
                "identity": identity,
                "references": references,
                "rejected": rejected,
            }
            if idempotency_key is not None:
                remember_answer(connection, idempotency_key, fingerprint, answer)
            return answer

        with metrics.stage("commit"):
            answer = database.write(write)
        ids = [entry["reference_id"] for entry in answer["references"]]
        audit.note("enroll", collection=collection, identity=identity, references=ids)
        return answer

    # Not in the turn: the database, or a bucket, may take its time.
    return await run_in_threadpool(store)


def _sorted(
    images: list[Upload], results: list[EmbeddingsF32 | ImageError], originals: Originals
) -> tuple[list[NewReference], list[dict[str, str]]]:
    """What will be enrolled, with its image kept if images are, and what is rejected.

    Raises `NothingEnrolled` where every image is rejected.
    """
    accepted: list[NewReference] = []
    rejected: list[dict[str, str]] = []
    for upload, result in zip(images, results, strict=True):
        name = printable_filename(upload.filename)
        if isinstance(result, ImageError):
            rejected.append({"filename": name, "code": result.code, "detail": result.detail})
        else:
            kept = originals.keep(upload.data) if originals.keeps else None
            accepted.append(NewReference(name, hashlib.sha256(upload.data).hexdigest(), result, kept))
    if not accepted:
        reasons = "; ".join(f"{entry['filename']}: {entry['detail']}" for entry in rejected[:3])
        raise NothingEnrolled(f"No image could be used, so nothing was enrolled. {reasons}", rejected=rejected)
    return accepted, rejected


def _fingerprint(collection: str, identity: str, metadata: dict[str, Any], images: list[Upload]) -> str:
    """A hash of what makes two requests the same: names, metadata and the bytes of the images."""
    digest = hashlib.sha256(json.dumps([collection, identity, metadata], sort_keys=True).encode())
    for upload in images:
        digest.update(hashlib.sha256(upload.data).digest())
    return digest.hexdigest()
