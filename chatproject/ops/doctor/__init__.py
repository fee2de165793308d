"""Checks of a whole installation: `manage.py doctor`, the page in the admin, and the log at each start.

A check yields findings: a state, its description and a remedy, never a secret.
"""

from __future__ import annotations

from chatproject.ops.doctor import (
    catalogue,
    configuration,
    database,
    machine,
    mail,
    processes,
    provider,
    redis_server,
    sign_in,
    site,
)
from chatproject.ops.doctor.checkup import Check, examine
from chatproject.ops.doctor.finding import Finding, Level

__all__ = ["ALL", "AT_START", "AT_WEB_START", "ON_PAGE", "Check", "Finding", "Level", "examine"]

_database = Check(database.PART, database.check)
_redis = Check(redis_server.PART, redis_server.check)
_tables = (database.PART, "migrations")
_catalogue = Check(catalogue.PART, catalogue.check, needs=_tables)
_static = Check("static files", machine.check_static_files)

# Checks that take some tenths of a second and use no server but Postgres and Redis.
ON_PAGE = (
    Check("versions", machine.check_versions),
    _database,
    _redis,
    Check("worker", processes.check_workers, needs=(*_tables, redis_server.PART)),
    Check("clock", processes.check_clock, needs=_tables),
    _catalogue,
    _static,
    Check("time", machine.check_time),
    Check("disk", machine.check_disk),
)

ALL = (
    Check(configuration.PART, configuration.check),
    *ON_PAGE,
    Check(provider.PART, provider.check, seconds=10.0, needs=_tables),
    Check(mail.PART, mail.check, seconds=10.0),
    Check(sign_in.PART, sign_in.check, seconds=15.0),
    Check(site.PART, site.check, seconds=10.0),
)

# Processes start together, so each of them lacks the others at its start. Web processes also need the
# static files.
AT_START = (_database, _redis, _catalogue)
AT_WEB_START = (*AT_START, _static)
