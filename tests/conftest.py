"""Fixtures that every room's tests may use."""

import os

# Kernels for GPUs run in Triton's interpreter unless told otherwise: before anything imports Triton.
os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.storage.databases import database, database_url, empty_url, postgresql, sqlite_template

__all__ = ["database", "database_url", "empty_url", "postgresql", "sqlite_template"]
