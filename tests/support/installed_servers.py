"""Servers of this machine instead of those in the wheels, for tests on other versions."""

from __future__ import annotations

import os
from pathlib import Path

from chatproject.local.servers import PostgresServer, ValkeyServer


def use() -> None:
    """Start the programs that TEST_POSTGRES_BIN (a folder) and TEST_REDIS_SERVER (a file) name."""
    if folder := os.environ.get("TEST_POSTGRES_BIN"):
        PostgresServer.programs = Path(folder)
        PostgresServer.locale = (
            "--locale=C.UTF-8",
        )  # before Postgres 17 it has no other of its own
    if program := os.environ.get("TEST_REDIS_SERVER"):
        ValkeyServer.program = Path(program)
