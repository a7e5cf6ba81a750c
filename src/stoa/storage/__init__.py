"""The database: one session factory, one scoping rule, migrations."""
