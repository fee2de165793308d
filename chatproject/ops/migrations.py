"""Compares the migrations of the code with the applied ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from django.db import ProgrammingError
from django.db.migrations.loader import MigrationLoader
from psycopg.errors import UndefinedTable

from chatproject.lib.db import prepared

Name = tuple[str, str]
"""App label and name of a migration."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Migrations that the database lacks, and applied ones of our apps that the code lacks."""

    missing: list[Name]
    unknown: list[Name]


@cache
def loader() -> MigrationLoader:
    """Return the migrations of the code, which take a tenth of a second to read."""
    return MigrationLoader(None)


def compare() -> Difference:
    """Compare all migrations, by one statement. Raises db.UNREACHABLE."""
    code = loader()
    try:
        rows = prepared.all("SELECT app, name FROM django_migrations ORDER BY id", ())
    except ProgrammingError as error:
        if not isinstance(error.__cause__, UndefinedTable):
            raise
        rows = []
    applied: set[Name] = {(app, name) for app, name in rows}
    missing = []
    for name in sorted(code.graph.nodes):
        parts = set(code.graph.nodes[name].replaces)  # of a squashed migration
        if name not in applied and not (parts and parts <= applied):
            missing.append(name)
    known = set(code.disk_migrations or ())
    unknown = [name for name in rows if name[0] in code.migrated_apps and name not in known]
    return Difference(missing, unknown)
