"""The HTTP interface, from the OpenAPI document that the service answers itself."""

import json
import re
from typing import Any

from app.main import create_app
from app.settings import Settings
from docs.generate.markdown import cell, paragraphs, table

METHODS = ("get", "post", "patch", "put", "delete")


def kind(schema: dict[str, Any]) -> str:
    """A schema in a few words, such as `number or null`."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return "[" + ", ".join(kind(part) for part in schema["prefixItems"]) + "]"
        return f"list of {kind(schema.get('items', {}))}"
    if schema.get("format") == "binary" or "contentMediaType" in schema:
        return "file"
    return str(schema.get("type", "any"))


def fields(schema: dict[str, Any]) -> str:
    """A table of an object's fields."""
    rows = []
    for name, field in schema.get("properties", {}).items():
        words = cell(field.get("description", ""))
        if name in schema.get("required", ()) and "default" not in field:
            needed = "required"
        else:
            default = field.get("default")
            needed = "" if default is None else f"default `{str(default).lower() if default is False else default}`"
        rows.append((f"`{name}`", kind(field), needed, words))
    return table(("field", "type", "", "meaning"), rows)


def answered(schema: dict[str, Any]) -> str:
    """A table of an answer's fields: all of them are always there."""
    rows = [(f"`{name}`", kind(field), cell(field.get("description", ""))) for name, field in schema.items()]
    return table(("field", "type", "meaning"), rows)


def example_of(content: dict[str, Any], document: dict[str, Any]) -> str:
    """The first example of an answer, as JSON; empty where the document has none."""
    schema = content.get("schema", {})
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    named = [example.get("value") for example in content.get("examples", {}).values()]
    examples = [content["example"]] if "example" in content else named or schema.get("examples", [])
    if not examples:
        return ""
    text = json.dumps(examples[0], indent=2, ensure_ascii=False)
    # Lists of plain values stay on one line.
    text = re.sub(
        r"\[[^\[\]{}]*\]", lambda found: " ".join(found.group().split()).replace("[ ", "[").replace(" ]", "]"), text
    )
    return f"```json\n{text}\n```"


def http() -> str:
    """A section for each endpoint, then one for each kind of answer."""
    document = create_app(Settings()).openapi()
    parts = []
    for path, methods in document["paths"].items():
        for method in (name for name in METHODS if name in methods):
            call = methods[method]
            parts.append(f"## {method.upper()} {path} {{ #{call['operationId']} }}")
            parts.append(paragraphs(call.get("description", "")))
            rows = [
                (f"`{p['name']}`", p["in"], kind(p["schema"]), cell(p.get("description", "")))
                for p in call.get("parameters", ())
                if p["in"] != "path"
            ]
            if rows:
                parts.append(table(("parameter", "in", "type", "meaning"), rows))
            for media, content in call.get("requestBody", {}).get("content", {}).items():
                schema = content["schema"]
                if "$ref" in schema:
                    schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
                parts.append(f"Takes `{media}`:\n\n{fields(schema)}")
            for status, response in call["responses"].items():
                if status.startswith("2"):
                    for content in response.get("content", {}).values():
                        parts.append(f"Answers {status}: {kind(content.get('schema', {}))}")
                        parts += [example_of(content, document)] if example_of(content, document) else []
                    if not response.get("content"):
                        parts.append(f"Answers {status}, without a body.")
    parts.append("## Objects in answers\n\nEach field is always present; it is `null` where there is nothing to say.")
    for name, schema in document["components"]["schemas"].items():
        if "properties" in schema:
            words = paragraphs(schema.get("description", ""))
            parts.append(f"### {name} {{ #{name.lower()} }}\n\n{words}\n\n{answered(schema['properties'])}")
    return "\n\n".join(part for part in parts if part)


def endpoints() -> set[tuple[str, str]]:
    """Method and path of each endpoint."""
    paths = create_app(Settings()).openapi()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods if method in METHODS}
