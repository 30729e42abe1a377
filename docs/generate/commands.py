"""The commands, their arguments and options, as `--help` has them."""

from collections.abc import Iterator

import click

from app.cli import cli
from docs.generate.markdown import cell, paragraphs, table


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
    """The command's help. Parts that the help marks as they are (`\\b`) become code where they show commands."""
    parts = []
    for part in (command.help or "").replace("\b\n", "\b").split("\n\n"):
        if not part.startswith("\b"):
            parts.append(paragraphs(part))
        elif "diptych " in part:
            lines = part[1:].splitlines()
            code = [line for line in lines if "diptych " in line]
            prose = " ".join(line for line in lines if "diptych " not in line)
            parts += [paragraphs(prose)] if prose else []
            parts.append("```text\n" + "\n".join(line.strip() for line in code) + "\n```")
        else:
            parts.append(paragraphs(part[1:]))
    return "\n\n".join(parts)


def commands() -> str:
    """A section for each command."""
    parts = []
    for context, command in every_command():
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        rows = []
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
            if record is not None:
                rows.append((f"`{record[0].replace('|', ', ')}`", cell(record[1])))
        parts.append(
            f"## diptych {context.command_path.removeprefix('diptych ')}\n\n```text\n{usage}\n```\n\n"
            f"{help_text(command)}\n\n{table(('option', 'meaning'), rows)}"
        )
    return "\n".join(parts)
