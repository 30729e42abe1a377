"""Run the migrations inside a transaction that the caller holds and commits."""

import sqlalchemy as sa
from alembic import command
from alembic.config import Config


def upgrade(connection: sa.Connection) -> None:
    """Upgrade to the newest revision."""
    config = Config()
    config.set_main_option("script_location", "app.database:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
