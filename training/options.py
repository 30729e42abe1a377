"""What the commands of training share: types of options, and a recipe's choices as options.

A command is loaded to show its line in a list, so nothing heavy is imported here. A recipe's options are made where
the command runs or shows its help.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click

from app.errors import UsageError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

RuntimeName = Literal["onnxruntime", "openvino", "openvino-bf16"]
FOLDER = click.Path(path_type=Path)

quiet_option = click.option("--quiet", is_flag=True, help="Show no progress.")
runtime_option = click.option(
    "--runtime",
    type=click.Choice(get_args(RuntimeName)),
    default="onnxruntime",
    show_default=True,
    envvar="DIPTYCH_RUNTIME",
    help="Runtime that computes the embeddings. Choose the one that the service will use.",
)


@contextmanager
def training_packages(command: str) -> Iterator[None]:
    """Around imports. Raises `UsageError` where a package for training is not installed."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if str(missing.name).split(".")[0] in ("app", "training"):
            raise
        raise UsageError(
            f"`diptych {command}` needs packages that are not installed ({missing.name} is missing). Install them with "
            "`make env-training`, or install diptych[training]."
        ) from None


class Finite(click.FloatRange):
    """A range of real numbers. NaN and infinity are outside of it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class NumberOr(Finite):
    """A real number, or one of some words."""

    def __init__(self, words: tuple[str, ...], **limits: Any) -> None:
        super().__init__(**limits)
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in self.words else super().convert(value, param, ctx)


class CommandWithRecipe(click.Command):
    """A command with an option for each choice of a recipe, which its help lists by section."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *_recipe_options()]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(_section(str(parameter.name)), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


@cache
def _recipe_options() -> tuple[click.Option, ...]:
    """One option for each choice. It is None where it is not given, and the recipe decides."""
    from training.recipe import Recipe

    options = []
    for name, field in Recipe.model_fields.items():
        flag = "--" + name.replace("_", "-")
        text = field.description or ""
        default = "derived from your images" if field.default is None and name != "weights" else field.default
        if default is not None and default is not False:
            text = f"{text}  [default: {default}]"
        kind = _click_type(field)
        if kind is None:
            options.append(click.Option([f"{flag}/--no-{flag[2:]}", name], default=None, help=text))
        else:
            metavar = "N" if isinstance(kind, click.IntRange) else "X" if isinstance(kind, Finite) else None
            options.append(click.Option([flag, name], type=kind, metavar=metavar, default=None, help=text))
    return tuple(options)


def _section(name: str) -> str:
    from training.recipe import Recipe

    field = Recipe.model_fields.get(name)
    extra = field.json_schema_extra if field is not None else None
    return str(extra["section"]) if isinstance(extra, dict) else "Options"


def _click_type(field: FieldInfo) -> click.ParamType[Any] | None:
    """The click type for a field; None for a flag."""
    from annotated_types import Ge, Gt, Le, Lt
    from pydantic.fields import FieldInfo

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
