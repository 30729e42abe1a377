"""The command `diptych`: exit 0 on success, 2 for a mistake of the caller's, in one line and without a traceback.

Nothing heavy is imported here, nor by the modules of the commands: each command imports what it needs when it runs.
"""

import sys
import warnings
from importlib.metadata import entry_points
from typing import Any

import click

from app.errors import DiptychError, GalleryError, RequestError, UsageError
from app.maintenance import commands
from app.maintenance.keys import keys


class Commands(click.Group):
    """The commands of the service, and those of training, which are found where they are installed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *entry_points(group="diptych.commands").names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for entry in entry_points(group="diptych.commands", name=cmd_name):
            command: click.Command = entry.load()
            return command
        return super().get_command(ctx, cmd_name)


class ServeCommand(click.Command):
    """`serve`, whose help lists every setting."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from app.settings import Settings

        fields = Settings.model_fields.items()
        with formatter.section("Settings, from the environment"):
            formatter.write_dl([(f"DIPTYCH_{name.upper()}", field.description or "") for name, field in fields])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="diptych")
def cli() -> None:
    """Says whether two images show the same thing, at an error rate you choose.

    \b
    diptych serve                                serve the bundled checkpoint
    diptych train photos/ --output runs/mine     train an encoder on your own images
    diptych evaluate runs/mine --data others/    measure its error rates on other images
    diptych serve --checkpoint runs/mine         serve your checkpoint
    diptych import photos/                       enroll a whole folder tree
    diptych report                               find weak spots of what is enrolled
    diptych backup backups/today                 back up the gallery while it is in use
    """


@cli.command(cls=ServeCommand)
@click.option("--host", help="Address to listen on [env DIPTYCH_HOST; default 127.0.0.1].")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on [env DIPTYCH_PORT; default 8000].")
@commands.data_dir_option
@commands.checkpoint_option
def serve(**options: Any) -> None:
    """Serve verification over HTTP. All other settings come from the environment."""
    from app.main import run

    run(**{name: value for name, value in options.items() if value is not None})


for command in (
    commands.import_,
    commands.export,
    commands.backup,
    commands.restore,
    commands.migrate,
    commands.report,
    keys,
):
    cli.add_command(command)


def main() -> None:
    # Pillow's warning about large images. Diptych has limits of its own, which say what is allowed.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit", category=RuntimeWarning)
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
