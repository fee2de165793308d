"""Servers of a test session: each has its own, and none outlives it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from chatproject.local.servers import BASE_DIR, is_alive
from tests.support.programs import Program, wait_until

# A test that writes a line about its servers, and takes LOOK_FOR seconds.
LOOK = """
from __future__ import annotations
import os, time
import psycopg, pytest, redis
from tests.support import pytest_servers

@pytest.mark.parametrize("n", range(2))
def test_look(n, valkey_url):
    with psycopg.connect(os.environ["DATABASE_URL"]) as session:
        postgres = session.execute("SELECT pg_backend_pid()").fetchone()
        directory = session.execute("SHOW data_directory").fetchone()[0]
    assert valkey_url == os.environ["REDIS_URL"] == pytest_servers.valkey.url
    assert "secret" not in " ".join(os.environ.values())
    with redis.from_url(valkey_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")
    with open(f"{directory}/postmaster.pid") as file:
        pids = [int(file.readline()), pytest_servers.valkey.pid]
    line = f"{pytest_servers.folder}|{os.environ['DATABASE_URL']}|{valkey_url}|{pids[0]}|{pids[1]}"
    with open(__file__ + ".seen", "a") as file:
        file.write(line + "\\n")
    time.sleep(float(os.environ["LOOK_FOR"]))
"""


# The second of three tests reaches its time limit amid a statement.
STUCK = """
import pytest
from django.contrib.auth.models import Group
from django.db import connection

@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(5, func_only=True)
@pytest.mark.parametrize("seconds", [0, 60, 0.1])
def test_sleep(seconds):
    assert not Group.objects.exists()
    Group.objects.create(name="left behind")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])
"""


class Session(Program):
    """A separate test session with two tests, each of which takes so many seconds."""

    def __init__(
        self, folder: Path, *options: str, seconds: float = 0.0, tests: str = LOOK
    ) -> None:
        path = folder / "test_look.py"
        path.write_text(tests)
        self.seen = folder / "test_look.py.seen"
        environment = {
            **{name: value for name, value in os.environ.items() if "XDIST" not in name},
            "DATABASE_URL": "postgres://secret@db.example.org/production",
            "REDIS_URL": "redis://secret.example.org",
            "EMAIL_URL": "smtp://secret.example.org",
            "LOOK_FOR": str(seconds),
        }
        command = [
            *(sys.executable, "-m", "pytest", str(path), "-q", "-p", "no:cacheprovider"),
            *("-p", "tests.conftest"),  # found automatically only from within its folder
            *("-c", str(BASE_DIR / "pyproject.toml"), "--rootdir", str(folder), *options),
        ]
        super().__init__(command, cwd=BASE_DIR, env=environment)

    def looks(self) -> list[list[str]]:
        if not self.seen.exists():
            return []
        return [line.split("|") for line in self.seen.read_text().splitlines()]

    def has_begun(self, processes: int) -> bool:
        assert self.process.poll() is None, self.wait() or self.text()
        return len(self.looks()) == processes

    def leftovers(self) -> list[str]:
        folders = [look[0] for look in self.looks() if Path(look[0]).exists()]
        return folders + [pid for look in self.looks() for pid in look[3:] if is_alive(int(pid))]


@pytest.mark.parametrize("processes", [pytest.param(0, marks=pytest.mark.long), 2])
def test_session_has_its_servers_and_leaves_nothing(tmp_path, processes):
    with Session(tmp_path, "-n", str(processes)) as session:
        assert session.wait() == 0, session.text()
        folders, databases, valkeys, postgres, _ = map(set, zip(*session.looks(), strict=True))
        assert len(folders) == len(databases) == len(postgres) == 1, "one Postgres for all"
        assert len(valkeys) == max(1, processes), "a Valkey for each process"
        assert not session.leftovers()


@pytest.mark.parametrize(
    ("processes", "number"),
    [
        pytest.param(0, signal.SIGINT, marks=pytest.mark.long),
        (2, signal.SIGINT),
        (2, signal.SIGKILL),
    ],
)
def test_interrupted_session_leaves_no_server(tmp_path, processes, number):
    with Session(tmp_path, "-n", str(processes), seconds=1000.0) as session:
        wait_until(lambda: session.has_begun(max(1, processes)), "the tests have begun")
        os.killpg(session.process.pid, number)
        session.process.wait()
        if number == signal.SIGINT:
            wait_until(lambda: not session.leftovers(), "everything is removed")
        else:  # no process was left to delete the folder
            folder = session.looks()[0][0]
            wait_until(lambda: set(session.leftovers()) == {folder}, "no server is left")
            with Session(tmp_path) as successor:
                assert successor.wait() == 0
            assert not Path(folder).exists(), "the next session deletes it"


@pytest.mark.long
@pytest.mark.timeout(240)
def test_time_limit_breaks_one_test_alone(tmp_path):
    with Session(tmp_path, tests=STUCK) as session:
        assert session.wait(patience=200) == 1
        assert "1 failed, 2 passed" in session.text(), session.text()


def test_version_option_starts_no_server(tmp_path):
    with Session(tmp_path, "--version") as session:
        assert session.wait() == 0
        assert not session.looks()
