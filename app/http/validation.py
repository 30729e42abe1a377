"""What pydantic found wrong with a request, in sentences that name the field, what was given and what is allowed."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.errors import InvalidRequest

SHOWN_CHARACTERS, SHOWN_ERRORS, LISTED_ERRORS = 40, 5, 20
# The constraints of pydantic's errors, in the order in which they are said.
BOUNDS = {
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "string_too_short": "at least {min_length} character(s) long",
    "string_too_long": "at most {max_length} characters long",
}
KINDS = {"float": "a number", "int": "a whole number", "string": "text", "dict": "a JSON object"}
JSON_BODY = 'Send a JSON object: {"identity": "new name"}, with the header Content-Type: application/json.'


def describe_errors(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The problem of a request whose fields pydantic refused: all of them, in order."""
    if any(error["type"] == "json_invalid" for error in errors):
        return InvalidRequest("The body is not valid JSON.", title="The body is not valid JSON")
    if any(len(error["loc"]) == 1 and error["loc"][0] == "body" for error in errors):
        return InvalidRequest(JSON_BODY, title="The body is not a JSON object")
    found = [{"field": field_of(error), "message": sentence(error)} for error in errors]
    title = {"title": "A field is missing"} if all(error["type"] == "missing" for error in errors) else {}
    detail = " ".join(entry["message"] for entry in found[:SHOWN_ERRORS])
    return InvalidRequest(detail, errors=found[:LISTED_ERRORS], **title)


def field_of(error: Mapping[str, Any]) -> str:
    """`threshold`, `metadata.year`; of an image in a list the list."""
    parts = error["loc"][1:] if error["type"] != "is_instance_of" else error["loc"][1:2]
    return ".".join(str(part) for part in parts)


def sentence(error: Mapping[str, Any]) -> str:
    """What is wrong with one field, and what is allowed."""
    field, kind = field_of(error), str(error["type"])
    if kind == "missing":
        return f"`{field}` is missing."
    if kind == "is_instance_of":
        return f"`{field}` must be a file; with curl: -F {field}=@path."
    if kind == "extra_forbidden":
        return f"There is no field {field[:SHOWN_CHARACTERS]!r} here."
    allowed = error.get("ctx", {}).get("allowed")
    if allowed is None and kind in BOUNDS:
        allowed = BOUNDS[kind].format(**error["ctx"])
    if allowed is None:
        allowed = KINDS.get(kind.partition("_")[0])
    given = error.get("input")
    got = f", not {str(given)[:SHOWN_CHARACTERS]!r}" if isinstance(given, str | int | float) else ""
    if allowed is None:
        return f"`{field}` is not allowed here{got}: {error['msg']}."
    return f"`{field}` must be {allowed}{got}."


def allowed_values(schema: Mapping[str, Any]) -> str | None:
    """What a field's JSON schema allows, in words; None for what is no number.

    >>> allowed_values({"type": "number", "minimum": 0, "maximum": 2})
    'a number from 0 to 2'
    >>> allowed_values({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, {"type": "null"}]})
    'a number greater than 0 and less than 1'
    """
    for option in schema.get("anyOf", [schema]):
        if option.get("type") not in ("number", "integer"):
            continue
        kind = "a number" if option["type"] == "number" else "a whole number"
        if "minimum" in option and "maximum" in option:
            return f"{kind} from {option['minimum']:g} to {option['maximum']:g}"
        return f"{kind} greater than {option['exclusiveMinimum']:g} and less than {option['exclusiveMaximum']:g}"
    return None
