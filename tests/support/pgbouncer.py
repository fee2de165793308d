"""A real PgBouncer in front of a Postgres, for tests that are skipped where it is not installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import IO, ClassVar
from urllib.parse import urlsplit

import pytest

from chatproject.local.servers import HOST, EmbeddedServer, unprivileged_user
from chatproject.local.spawn import Account, spawn

# Debian installs it where only root's PATH leads.
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
PROGRAM = shutil.which("pgbouncer", path=PATH)

needed = pytest.mark.skipif(
    PROGRAM is None, reason="PgBouncer is not installed. On Debian: apt-get install pgbouncer"
)


def keeps_prepared_statements() -> bool:
    """Whether the installed version does so by default."""
    assert PROGRAM is not None
    printed = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    major, minor = re.findall(r"\d+", printed.stdout)[:2]
    return (int(major), int(minor)) >= (1, 24)


class PgBouncer(EmbeddedServer):
    """PgBouncer with pooling by `mode` in front of the server at a URL; `url` leads through it.

    Its sessions are few, so that each is soon used by another client.
    """

    name: ClassVar[str] = "PgBouncer"
    variable: ClassVar[str] = "DATABASE_URL"
    ready_line: ClassVar[str] = "process up: "

    def __init__(
        self, folder: Path, server_url: str, *, sessions: int = 20, mode: str = "transaction"
    ) -> None:
        super().__init__(port=None, log_path=folder / "pgbouncer.log")
        self._folder = folder
        self._server = urlsplit(server_url)
        self._sessions = sessions
        self._mode = mode

    @property
    def url(self) -> str:
        account, _, _ = self._server.netloc.rpartition("@")
        return self._server._replace(netloc=f"{account}@{HOST}:{self.port}").geturl()

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        assert PROGRAM is not None
        configuration = self._folder / "pgbouncer.ini"
        configuration.write_text(
            f"""
[databases]
* = host={self._server.hostname} port={self._server.port} user={self._server.username}

[pgbouncer]
listen_addr = {HOST}
listen_port = {self.port}
unix_socket_dir =
auth_type = any
pool_mode = {self._mode}
default_pool_size = {self._sessions}
max_client_conn = 1000
server_login_retry = 1
"""
        )
        account = None
        if os.geteuid() == 0:  # PgBouncer refuses to run as root
            account = Account(*unprivileged_user())
            configuration.chmod(0o644)
        return spawn([PROGRAM, configuration], account=account, cwd=Path("/"), output=log)
