"""`diptych keys`: make, list and revoke API keys."""

from typing import Any

import click

from app.maintenance.commands import data_dir_option, opened, settings_of


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
@data_dir_option
def create_key(name: str, scopes: tuple[str, ...], collections: tuple[str, ...], **options: Any) -> None:
    """Make a key and print it, for the only time: only its hash is kept."""
    from app.gallery import keys as ring
    from app.gallery.names import check_name

    wanted = [check_name(collection) for collection in collections]
    settings = settings_of(**options)
    is_new = not settings.is_postgresql and not settings.sqlite_path.exists()
    with opened(settings, existing=False) as database:
        token = database.write(lambda connection: ring.create(connection, name, scopes, wanted))
        click.echo(f"A key for the gallery {database.where}{', which is new and empty' if is_new else ''}:", err=True)
    click.echo(token)


@keys.command("list")
@data_dir_option
def list_keys(**options: Any) -> None:
    """Names, scopes and collections of the keys that are valid."""
    from app.gallery import keys as ring

    with opened(settings_of(**options)) as database, database.read() as connection:
        every = ring.listed(connection)
        if not every:
            click.echo(f"The gallery {database.where} has no keys.", err=True)
        for key in every:
            where = ", ".join(key["collections"] or ["all collections"])
            click.echo(f"{key['name']:<24} {', '.join(key['scopes']):<8} {where}  (made {key['created_at']})")


@keys.command("revoke")
@click.argument("name")
@click.option("--last", is_flag=True, help="Also if it is the last one, which opens the service on loopback.")
@data_dir_option
def revoke_key(name: str, last: bool, **options: Any) -> None:
    """Make a key worthless: services refuse it within seconds."""
    from app.gallery import keys as ring

    with opened(settings_of(**options)) as database:
        database.write(lambda connection: ring.revoke(connection, name, last=last))
    click.echo(f"revoked: {name}", err=True)
