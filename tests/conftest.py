"""Fixtures that every room's tests may use."""

from tests.storage.databases import database, database_url, empty_url, postgresql, sqlite_template

__all__ = ["database", "database_url", "empty_url", "postgresql", "sqlite_template"]
