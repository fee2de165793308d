"""A Postgres and a Valkey of its own for a bench, and Django on them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from chatproject.local.servers import PostgresServer, ValkeyServer

ENVIRONMENT = {
    "DJANGO_SETTINGS_MODULE": "chatproject.settings",
    "SECRET_KEY": "only-for-benches-0123456789-abcdefghijklmnopqrstuvwxyz",
    "DEBUG": "0",
    "HTTPS": "0",
    "STATIC_MANIFEST": "0",
    "ALLOWED_HOSTS": "localhost,testserver",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",  # a closed port
    "OPENAI_API_KEY": "only-for-benches",
    "SIGNUP_CREDITS": "0",
    "DB_POOL_SIZE": "40",
    "ENV_FILE": os.devnull,
}


@contextmanager
def own_database(settings: Mapping[str, str] = {}) -> Iterator[PostgresServer]:
    """Start Postgres with these settings, Valkey, and Django on an empty, migrated database.

    Once per process: Django is set up but once. Child processes find the same database.
    """
    folder = Path(tempfile.mkdtemp(prefix="parley-bench-"))
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
        shutil.rmtree(folder, ignore_errors=True)
