"""The commands, their arguments and options, as `--help` has them."""

import inspect
from collections.abc import Iterator

import click

from app.cli import cli
from docs.generate.markdown import cell, paragraphs, table
from training.recipe import Recipe


def walk(group: click.Group, context: click.Context) -> Iterator[tuple[click.Context, click.Command]]:
    """Every command below the group, in the order of `--help`."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            raise SystemExit(f"the command {name} is listed and can't be loaded")
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from walk(command, inner)
        else:
            yield inner, command


def every_command() -> Iterator[tuple[click.Context, click.Command]]:
    return walk(cli, click.Context(cli, info_name="diptych"))


def help_text(command: click.Command) -> str:
    """The command's help. Parts that are marked to keep their lines become code where they show commands."""
    parts = []
    for part in inspect.cleandoc(command.help or "").replace("\b\n", "\b").split("\n\n"):
        lines = part.lstrip("\b").splitlines()
        code = [line.strip() for line in lines if "diptych " in line] if part.startswith("\b") else []
        prose = "\n".join(line for line in lines if line.strip() not in code)
        parts += [paragraphs(prose)] if prose.strip() else []
        parts += ["```text\n" + "\n".join(code) + "\n```"] if code else []
    return "\n\n".join(parts)


def section_of(parameter: click.Parameter) -> str:
    """The heading for an option: those of training's recipe have one each."""
    field = Recipe.model_fields.get(str(parameter.name))
    extra = field.json_schema_extra if field is not None else None
    return str(extra["section"]) if isinstance(extra, dict) else ""


def commands() -> str:
    """A section for each command."""
    parts = []
    for context, command in every_command():
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        parts.append(f"## {context.command_path}\n\n```text\n{usage}\n```\n\n{help_text(command)}\n")
        sections: dict[str, list[tuple[str, str]]] = {}
        is_training = command.name == "train"
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
            if record is not None and "--help" not in parameter.opts:
                rows = sections.setdefault(section_of(parameter) if is_training else "", [])
                rows.append((f"`{record[0].replace('|', ', ')}`", cell(record[1])))
        for title, rows in sections.items():
            heading = f"### {title}\n\n" if title else ""
            parts.append(heading + table(("option", "meaning"), rows))
    return "\n".join(parts)
