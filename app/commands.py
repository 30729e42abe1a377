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

_data_dir = click.option("--data-dir", help=DATA_DIR)
_checkpoint = click.option(
    "--checkpoint", help="Directory or bundled name [env DIPTYCH_CHECKPOINT; default `default`]."
)
_quiet = click.option("--quiet", is_flag=True, help="No progress bar.")


def _settings(**given: Any) -> Settings:
    return read_settings(**{name: value for name, value in given.items() if value is not None})


@contextmanager
def _database(settings: Settings, *, existing: bool = True) -> Iterator[Any]:
    from app.serving import open_database

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
@_data_dir
@_checkpoint
@_quiet
@_names_the_way
def import_(source: Path, collection: str | None, quiet: bool, **options: Any) -> None:
    """Enroll a folder tree, or what `diptych export` wrote. The service may run meanwhile.

    In a folder tree every folder that holds images is one identity, named by its path with `:` between its parts.
    Interrupted, the same command goes on: what is enrolled already is passed over.
    """
    from app import checkpoint as format_1
    from app.bulk import threads
    from app.encoder import Encoder
    from app.folder_import import SHOWN, import_folder
    from app.import_export import import_export, is_export
    from app.models import Loaded
    from app.originals import Originals
    from app.schemas import check_name

    settings = _settings(**options)
    if is_export(source):
        if collection is not None:
            raise UsageError(f"{source} says itself which collections its identities are in: leave --collection out.")
        with _database(settings, existing=False) as database:
            originals = Originals(settings.data_dir, settings.keep_images, database)
            counts = import_export(database, source, originals, progress=not quiet)
        click.echo(f"{counts.references - counts.held:,} references of {counts.identities:,} identities enrolled")
        click.echo(f"{counts.held:,} were there already")
        if counts.without_image:
            click.echo(f"{counts.without_image:,} images in it were not kept, since DIPTYCH_KEEP_IMAGES is no here")
        return
    collection = check_name(collection or "default")
    checkpoint = format_1.load(settings.checkpoint)
    encoder = Encoder(checkpoint, threads())
    where = Path(settings.checkpoint)
    loaded = Loaded(
        encoder.model_id, encoder.embedding_dim, str(where.resolve()) if where.is_dir() else settings.checkpoint
    )
    with _database(settings, existing=False) as database:
        originals = Originals(settings.data_dir, settings.keep_images, database)
        done = import_folder(source, collection, database, originals, encoder, loaded, progress=not quiet)
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
@_data_dir
@_quiet
def export(file: Path, images: bool, quiet: bool, **options: Any) -> None:
    """Write all that is enrolled to FILE, one identity a line (JSON; compressed if it ends in .gz). No API keys.

    For moving it to another database (`diptych import FILE`) or reading it with other programs.
    """
    from app.export import export as write
    from app.originals import Originals

    settings = _settings(**options)
    with _database(settings) as database:
        originals = Originals(settings.data_dir, settings.keep_images, database) if images else None
        counts = write(database, file, originals, progress=not quiet)
    click.echo(f"{counts.references:,} references of {counts.identities:,} identities in {file}")
    if counts.without_image:
        click.echo(f"{counts.without_image:,} of them have no image in it: none was kept, or it could not be found")


@click.command()
@click.argument("to", metavar="DIR", type=click.Path(path_type=Path))
@_data_dir
@_quiet
def backup(to: Path, quiet: bool, **options: Any) -> None:
    """Copy the gallery to the new directory DIR, whole and at one moment. The service may run meanwhile."""
    from app.backup import back_up

    settings = _settings(**options)
    if settings.is_postgresql:
        raise UsageError("A gallery in PostgreSQL is backed up by PostgreSQL's own tools: pg_dump, or its archives.")
    with _database(settings) as database:
        made = back_up(database, settings.data_dir, to, progress=not quiet)
    click.echo(f"{made.references:,} references and {made.images:,} images in {to}")
    if made.images_elsewhere:
        click.echo(f"{made.images_elsewhere:,} images are in a bucket, and not in this backup")


