"""The commands that maintain a gallery; `cli` lists them. Each imports what it needs when it runs."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.errors import ModelMismatch, UsageError

if TYPE_CHECKING:
    from app.settings import Settings

EXISTING = click.Path(exists=True, path_type=Path)

data_dir_option = click.option("--data-dir", help="Directory of the gallery [env DIPTYCH_DATA_DIR; default ./data].")
checkpoint_option = click.option(
    "--checkpoint",
    help="Checkpoint: a directory or a bundled name [env DIPTYCH_CHECKPOINT; default `default`].",
)
_quiet = click.option("--quiet", is_flag=True, help="No progress bar.")


def settings_of(**given: Any) -> Settings:
    """Settings from the environment, overridden by options. Raises `UsageError` for one that is not valid."""
    from app.settings import read_settings

    return read_settings(**{name: value for name, value in given.items() if value is not None})


@contextmanager
def open_gallery(settings: Settings, *, existing: bool = True) -> Iterator[Any]:
    """The gallery that the settings name. Raises `UsageError` where it should be `existing` and is not."""
    from app.database.open import open_database
    from app.database.sqlite import database_exists

    if existing and not settings.is_postgresql and not database_exists(settings.sqlite_path):
        raise UsageError(f"There is no gallery {settings.sqlite_path}. Give its directory with --data-dir.")
    database = open_database(settings, hurried=False)
    try:
        yield database
    finally:
        database.close()


def _advises_on_checkpoint(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except ModelMismatch as mismatch:
            raise UsageError(f"{mismatch.detail} Give its checkpoint with --checkpoint.") from None

    return wrapped


@click.command("import", short_help="Enroll a folder tree, or an export.")
@click.argument("source", metavar="DIR|FILE", type=EXISTING)
@click.option("--collection", help="Collection to import a folder into [default: default].")
@data_dir_option
@checkpoint_option
@_quiet
@_advises_on_checkpoint
def import_(source: Path, collection: str | None, quiet: bool, **options: Any) -> None:
    """Enroll a folder tree, or a file that `diptych export` wrote. The service may be running.

    In a folder tree, every folder that holds images is one identity. Its name is the folder's path with `:` between the
    parts. After an interruption, run the same command again: images that are already enrolled are skipped.
    """
    from app.checkpoint.bulk import threads
    from app.checkpoint.encoder import Encoder
    from app.checkpoint.store import load_checkpoint
    from app.gallery.encoders import Loaded
    from app.gallery.names import check_name
    from app.gallery.originals import Originals
    from app.maintenance.import_folder import SHOWN, import_folder
    from app.maintenance.import_jsonl import import_export, is_export

    settings = settings_of(**options)
    if is_export(source):
        if collection is not None:
            raise UsageError(
                f"{source} is an export, which names the collections of its identities. Leave --collection out."
            )
        with open_gallery(settings, existing=False) as database:
            originals = Originals(settings.data_dir, settings.keep_images, database)
            counts = import_export(database, source, originals, progress=not quiet)
        click.echo(f"{counts.references - counts.held:,} references of {counts.identities:,} identities enrolled")
        click.echo(f"{counts.held:,} were already enrolled")
        if counts.without_image:
            click.echo(f"{counts.without_image:,} images in it were not kept, since DIPTYCH_KEEP_IMAGES is `no`")
        return
    collection = check_name(collection or "default")
    checkpoint = load_checkpoint(settings.checkpoint)
    encoder = Encoder(checkpoint, threads(), settings.runtime)
    where = Path(settings.checkpoint)
    loaded = Loaded(
        encoder.model_id, encoder.embedding_dim, str(where.resolve()) if where.is_dir() else settings.checkpoint
    )
    with open_gallery(settings, existing=False) as database:
        originals = Originals(settings.data_dir, settings.keep_images, database)
        done = import_folder(
            source,
            collection,
            database,
            originals,
            encoder,
            loaded,
            progress=not quiet,
            formats=settings.formats,
        )
    click.echo(f"{done.enrolled:,} images enrolled into {collection!r}, {done.held:,} were already enrolled")
    if done.now_kept:
        click.echo(f"{done.now_kept:,} more were already enrolled; their images are kept from now on")
    if done.not_kept:
        click.echo("The images were not kept, though the gallery keeps others: DIPTYCH_KEEP_IMAGES is `no`")
    if done.refused:
        click.echo(f"{len(done.refused):,} files refused:")
        for line in done.refused[:SHOWN]:
            click.echo(f"  {line}")


@click.command(short_help="Write everything that is enrolled to a file.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--images", is_flag=True, help="Include the kept images; the file is much larger.")
@data_dir_option
@_quiet
def export(file: Path, images: bool, quiet: bool, **options: Any) -> None:
    """Write everything that is enrolled to FILE, as JSON with one identity per line. API keys are not included.

    Use it to move a gallery to another database (with `diptych import FILE`) or to read it with other programs. FILE is
    compressed if its name ends in .gz.
    """
    from app.gallery.originals import Originals
    from app.maintenance.export import export_gallery

    settings = settings_of(**options)
    with open_gallery(settings) as database:
        originals = Originals(settings.data_dir, settings.keep_images, database) if images else None
        counts = export_gallery(database, file, originals, progress=not quiet)
    click.echo(f"{counts.references:,} references of {counts.identities:,} identities in {file}")
    if counts.without_image:
        click.echo(f"{counts.without_image:,} of them are without an image: it was not kept, or could not be found")


@click.command(short_help="Copy the gallery while it is in use.")
@click.argument("to", metavar="DIR", type=click.Path(path_type=Path))
@data_dir_option
@_quiet
def backup(to: Path, quiet: bool, **options: Any) -> None:
    """Copy the gallery as it is at one moment to the new directory DIR. The service may be running."""
    from app.maintenance.backup import back_up

    settings = settings_of(**options)
    if settings.is_postgresql:
        raise UsageError("The gallery is in PostgreSQL. Back it up with PostgreSQL's own tools, such as pg_dump.")
    with open_gallery(settings) as database:
        made = back_up(database, settings.data_dir, to, progress=not quiet)
    click.echo(f"{made.references:,} references and {made.images:,} images in {to}")
    if made.images_elsewhere:
        click.echo(f"{made.images_elsewhere:,} images are in a bucket and not in this backup")


@click.command(short_help="Restore the gallery from a backup.")
@click.argument("source", metavar="BACKUP", type=EXISTING)
@data_dir_option
@click.option("--replace", is_flag=True, help="Move an existing gallery aside first.")
@_quiet
def restore(source: Path, replace: bool, quiet: bool, **options: Any) -> None:
    """Restore the gallery from a backup. Stop the service first."""
    from app.maintenance.backup import restore as restore_backup

    settings = settings_of(**options)
    if settings.database_url is not None:
        raise UsageError("A backup can only be restored into a data directory. Unset DIPTYCH_DATABASE_URL.")
    made = restore_backup(source, settings.data_dir, replace=replace, progress=not quiet)
    click.echo(f"{made.references:,} references and {made.images:,} images of {made.created_at} in {settings.data_dir}")
    with open_gallery(settings) as database, database.read() as connection:
        from app.gallery.keys import list_keys

        valid = ", ".join(key["name"] for key in list_keys(connection)) or "none"
    click.echo(f"Valid API keys: {valid}")


@click.command(short_help="Move the gallery to another encoder.")
@click.option("--checkpoint", help="Checkpoint to move to: a directory or a bundled name.")
@click.option("--images", type=EXISTING, help="Folder with the original files, for images that were not kept.")
@click.option("--forget-others", is_flag=True, help="Delete the embeddings of all encoders but the current one.")
@data_dir_option
@_quiet
def migrate(checkpoint: str | None, images: Path | None, forget_others: bool, quiet: bool, **options: Any) -> None:
    """Move the gallery to another encoder. Until that is done, services go on with the old one.

    Every kept image is embedded again. Then one transaction switches over, and running services load the new checkpoint
    within seconds, from the same path. After an interruption, run the same command again. The old embeddings stay until
    --forget-others: to go back, run this command with the old checkpoint.
    """
    from app.checkpoint.bulk import threads
    from app.checkpoint.encoder import Encoder
    from app.checkpoint.store import load_checkpoint
    from app.gallery.encoders import Loaded
    from app.gallery.originals import Originals
    from app.maintenance.migrate import Migration, forget_other_models

    if checkpoint is None and not forget_others:
        raise UsageError("Give the encoder to move to with --checkpoint, or use --forget-others.")
    settings = settings_of(**options)
    with open_gallery(settings) as database:
        if checkpoint is not None:
            encoder = Encoder(load_checkpoint(checkpoint), threads(), settings.runtime)
            where = str(Path(checkpoint).resolve()) if Path(checkpoint).is_dir() else checkpoint
            loaded = Loaded(encoder.model_id, encoder.embedding_dim, where)
            originals = Originals(settings.data_dir, settings.keep_images, database)
            migration = Migration(database, originals, encoder, loaded, images, settings.formats)
            done = migration.run(progress=not quiet)
            click.echo(f"{done:,} images embedded. The gallery now belongs to model {loaded.model_id}.")
            click.echo(f"Start services with DIPTYCH_CHECKPOINT={where} from now on.")
        if forget_others:
            click.echo(f"{forget_other_models(database):,} embeddings of other encoders deleted")


@click.command(short_help="Find weak spots of what is enrolled.")
@data_dir_option
@checkpoint_option
@click.option(
    "--target-fmr",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Judge at the threshold for this false-match rate instead of the default threshold.",
)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file for all findings; the table shows some.")
def report(target_fmr: float | None, output: Path | None, **options: Any) -> None:
    """Find the weak spots of a gallery: identities that are easily confused, and references that look mislabelled.

    For each collection: identities whose own references are called dissimilar, pairs of identities with references that
    are called similar, and references that are nearer to another identity than to their own. The service may be
    running. Nothing in the gallery is changed.
    """
    from app.maintenance.report import report_on

    if output is not None:
        output.touch()  # before the work, so that a path that can't be written to is reported at once
    documents = report_on(target_fmr, **{name: value for name, value in options.items() if value is not None})
    if output is not None:
        output.write_text(json.dumps(documents, indent=2) + "\n")
        click.echo(f"All of it is in {output}.")
