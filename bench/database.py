"""A separate Postgres and Valkey for a bench, and Django on them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from chatproject.local.servers import PostgresServer, ValkeyServer

INSTALLATION = {
    "SECRET_KEY": "only-for-benches-0123456789-abcdefghijklmnopqrstuvwxyz",
    "HTTPS": "0",
    "STATIC_MANIFEST": "0",  # without collectstatic
    "ALLOWED_HOSTS": "127.0.0.1,localhost,testserver",
    "OPENAI_API_KEY": "only-for-benches",
    "ALLOW_UNVERIFIED_CREDITS": "1",
    "ENV_FILE": os.devnull,
}
ENVIRONMENT = {
    **INSTALLATION,
    "DJANGO_SETTINGS_MODULE": "chatproject.settings",
    "DEBUG": "0",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",  # a closed port
    "SIGNUP_CREDITS": "0",
    "DB_POOL_SIZE": "40",
}


@contextmanager
def own_database(settings: Mapping[str, str] = {}) -> Iterator[PostgresServer]:
    """Start Postgres with these settings, Valkey, and Django on an empty, migrated database.

    Once per process, since Django is set up only once. Child processes use the same database.
    """
    with tempfile.TemporaryDirectory(prefix="parley-bench-", ignore_cleanup_errors=True) as path:
        folder = Path(path)
        folder.chmod(0o711)  # Postgres runs as another user when we are root
        server = PostgresServer(folder / "postgres", settings=settings)
        valkey = ValkeyServer(folder / "valkey")
        try:
            server.start()
            valkey.start()
            os.environ |= ENVIRONMENT | {"DATABASE_URL": server.url, "REDIS_URL": valkey.url}
            import django

            django.setup()
            from django.core.management import call_command
            from django.db import connections

            call_command("migrate", verbosity=0)
            yield server
            connections.close_all()
        finally:
            server.stop()
            valkey.stop()
