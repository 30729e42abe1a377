"""The commands that look after a gallery; `cli` lists them. Each imports what it needs when it is called."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from app.errors import ModelMismatch, UsageError
from app.settings import Settings, read_settings

EXISTING = click.Path(exists=True, path_type=Path)
DATA_DIR = "Where the gallery is kept [env DIPTYCH_DATA_DIR; default ./data]."

data_dir_option = click.option("--data-dir", help=DATA_DIR)
_checkpoint = click.option(
    "--checkpoint", help="Directory or bundled name [env DIPTYCH_CHECKPOINT; default `default`]."
)
_quiet = click.option("--quiet", is_flag=True, help="No progress bar.")


def settings_of(**given: Any) -> Settings:
    """From the environment, and the options that were given."""
    return read_settings(**{name: value for name, value in given.items() if value is not None})


@contextmanager
def opened(settings: Settings, *, existing: bool = True) -> Iterator[Any]:
    """The gallery that the settings lead to. Raises `UsageError` where there is none, if it has to exist."""
    from app.database.open import open_database

    if existing and not settings.is_postgresql and not settings.sqlite_path.is_file():
        raise UsageError(f"There is no gallery {settings.sqlite_path}: give its directory with --data-dir.")
    database = open_database(settings, hurried=False)
    try:
        yield database
    finally:
        database.close()


def _names_the_way(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except ModelMismatch as mismatch:
            raise UsageError(f"{mismatch.detail} Give its checkpoint with --checkpoint.") from None

    return wrapped


@click.command("import")
@click.argument("source", metavar="DIR|FILE", type=EXISTING)
@click.option("--collection", help="Of a folder: where its identities go [default: default].")
@data_dir_option
@_checkpoint
@_quiet
@_names_the_way
def import_(source: Path, collection: str | None, quiet: bool, **options: Any) -> None:
    """Enroll a folder tree, or what `diptych export` wrote. The service may run meanwhile.

    In a folder tree every folder that holds images is one identity, named by its path with `:` between its parts.
    Interrupted, the same command goes on: what is enrolled already is passed over.
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
            raise UsageError(f"{source} says itself which collections its identities are in: leave --collection out.")
        with opened(settings, existing=False) as database:
            originals = Originals(settings.data_dir, settings.keep_images, database)
            counts = import_export(database, source, originals, progress=not quiet)
        click.echo(f"{counts.references - counts.held:,} references of {counts.identities:,} identities enrolled")
        click.echo(f"{counts.held:,} were there already")
        if counts.without_image:
            click.echo(f"{counts.without_image:,} images in it were not kept, since DIPTYCH_KEEP_IMAGES is no here")
        return
    collection = check_name(collection or "default")
    checkpoint = load_checkpoint(settings.checkpoint)
    encoder = Encoder(checkpoint, threads(), settings.runtime)
    where = Path(settings.checkpoint)
    loaded = Loaded(
        encoder.model_id, encoder.embedding_dim, str(where.resolve()) if where.is_dir() else settings.checkpoint
    )
    with opened(settings, existing=False) as database:
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
    click.echo(f"{done.enrolled:,} images enrolled into {collection!r}, {done.held:,} were there already")
    if done.not_kept:
        click.echo("Their images were not kept, though those of others are: DIPTYCH_KEEP_IMAGES is no here")
    if done.refused:
        click.echo(f"{len(done.refused):,} files refused:")
        for line in done.refused[:SHOWN]:
            click.echo(f"  {line}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--images", is_flag=True, help="The kept images too: much larger.")
@data_dir_option
@_quiet
def export(file: Path, images: bool, quiet: bool, **options: Any) -> None:
    """Write all that is enrolled to FILE, one identity a line (JSON; compressed if it ends in .gz). No API keys.

    For moving it to another database (`diptych import FILE`) or reading it with other programs.
    """
    from app.gallery.originals import Originals
    from app.maintenance.export import export as write

    settings = settings_of(**options)
    with opened(settings) as database:
        originals = Originals(settings.data_dir, settings.keep_images, database) if images else None
        counts = write(database, file, originals, progress=not quiet)
    click.echo(f"{counts.references:,} references of {counts.identities:,} identities in {file}")
    if counts.without_image:
        click.echo(f"{counts.without_image:,} of them have no image in it: none was kept, or it could not be found")