@click.command()
@click.argument("source", metavar="BACKUP", type=EXISTING)
@_data_dir
@click.option("--replace", is_flag=True, help="Move the gallery that is there aside.")
@_quiet
def restore(source: Path, replace: bool, quiet: bool, **options: Any) -> None:
    """Put a backup in the place of the gallery. The service has to be stopped."""
    from app.backup import restore as put_back

    settings = _settings(**options)
    if settings.database_url is not None:
        raise UsageError("A backup is restored into a data directory: leave DIPTYCH_DATABASE_URL out.")
    made = put_back(source, settings.data_dir, replace=replace, progress=not quiet)
    click.echo(f"{made.references:,} references and {made.images:,} images of {made.created_at} in {settings.data_dir}")
    with _database(settings) as database, database.read() as connection:
        from app import keys as ring

        valid = ", ".join(key["name"] for key in ring.listed(connection)) or "none"
    click.echo(f"API keys that are valid in it: {valid}")


@click.command()
@click.option("--checkpoint", help="The encoder to move to: directory or bundled name.")
@click.option("--images", type=EXISTING, help="Folder with the original files, for images that were not kept.")
@click.option("--forget-others", is_flag=True, help="Delete the embeddings of encoders that the gallery has left.")
@_data_dir
@_quiet
def migrate(checkpoint: str | None, images: Path | None, forget_others: bool, quiet: bool, **options: Any) -> None:
    """Move the gallery to another encoder, while the old one answers.

    Every kept image is embedded anew; then one transaction switches, and running services load the new checkpoint
    within seconds (they need to find it at the same place). Interrupted, the same command goes on. The old embeddings
    stay: back is the same command with the old checkpoint, until --forget-others.
    """
    from app import checkpoint as format_1
    from app import migrate as stage
    from app.bulk import threads
    from app.encoder import Encoder
    from app.models import Loaded
    from app.originals import Originals

    if checkpoint is None and not forget_others:
        raise UsageError("Say where to: --checkpoint DIR.")
    settings = _settings(**options)
    with _database(settings) as database:
        if checkpoint is not None:
            encoder = Encoder(format_1.load(checkpoint), threads())
            where = str(Path(checkpoint).resolve()) if Path(checkpoint).is_dir() else checkpoint
            loaded = Loaded(encoder.model_id, encoder.embedding_dim, where)
            originals = Originals(settings.data_dir, settings.keep_images, database)
            done = stage.Migration(database, originals, encoder, loaded, images).run(progress=not quiet)
            click.echo(f"{done:,} images embedded; the gallery belongs to model {loaded.model_id} now.")
            click.echo(f"Start services with DIPTYCH_CHECKPOINT={where} from now on.")
        if forget_others:
            click.echo(f"{stage.forget_others(database):,} embeddings of other encoders deleted")


@click.group()
def keys() -> None:
    """API keys: make, list and revoke them. Running services follow within seconds."""


@keys.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    default=("verify",),
    show_default=True,
    type=click.Choice(["verify", "enroll", "admin"]),
    help="verify: compare, search, look. enroll: that, and enroll, change, delete identities. admin: everything.",
)
@click.option("--collection", "collections", multiple=True, help="Only this collection; again for more. Default: all.")
@_data_dir
def create_key(name: str, scopes: tuple[str, ...], collections: tuple[str, ...], **options: Any) -> None:
    """Make a key and print it, for the only time: only its hash is kept."""
    from app import keys as ring
    from app.schemas import check_name

    wanted = [check_name(collection) for collection in collections]
    settings = _settings(**options)
    is_new = not settings.is_postgresql and not settings.sqlite_path.exists()
    with _database(settings, existing=False) as database:
        token = database.write(lambda connection: ring.create(connection, name, scopes, wanted))
        click.echo(f"A key for the gallery {database.where}{', which is new and empty' if is_new else ''}:", err=True)
    click.echo(token)


@keys.command("list")
@_data_dir
def list_keys(**options: Any) -> None:
    """Names, scopes and collections of the keys that are valid."""
    from app import keys as ring

    with _database(_settings(**options)) as database, database.read() as connection:
        every = ring.listed(connection)
        if not every:
            click.echo(f"The gallery {database.where} has no keys.", err=True)
        for key in every:
            where = ", ".join(key["collections"] or ["all collections"])
            click.echo(f"{key['name']:<24} {', '.join(key['scopes']):<8} {where}  (made {key['created_at']})")


@keys.command("revoke")
@click.argument("name")
@click.option("--last", is_flag=True, help="Also if it is the last one, which opens the service on loopback.")
@_data_dir
def revoke_key(name: str, last: bool, **options: Any) -> None:
    """Make a key worthless: services refuse it within seconds."""
    from app import keys as ring

    with _database(_settings(**options)) as database:
        database.write(lambda connection: ring.revoke(connection, name, last=last))
    click.echo(f"revoked: {name}", err=True)
