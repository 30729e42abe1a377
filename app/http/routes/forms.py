"""Multipart bodies to what a route asks for: each form is a model, and is read, checked and documented by it.

FastAPI can take forms apart too. It looks at the declaration of every field anew for each request, which took a
quarter of what Python does for one.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError, WithJsonSchema
from starlette.requests import ClientDisconnect

from app.checkpoint.matching import MAX_DISTANCE
from app.errors import InvalidRequest, MalformedRequest
from app.gallery.names import NAME_RULE
from app.http.routes.multipart import Part, Parts, Upload
from app.http.routes.schemas import Name
from app.image.policy import SERVED

MEDIA_TYPE = "multipart/form-data"
MAX_FIELDS = 16
IMAGE = f"{SERVED}; bytes decide, not the name."
File = Annotated[InstanceOf[Upload], WithJsonSchema({"type": "string", "format": "binary"})]
Rate = Annotated[float, Field(gt=0, lt=1)]


class Form(BaseModel):
    """What a multipart body may hold. A list takes several files of that name."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class InCollection(Form):
    collection: Name = Field("default", description=f"Collection: {NAME_RULE}.")


class WithThreshold(Form):
    threshold: float | None = Field(
        None, ge=0, le=MAX_DISTANCE, description="A threshold of your own, instead of the checkpoint's."
    )


class VerifyForm(InCollection, WithThreshold):
    image_a: File = Field(description=IMAGE)
    image_b: File | None = Field(None, description="The other image; or give `identity`.")
    identity: Name | None = Field(None, description="An enrolled identity that `image_a` claims to show.")
    target_fmr: Rate | None = Field(
        None, description="A false-match rate to keep, instead of a threshold; refused if unsupported."
    )
    inconclusive_fmr: Rate | None = Field(
        None,
        description="A larger false-match rate: distances between its threshold and the other are `inconclusive`.",
    )
    prior: Rate = Field(0.5, description="How likely `similar` is before looking.")


class EmbedForm(Form):
    image: File = Field(description=IMAGE)


class EnrollForm(InCollection):
    identity: Name = Field(description=f"Identity: {NAME_RULE}.")
    images: list[File] = Field(description="One image or more of the identity.")
    metadata: str | None = Field(
        None, description="A JSON object, merged into what the identity has; null removes a key."
    )


class SearchForm(InCollection, WithThreshold):
    image: File = Field(description="The probe.")
    top_k: int = Field(5, ge=1, le=1000, description="How many identities to answer.")
    filter: str | None = Field(
        None,
        description="Search only identities with this metadata: a JSON object of values, or of lists of values of "
        'which one must match, such as {"script": ["Tibetan", "Kannada"], "year": 2015}.',
    )
    target_fpir: Rate | None = Field(
        None,
        description="Of searches for somebody who is not enrolled, the share that may find somebody: the threshold "
        "follows from it and from the gallery's size.",
    )


Sent = TypeVar("Sent", bound=Form)


def read_form(form: type[Sent], *, max_files: int = 4) -> Callable[[Request], Awaitable[Sent]]:
    """A dependency: the request's body as this form.

    Raises `MalformedRequest` for a body that is none, `RequestValidationError` for values that don't fit, and
    `InvalidRequest` for what parsers pass over in silence: misspelt, repeated and empty fields. An empty `collection`
    would become the default one, a `treshold` the checkpoint's own.
    """
    several = {name for name, field in form.model_fields.items() if field.annotation == list[File]}

    async def dependency(request: Request) -> Sent:
        content_type = request.headers.get("content-type", "")
        parts: list[Part] = []
        if content_type.lower().startswith(MEDIA_TYPE):
            try:
                parts = await Parts(content_type, max_files=max_files, max_fields=MAX_FIELDS).read(request.stream())
            except ClientDisconnect:
                raise MalformedRequest("The connection ended before the request did.") from None
        return _checked(form, parts, several)

    return dependency


def _checked(form: type[Sent], parts: list[Part], several: set[str]) -> Sent:
    values: dict[str, Any] = {}
    for name, value in parts:
        if name not in form.model_fields:
            raise InvalidRequest(f"There is no field {name[:40]!r} here. Fields: {', '.join(form.model_fields)}.")
        if value == "":
            raise InvalidRequest(f"`{name}` is empty. Give it a value or leave it out.")
        if name in several:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise InvalidRequest(f"`{name}` was given {sum(name == one for one, _ in parts)} times; give it once.")
        else:
            values[name] = value
    try:
        return form.model_validate(values)
    except ValidationError as problem:
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in problem.errors()]) from None


def document_form(form: type[Form]) -> dict[str, Any]:
    """What the OpenAPI document says of a route that takes this form."""
    return {"requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": form.model_json_schema()}}}}
