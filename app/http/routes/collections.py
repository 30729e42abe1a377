"""What is enrolled: list, show, change, delete."""

from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Query, Request

from app.errors import (
    IdentityExists,
    InvalidMetadata,
    InvalidName,
    InvalidRequest,
    RequestTooLarge,
    UnknownCollection,
    UnknownIdentity,
    UnknownReference,
    UploadTooSlow,
)
from app.gallery import collections, identities, references
from app.http.routes.dependencies import AuditDep, CallerDep, DatabaseDep, DirectRoute
from app.http.routes.responses import may_answer
from app.http.routes.schemas import (
    CollectionPath,
    CollectionsAnswer,
    IdentitiesAnswer,
    IdentityAnswer,
    IdentityChange,
    IdentityPath,
)


async def _check_collection(request: Request) -> None:
    """A key may be limited to some collections. Raises `NotAllowed`."""
    if "collection" in request.path_params:
        request.state.caller.check(request.path_params["collection"])


router = APIRouter(
    prefix="/collections", tags=["gallery"], dependencies=[Depends(_check_collection)], route_class=DirectRoute
)

IDENTITY = "/{collection}/identities/{identity}"
NAMED = (UnknownCollection, UnknownIdentity, InvalidName)


@router.get("", response_model=CollectionsAnswer, summary="List the collections", responses=may_answer())
def list_collections(database: DatabaseDep, caller: CallerDep) -> dict[str, Any]:
    """Every collection that the key may use, with its numbers of identities and references."""
    with database.read() as connection:
        entries = collections.list_collections(connection)
    return {"collections": [entry for entry in entries if caller.sees(entry["collection"])]}


@router.delete(
    "/{collection}",
    status_code=204,
    summary="Delete a collection",
    responses=may_answer(UnknownCollection, InvalidName),
)
def delete_collection(database: DatabaseDep, audit: AuditDep, collection: CollectionPath) -> None:
    """Deletes a collection and everything in it. From then on no search finds any of it."""
    database.write(lambda connection: collections.delete_collection(connection, collection))
    audit.note("delete_collection", collection=collection)


@router.get(
    "/{collection}/identities",
    response_model=IdentitiesAnswer,
    summary="List the identities of a collection",
    responses=may_answer(UnknownCollection, InvalidName, InvalidRequest),
)
def list_identities(
    database: DatabaseDep,
    collection: CollectionPath,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many identities on a page.")] = 100,
    cursor: Annotated[str | None, Query(max_length=1024, description="`next_cursor` of the previous page.")] = None,
) -> dict[str, Any]:
    """The identities of a collection, sorted by name, one page at a time."""
    with database.read() as connection:
        page, next_cursor = identities.list_identities(connection, collection, limit, cursor)
    return {"identities": page, "next_cursor": next_cursor}


@router.get(IDENTITY, response_model=IdentityAnswer, summary="Show an identity", responses=may_answer(NAMED))
def get_identity(database: DatabaseDep, collection: CollectionPath, identity: IdentityPath) -> dict[str, Any]:
    """An identity with its metadata and references."""
    with database.read() as connection:
        return identities.get_identity(connection, collection, identity)


@router.patch(
    IDENTITY,
    response_model=IdentityAnswer,
    summary="Rename an identity or change its metadata",
    responses=may_answer(NAMED, InvalidRequest, InvalidMetadata, IdentityExists, RequestTooLarge, UploadTooSlow),
)
def change_identity(
    database: DatabaseDep, audit: AuditDep, collection: CollectionPath, identity: IdentityPath, change: IdentityChange
) -> dict[str, Any]:
    """Renames an identity, merges an object into its metadata (null removes a key), or both."""
    if change.identity is None and change.metadata is None:
        raise InvalidRequest(
            "Give `identity` (a new name), `metadata` (an object to merge), or both.", title="A field is missing"
        )

    def change_and_read(connection: sa.Connection) -> dict[str, Any]:
        identities.change_identity(connection, collection, identity, change.identity, change.metadata)
        return identities.get_identity(connection, collection, change.identity or identity)

    answer = database.write(change_and_read)
    audit.note("change_identity", collection=collection, identity=identity, now=answer["identity"])
    return answer


@router.delete(IDENTITY, status_code=204, summary="Delete an identity", responses=may_answer(NAMED))
def delete_identity(database: DatabaseDep, audit: AuditDep, collection: CollectionPath, identity: IdentityPath) -> None:
    """Deletes an identity and all its references."""
    database.write(lambda connection: identities.delete_identity(connection, collection, identity))
    audit.note("delete_identity", collection=collection, identity=identity)


@router.delete(
    IDENTITY + "/references/{reference_id}",
    status_code=204,
    summary="Delete a reference",
    responses=may_answer(NAMED, UnknownReference),
)
def delete_reference(
    database: DatabaseDep, audit: AuditDep, collection: CollectionPath, identity: IdentityPath, reference_id: str
) -> None:
    """Deletes one reference. The identity stays, even if this was its last reference."""
    database.write(lambda connection: references.delete_reference(connection, collection, identity, reference_id))
    audit.note("delete_reference", collection=collection, identity=identity, reference=reference_id)
