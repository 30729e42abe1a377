"""Settings to an open, migrated database."""

from app.database.postgres import PostgreSQL
from app.database.sqlite import SQLite
from app.database.transactions import Database
from app.settings import Settings


def open_database(settings: Settings, *, hurried: bool = True) -> Database:
    """The gallery's database, with its schema up to date. Raises `UsageError` where it can't be opened.

    A service is `hurried`: its statements give up after half a minute. Those of a command may take longer.
    """
    if settings.is_postgresql:
        database: Database = PostgreSQL(settings.database_url or "", hurried=hurried)
    else:
        database = SQLite(settings.sqlite_path)
    try:
        database.migrate()
    except BaseException:
        database.close()
        raise
    return database
