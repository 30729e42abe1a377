"""Alembic migrations of the gallery's schema, one file a revision."""
