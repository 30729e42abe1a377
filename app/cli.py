"""The command `diptych`: exit 0 on success, 2 on a mistake of the caller's, in one line and no traceback."""

import json
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
from PIL import Image

from app.errors import DiptychError, GalleryError, RequestError, UsageError
from app.maintenance import commands
from app.maintenance import keys as key_commands


class Commands(click.Group):
    """`serve`, and the commands of training, each imported only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *entry_points(group="diptych.commands").names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for entry in entry_points(group="diptych.commands", name=cmd_name):
            command: click.Command = entry.load()
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="diptych")
def cli() -> None:
    """Says whether two images show the same thing, at an error rate you choose.

    \b
    diptych serve                                the service, with the bundled checkpoint
    diptych train photos/ --output runs/mine     an encoder for your own images
    diptych evaluate runs/mine --data others/    how often it errs on images it never saw
    diptych serve --checkpoint runs/mine         the service, with yours
    diptych import photos/                       a whole folder tree into the gallery
    diptych report                               weak spots of what is enrolled
    diptych backup backups/today                 the gallery, while it is in use
    """


@cli.command()
@click.option("--host", help="Address to listen on [env DIPTYCH_HOST; default 127.0.0.1].")
@click.option("--port", type=click.IntRange(0, 65535), help="Port [env DIPTYCH_PORT; default 8000].")
@click.option("--data-dir", help="Where the gallery is kept [env DIPTYCH_DATA_DIR; default ./data].")
@click.option("--checkpoint", help="Directory or bundled name [env DIPTYCH_CHECKPOINT; default `default`].")
def serve(**options: Any) -> None:
    """Serve verification over HTTP; the other settings come from the environment (see the README)."""
    from app.main import run  # the other commands need neither FastAPI nor a gallery

    run(**{name: value for name, value in options.items() if value is not None})


@cli.command()
@click.option("--data-dir", help="Where the gallery is kept [env DIPTYCH_DATA_DIR; default ./data].")
@click.option("--checkpoint", help="Directory or bundled name [env DIPTYCH_CHECKPOINT; default `default`].")
@click.option("--target-fmr", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Threshold to judge at.")
@click.option("--output", type=click.Path(path_type=Path), help="A JSON file for what the table leaves out.")
def report(target_fmr: float | None, output: Path | None, **options: Any) -> None:
    """Find the weak spots of a gallery: what will be confused, and what looks enrolled by mistake.

    For each collection: identities whose own references are called dissimilar, pairs of identities with references
    that are called similar, and references that lie nearer to another identity than to their own. The service may run
    meanwhile; nothing enrolled is changed.
    """
    from app.maintenance.report import report_on

    if output is not None:
        output.touch()  # a place that can't be written to is better named now than after the work
    documents = report_on(target_fmr, **{name: value for name, value in options.items() if value is not None})
    if output is not None:
        output.write_text(json.dumps(documents, indent=2) + "\n")
        click.echo(f"more in {output}")


for command in (
    commands.import_,
    commands.export,
    commands.backup,
    commands.restore,
    commands.migrate,
    key_commands.keys,
):
    cli.add_command(command)


def main() -> None:
    # Sizes have limits of our own, which say what is allowed.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        status = cli.main(standalone_mode=False)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as problem:
        context = getattr(problem, "ctx", None)
        command = context.command_path if context else "diptych"
        click.echo(f"{command}: {' '.join(problem.format_message().split())} Try --help.", err=True)
        sys.exit(2)
    except UsageError as problem:
        click.echo(f"diptych: {problem.detail}", err=True)
        sys.exit(2)
    except OSError as problem:
        click.echo(f"diptych: {problem.filename or 'a file'}: {problem.strerror or problem}.", err=True)
        sys.exit(2)
    except DiptychError as problem:
        click.echo(f"diptych: {problem.title.lower()}: {problem.detail}", err=True)
        sys.exit(2 if isinstance(problem, RequestError | GalleryError) else 1)
    sys.exit(status if isinstance(status, int) else 0)
