"""Servers of this machine instead of those in the wheels, for tests on other versions."""

from __future__ import annotations

import os
from pathlib import Path

from chatproject.local.servers import PostgresServer, ValkeyServer

WHEEL_LOCALE = PostgresServer.locale


def use() -> None:
    """Start the programs that TEST_POSTGRES_BIN (a folder) and TEST_REDIS_SERVER (a file) name."""
    if folder := os.environ.get("TEST_POSTGRES_BIN"):
        PostgresServer.programs = Path(folder)
        # Before Postgres 17 it has no locales of its own.
        PostgresServer.locale = ("--locale=C.UTF-8",)
    if program := os.environ.get("TEST_REDIS_SERVER"):
        ValkeyServer.program = Path(program)
