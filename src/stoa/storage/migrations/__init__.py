"""Alembic's folder: what `storage/migrate.py` runs."""