@click.command()
@click.argument("to", metavar="DIR", type=click.Path(path_type=Path))
@data_dir_option
@_quiet
def backup(to: Path, quiet: bool, **options: Any) -> None:
    """Copy the gallery to the new directory DIR, whole and at one moment. The service may run meanwhile."""
    from app.maintenance.backup import back_up

    settings = settings_of(**options)
    if settings.is_postgresql:
        raise UsageError("A gallery in PostgreSQL is backed up by PostgreSQL's own tools: pg_dump, or its archives.")
    with opened(settings) as database:
        made = back_up(database, settings.data_dir, to, progress=not quiet)
    click.echo(f"{made.references:,} references and {made.images:,} images in {to}")
    if made.images_elsewhere:
        click.echo(f"{made.images_elsewhere:,} images are in a bucket, and not in this backup")


@click.command()
@click.argument("source", metavar="BACKUP", type=EXISTING)
@data_dir_option
@click.option("--replace", is_flag=True, help="Move the gallery that is there aside.")
@_quiet
def restore(source: Path, replace: bool, quiet: bool, **options: Any) -> None:
    """Put a backup in the place of the gallery. The service has to be stopped."""
    from app.maintenance.backup import restore as put_back

    settings = settings_of(**options)
    if settings.database_url is not None:
        raise UsageError("A backup is restored into a data directory: leave DIPTYCH_DATABASE_URL out.")
    made = put_back(source, settings.data_dir, replace=replace, progress=not quiet)
    click.echo(f"{made.references:,} references and {made.images:,} images of {made.created_at} in {settings.data_dir}")
    with opened(settings) as database, database.read() as connection:
        from app.gallery import keys as ring

        valid = ", ".join(key["name"] for key in ring.listed(connection)) or "none"
    click.echo(f"API keys that are valid in it: {valid}")


@click.command()
@click.option("--checkpoint", help="The encoder to move to: directory or bundled name.")
@click.option("--images", type=EXISTING, help="Folder with the original files, for images that were not kept.")
@click.option("--forget-others", is_flag=True, help="Delete the embeddings of encoders that the gallery has left.")
@data_dir_option
@_quiet
def migrate(checkpoint: str | None, images: Path | None, forget_others: bool, quiet: bool, **options: Any) -> None:
    """Move the gallery to another encoder, while the old one answers.

    Every kept image is embedded anew; then one transaction switches, and running services load the new checkpoint
    within seconds (they need to find it at the same place). Interrupted, the same command goes on. The old embeddings
    stay: back is the same command with the old checkpoint, until --forget-others.
    """
    from app.checkpoint.bulk import threads
    from app.checkpoint.encoder import Encoder
    from app.checkpoint.store import load_checkpoint
    from app.gallery.encoders import Loaded
    from app.gallery.originals import Originals
    from app.maintenance import migrate as stage

    if checkpoint is None and not forget_others:
        raise UsageError("Say where to: --checkpoint DIR.")
    settings = settings_of(**options)
    with opened(settings) as database:
        if checkpoint is not None:
            encoder = Encoder(load_checkpoint(checkpoint), threads(), settings.runtime)
            where = str(Path(checkpoint).resolve()) if Path(checkpoint).is_dir() else checkpoint
            loaded = Loaded(encoder.model_id, encoder.embedding_dim, where)
            originals = Originals(settings.data_dir, settings.keep_images, database)
            migration = stage.Migration(database, originals, encoder, loaded, images, settings.formats)
            done = migration.run(progress=not quiet)
            click.echo(f"{done:,} images embedded; the gallery belongs to model {loaded.model_id} now.")
            click.echo(f"Start services with DIPTYCH_CHECKPOINT={where} from now on.")
        if forget_others:
            click.echo(f"{stage.forget_others(database):,} embeddings of other encoders deleted")
