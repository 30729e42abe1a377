"""A recipe's choices as options of the command line: one source for names, limits and words."""

import math
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from training.recipe import Recipe


class Finite(click.FloatRange):
    """A range of real numbers: what is no number, or endless, is outside of it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


class NumberOr(Finite):
    """A real number, or one of some words."""

    def __init__(self, words: tuple[str, ...], **limits: Any) -> None:
        super().__init__(**limits)
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in self.words else super().convert(value, param, ctx)


def _kind(field: FieldInfo) -> Any:
    """What click calls the field's type; a flag has none."""
    annotation, metadata = field.annotation, list(field.metadata)
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if get_origin(annotation) in (Union, UnionType):
        annotation = parts[0]
    if get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        metadata += [limit for item in inner for limit in (item.metadata if isinstance(item, FieldInfo) else [item])]
    words = tuple(word for part in parts[1:] if get_origin(part) is Literal for word in get_args(part))
    limits: dict[str, Any] = {}
    for limit in metadata:
        if isinstance(limit, Ge | Gt):
            limits |= {"min": limit.ge if isinstance(limit, Ge) else limit.gt, "min_open": isinstance(limit, Gt)}
        if isinstance(limit, Le | Lt):
            limits |= {"max": limit.le if isinstance(limit, Le) else limit.lt, "max_open": isinstance(limit, Lt)}
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    if annotation is bool:
        return None
    if annotation is int:
        return click.IntRange(**limits)
    if annotation is float:
        return NumberOr(words, **limits) if words else Finite(**limits)
    return click.STRING


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option for each choice of a recipe. What is not given, the recipe decides."""
    for name, field in reversed(Recipe.model_fields.items()):
        flag = "--" + name.replace("_", "-")
        words = field.description or ""
        default = "read off the images" if field.default is None and name != "weights" else field.default
        if default is not None and default is not False:
            words = f"{words}  [default: {default}]"
        kind = _kind(field)
        if kind is None:
            command = click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=words)(command)
        else:
            metavar = "N" if isinstance(kind, click.IntRange) else "X" if isinstance(kind, Finite) else None
            command = click.option(flag, name, type=kind, metavar=metavar, default=None, help=words)(command)
    return command


class WithSections(click.Command):
    """A command whose help lists a recipe's choices by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            field = Recipe.model_fields.get(str(parameter.name))
            extra = field.json_schema_extra if field is not None else None
            section = str(extra["section"]) if isinstance(extra, dict) else "Options"
            if record is not None:
                sections.setdefault(section, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
