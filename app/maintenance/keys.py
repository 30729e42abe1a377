"""`diptych keys`: create, list and revoke API keys."""

from typing import Any

import click

from app.gallery.scopes import SCOPES
from app.maintenance.commands import data_dir_option, open_gallery, settings_of


@click.group()
def keys() -> None:
    """Create, list and revoke API keys. Running services follow within seconds."""


@keys.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    default=("verify",),
    show_default=True,
    type=click.Choice(list(SCOPES)),
    help="What the key allows; repeat for more. watch: read /metrics. verify: compare, search, list what is enrolled. "
    "enroll: what verify allows, and enroll, change and delete identities. admin: everything.",
)
@click.option(
    "--collection", "collections", multiple=True, help="Allow only this collection; repeat for more. Default: all."
)
@data_dir_option
def create_command(name: str, scopes: tuple[str, ...], collections: tuple[str, ...], **options: Any) -> None:
    """Create a key and print it. It is shown only once: the gallery keeps its hash."""
    from app.database.sqlite import database_exists
    from app.gallery.keys import create_key
    from app.gallery.names import check_name

    names = [check_name(collection) for collection in collections]
    settings = settings_of(**options)
    is_new = not settings.is_postgresql and not database_exists(settings.sqlite_path)
    with open_gallery(settings, existing=False) as database:
        token = database.write(lambda connection: create_key(connection, name, scopes, names))
        click.echo(f"A key for the gallery {database.where}{', which is new and empty' if is_new else ''}:", err=True)
    click.echo(token)


@keys.command("list")
@data_dir_option
def list_command(**options: Any) -> None:
    """List the valid keys with their scopes and collections."""
    from app.gallery.keys import list_keys

    with open_gallery(settings_of(**options)) as database, database.read() as connection:
        entries = list_keys(connection)
        if not entries:
            click.echo(f"The gallery {database.where} has no keys.", err=True)
        for key in entries:
            where = ", ".join(key["collections"] or ["all collections"])
            click.echo(f"{key['name']:<24} {', '.join(key['scopes']):<8} {where}  (created {key['created_at']})")


@keys.command("revoke")
@click.argument("name")
@click.option("--last", is_flag=True, help="Revoke even the last key. A service on loopback is then open to everybody.")
@data_dir_option
def revoke_command(name: str, last: bool, **options: Any) -> None:
    """Revoke a key: running services refuse it within seconds."""
    from app.gallery.keys import revoke_key

    with open_gallery(settings_of(**options)) as database:
        database.write(lambda connection: revoke_key(connection, name, last=last))
    click.echo(f"revoked: {name}", err=True)
