"""What Alembic runs: migrations on the connection that it was handed."""

from alembic import context

from app.database.tables import tables

context.configure(connection=context.config.attributes["connection"], target_metadata=tables)
context.run_migrations()
