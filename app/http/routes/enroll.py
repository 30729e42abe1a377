"""POST /enroll: remember this one."""

import hashlib
import json
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Header
from fastapi.concurrency import run_in_threadpool

from app.arrays import EmbeddingsF32
from app.errors import ImageError, NothingEnrolled, TooManyImages
from app.gallery.idempotency import claim_key, recall_answer, remember_answer
from app.gallery.names import parse_metadata, printable_filename
from app.gallery.originals import Originals
from app.gallery.references import NewReference, enroll_images
from app.http.routes.forms import EnrollForm, documented, read
from app.http.routes.multipart import Upload
from app.http.routes.schemas import EnrollAnswer
from app.serving.resources import AuditDep, CallerDep, ResourcesDep

router = APIRouter(tags=["gallery"])
# More are refused by number (`too_many_images`); beyond these nobody counts.
MAX_FILES = 1001


@router.post("/enroll", response_model=EnrollAnswer, status_code=201, openapi_extra=documented(EnrollForm))
async def enroll(
    resources: ResourcesDep,
    caller: CallerDep,
    audit: AuditDep,
    form: Annotated[EnrollForm, Depends(read(EnrollForm, max_files=MAX_FILES))],
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="Repeats under the same key give the same answer."),
    ] = None,
) -> dict[str, Any]:
    """Enrolls images as references of an identity. When it has answered, they are on disk.

    Images that can't be used are named in `rejected`; the others are enrolled. An image that the identity
    holds already keeps the reference that it has.
    """
    collection, identity, images = form.collection, form.identity, form.images
    caller.check(collection)
    most = resources.settings.max_images
    if len(images) > most:
        raise TooManyImages(f"{len(images)} images in one request; at most {most} are allowed.")
    database, pipeline = resources.database, resources.pipeline
    serving = resources.keeper.serving  # once: another may take its place meanwhile
    about = parse_metadata(form.metadata)
    if idempotency_key is not None:
        # Each caller has its own: what one has used is nobody else's business.
        idempotency_key = f"{caller.name} {idempotency_key}"

    def look() -> tuple[str, dict[str, Any] | list[EmbeddingsF32 | ImageError]]:
        """The request's fingerprint; the answer that it had before, or what became of each image."""
        fingerprint = ""
        if idempotency_key is not None:
            fingerprint = _fingerprint(collection, identity, about, images)
            with database.read() as connection:
                before = recall_answer(connection, idempotency_key, fingerprint)
            if before is not None:
                return fingerprint, before
        return fingerprint, pipeline.embed_each(serving.encoder, images)

    fingerprint, found = await pipeline.turn(look)
    if isinstance(found, dict):
        return found

    def store() -> dict[str, Any]:
        accepted, rejected = _sorted(images, found, resources.originals)

        def work(connection: sa.Connection) -> dict[str, Any]:
            if idempotency_key is not None:
                # Again, now alone: the same request may have come twice at once.
                claim_key(connection, idempotency_key)
                before = recall_answer(connection, idempotency_key, fingerprint)
                if before is not None:
                    return before
            references = enroll_images(connection, collection, identity, about, accepted, serving.loaded)
            answer = {
                "collection": collection,
                "identity": identity,
                "references": references,
                "rejected": rejected,
            }
            if idempotency_key is not None:
                remember_answer(connection, idempotency_key, fingerprint, answer)
            return answer

        with resources.metrics.stage("commit"):
            answer = database.write(work)
        ids = [entry["reference_id"] for entry in answer["references"]]
        audit.note("enroll", collection=collection, identity=identity, references=ids)
        return answer

    # Not in the turn: the database, or a bucket, may take its time.
    return await run_in_threadpool(store)


def _sorted(
    images: list[Upload], results: list[EmbeddingsF32 | ImageError], originals: Originals
) -> tuple[list[NewReference], list[dict[str, str]]]:
    """What will be enrolled, kept if images are; and what is rejected. Raises `NothingEnrolled` if all of it is."""
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
    """What makes two requests the same: names, metadata and the bytes of the images."""
    digest = hashlib.sha256(json.dumps([collection, identity, metadata], sort_keys=True).encode())
    for upload in images:
        digest.update(hashlib.sha256(upload.data).digest())
    return digest.hexdigest()
