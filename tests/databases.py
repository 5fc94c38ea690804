"""Which databases a test runs on: SQLite unless it asks for every one."""

import pytest

every_database = pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)
"""Runs a test, or with `pytestmark = every_database` a whole file, on SQLite and on PostgreSQL."""
on_postgresql = pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)
"""Runs a test on PostgreSQL alone: of what SQLite does not have."""
