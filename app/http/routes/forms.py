"""Multipart bodies to what a route asks for: each form is a model that reads, checks and documents it.

FastAPI can read forms too, but it examines the declaration of every field again for each request, which took a quarter
of the time that Python spends on one.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError, WithJsonSchema
from starlette.requests import ClientDisconnect

from app.checkpoint.matching import MAX_DISTANCE
from app.errors import InvalidRequest, MalformedRequest
from app.gallery.names import NAME_RULE
from app.http.routes.multipart import Part, Parts, Upload
from app.http.routes.schemas import Name
from app.http.validation import allowed_values, describe_errors
from app.image.policy import SERVED

MEDIA_TYPE = "multipart/form-data"
MAX_FIELDS = 16
IMAGE = f"{SERVED}. The bytes decide the format, not the file name."
File = Annotated[InstanceOf[Upload], WithJsonSchema({"type": "string", "format": "binary"})]
Rate = Annotated[float, Field(gt=0, lt=1)]


class Form(BaseModel):
    """What a multipart body may hold. A list takes several files of that name."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class InCollection(Form):
    collection: Name = Field("default", description=f"Name of the collection: {NAME_RULE}.")


class WithThreshold(Form):
    threshold: float | None = Field(
        None, ge=0, le=MAX_DISTANCE, description="The largest distance that is `similar`, instead of the checkpoint's."
    )


class VerifyForm(InCollection, WithThreshold):
    image_a: File = Field(description=IMAGE)
    image_b: File | None = Field(None, description="The image to compare with. Give either this or `identity`.")
    identity: Name | None = Field(None, description="The enrolled identity that `image_a` claims to show.")
    target_fmr: Rate | None = Field(
        None,
        description="The false-match rate that the threshold is chosen for. Give either this or `threshold`. A rate "
        "that the calibration does not support is refused, and the answer names the smallest supported rate.",
    )
    inconclusive_fmr: Rate | None = Field(
        None,
        description="A second, larger false-match rate. Distances between the two thresholds are `inconclusive`.",
    )
    prior: Rate = Field(
        0.5,
        description="The probability, before comparing them, that both images show the same thing. 0.5: same and "
        "different are equally likely; 0.01: 1 in 100 of your pairs is the same.",
    )


class EmbedForm(Form):
    image: File = Field(description=IMAGE)


class EnrollForm(InCollection):
    identity: Name = Field(description=f"Name of the identity: {NAME_RULE}.")
    images: list[File] = Field(description="One or more images of the identity.")
    metadata: str | None = Field(
        None, description="A JSON object, merged into the metadata of the identity; null removes a key."
    )


class SearchForm(InCollection, WithThreshold):
    image: File = Field(description="The image to search for.")
    top_k: int = Field(5, ge=1, le=1000, description="Largest number of identities in the answer.")
    filter: str | None = Field(
        None,
        description="Search only identities with this metadata: a JSON object with a value, or a list of allowed "
        'values, for each key, such as {"script": ["Tibetan", "Kannada"], "year": 2015}.',
    )
    target_fpir: Rate | None = Field(
        None,
        description="Of the searches for something that is not enrolled, the share that may find an identity. The "
        "threshold is chosen for this rate and the size of the gallery. Give either this or `threshold`.",
    )


Sent = TypeVar("Sent", bound=Form)


def read_form(form: type[Sent], *, max_files: int = 4) -> Callable[[Request], Awaitable[Sent]]:
    """A dependency: the request's body as this form.

    Raises `MalformedRequest` for a body that is not multipart/form-data, and `InvalidRequest` for values that are not
    allowed and for what parsers ignore: misspelt, repeated and empty fields. Ignored, a `treshold` would become the
    checkpoint's own.
    """
    an_image = next(name for name in form.model_fields if name.startswith("image"))
    several = {name for name, field in form.model_fields.items() if field.annotation == list[File]}
    allowed = {name: allowed_values(schema) for name, schema in form.model_json_schema()["properties"].items()}

    async def dependency(request: Request) -> Sent:
        content_type = request.headers.get("content-type", "")
        parts: list[Part] = []
        if content_type.lower().startswith(MEDIA_TYPE):
            try:
                parts = await Parts(content_type, max_files=max_files, max_fields=MAX_FIELDS).read(request.stream())
            except ClientDisconnect:
                raise MalformedRequest("The connection ended before the request did.") from None
        elif content_type:
            raise InvalidRequest(
                f"Send images and fields as multipart/form-data; with curl: -F {an_image}=@path.",
                title="The body is not multipart/form-data",
            )
        return _checked(form, parts, several, allowed)

    return dependency


def _checked(form: type[Sent], parts: list[Part], several: set[str], allowed: dict[str, str | None]) -> Sent:
    values: dict[str, Any] = {}
    for name, value in parts:
        if name not in form.model_fields:
            fields = ", ".join(form.model_fields)
            raise InvalidRequest(
                f"There is no field {name[:40]!r} here. Fields: {fields}.", title="There is no such field"
            )
        if value == "":
            raise InvalidRequest(f"`{name}` is empty. Give it a value or leave it out.", title="A field is empty")
        if name in several:
            values.setdefault(name, []).append(value)
        elif name in values:
            times = sum(name == given for given, _ in parts)
            raise InvalidRequest(f"`{name}` was given {times} times. Give it once.", title="A field is repeated")
        else:
            values[name] = value
    try:
        return form.model_validate(values)
    except ValidationError as problem:
        errors = [
            {
                **error,
                "loc": ("body", *error["loc"]),
                "ctx": {**error.get("ctx", {}), "allowed": allowed.get(str(error["loc"][0]))},
            }
            for error in problem.errors()
        ]
        raise describe_errors(errors) from None


def document_form(form: type[Form]) -> dict[str, Any]:
    """`openapi_extra` of a route that takes this form."""
    return {"requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": form.model_json_schema()}}}}
