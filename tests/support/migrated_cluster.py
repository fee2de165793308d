"""A Postgres with a migrated database, which .pytest_cache keeps until a migration changes.

All migrations together take ten seconds, a copy of their result none: for each run of pytest, each of
its processes and each site of the tests in a browser.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from chatproject.local.servers import PostgresServer

TEMPLATE = "migrated"  # the database to copy: CREATE DATABASE … TEMPLATE migrated
PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".pytest_cache" / "postgres"


def start(postgres: PostgresServer) -> None:
    """Start a new Postgres that has the database TEMPLATE."""
    kept = CACHE / _key()
    if kept.exists():
        _copy(kept, postgres.data_dir)
        postgres.start()
        return
    postgres.start()
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    url = urlsplit(postgres.url)._replace(path=f"/{TEMPLATE}").geturl()
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity", "0"],
        cwd=PROJECT,
        env=os.environ | {"DATABASE_URL": url, "REDIS_URL": "redis://127.0.0.1:9/0"},  # closed
        check=True,
        timeout=300,
    )
    postgres.stop()
    shutil.rmtree(CACHE, ignore_errors=True)  # those of earlier migrations
    CACHE.mkdir(parents=True, exist_ok=True)
    draft = CACHE / f"draft-{os.getpid()}"
    _copy(postgres.data_dir, draft)
    try:
        draft.rename(kept)
    except OSError:  # another session has made it meanwhile
        shutil.rmtree(draft)
    postgres.start()


def _key() -> str:
    """Return a digest of all that the cluster is made of."""
    key = hashlib.sha256(f"{PostgresServer.programs} {os.geteuid()}".encode())
    parts = [*PROJECT.glob("requirements*.txt"), PROJECT / "chatproject" / "settings.py"]
    for top in ("accounts", "billing", "chat", "chatproject"):
        parts += (PROJECT / top).rglob("migrations/*.py")
    for path in sorted(parts):
        key.update(path.read_bytes())
    return key.hexdigest()[:16]


def _copy(source: Path, target: Path) -> None:
    # With the owner, whom shutil does not keep.
    subprocess.run(["cp", "-a", source, target], check=True)
