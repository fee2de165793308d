"""`make run` on a copy of the project: starts, restarts, stored data and refusals."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from chatproject.lib import env
from chatproject.local import run
from chatproject.local.servers import BASE_DIR, MODEL_NAME, children_of, free_port, is_alive
from tests.support.programs import PATIENCE, Program, is_open, wait_until

LEFT_OUT = shutil.ignore_patterns(
    ".venv*", ".git", ".data", ".env", "staticfiles", "tests", "__pycache__", ".*_cache", ".coverage*",
)  # fmt: skip
START = 300.0  # seconds: the first start makes all tables; only so that a hang fails


@pytest.fixture
def project(server_folder: Path) -> Iterator[Path]:
    """A fresh copy of the project in a folder with a space, with the packages of this environment."""
    copy = server_folder / "a copy of it"
    # With its times, or make would install everything once more.
    shutil.copytree(BASE_DIR, copy, ignore=LEFT_OUT)
    (copy / ".venv").symlink_to(Path(sys.prefix))
    yield copy
    wait_until(lambda: not processes_below(copy), f"everything ends: {processes_below(copy)}")


def processes_below(folder: Path) -> list[str]:
    """The command lines of all processes that name this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if str(folder) in line and is_alive(int(path.parent.name)):
            found.append(line)
    return found


def bare_environment(**changes: str) -> dict[str, str]:
    """This environment without any variable of Parley."""
    ours = {*run.documented_variables(), "DJANGO_SETTINGS_MODULE", "MAKEFLAGS", "MAKELEVEL"}
    return {**{name: value for name, value in os.environ.items() if name not in ours}, **changes}


def get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


def make(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *words],
        cwd=project,
        env=bare_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=START,
    )


def refused(project: Path, *words: str) -> str:
    """The output of a make that fails."""
    done = make(project, *words)
    assert done.returncode != 0
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_make_run_serves_from_a_bare_folder(project):
    """It avoids a taken port, restarts what dies, and keeps data and port over a SIGKILL."""
    with socket.create_server(("127.0.0.1", free_port())) as other:
        taken = other.getsockname()[1]
        bare = bare_environment(PORT=str(taken), WEB_PROCESSES="2", WORKER_PROCESSES="2")
        with Program(["make", "run"], cwd=project, env=bare) as run:
            run.wait_for(f"Port {taken} is taken")
            port, pid = wait_until_up(run, project)
            assert port != taken
            wait_until(lambda: get(port, "/health/ready") == 200, "it is ready")
            assert get(port, "/accounts/login/") == 200
            assert f"Parley runs at http://localhost:{port}" in refused(project, "run")

            user = "from accounts.models import User; User(email='kept@example.org').save()"
            shell(project, user)
            model = "from chat.models import Assistant; print(Assistant.objects.get().model.name)"
            assert MODEL_NAME in shell(project, model)
            urls = check_that_all_is_private(project)
            check_that_all_come_back(run, pid, urls)
            key = (project / ".data/secret-key").read_text()
            os.kill(pid, signal.SIGKILL)
            run.wait()

    with Program(["make", "run"], cwd=project, env=bare_environment(PORT=str(port))) as run:
        assert wait_until_up(run, project)[0] == port
        assert (project / ".data/secret-key").read_text() == key
        kept = "from accounts.models import User; print(User.objects.get().email)"
        assert "kept@example.org" in shell(project, kept)
        urls = check_that_all_is_private(project)
        stop_as_from_a_terminal(run)
    ports = [port, *(int(found) for found in re.findall(r":(\d+)/", " ".join(urls)))]
    assert len(ports) == 4
    assert not any(map(is_open, ports))
    assert not (project / ".data/env").exists()
    refused(project, "staff")


def wait_until_up(run: Program, project: Path) -> tuple[int, int]:
    """The port of the site and the process id of the supervisor."""
    address = re.search(r"runs at http://localhost:(\d+)$", run.wait_for("runs at", START))
    assert address is not None
    run.wait_for("Ctrl-C stops everything")
    lock = (project / ".data/lock").read_text()
    return int(address[1]), int(re.findall(r"process (\d+)", lock)[0])


def stop_as_from_a_terminal(run: Program) -> None:
    """Ctrl-C goes to the whole foreground process group, here make and its child."""
    os.killpg(run.process.pid, signal.SIGINT)
    run.wait()


def shell(project: Path, script: str) -> str:
    done = make(project, "manage", f'ARGS=shell -v0 -c "{script}"')
    assert done.returncode == 0, done.stdout
    return done.stdout


def check_that_all_is_private(project: Path) -> list[str]:
    data = project / ".data"
    for path in [data / "env", data / "secret-key", *data.glob("*/*password")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for folder in ("logs", "postgres", "valkey"):
        assert stat.S_IMODE((data / folder).stat().st_mode) == 0o700, folder
    running = dict(env.parse_file(data / "env"))
    urls = [running[name] for name in ("DATABASE_URL", "REDIS_URL", "OPENAI_BASE_URL")]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(re.sub(r":[^:@]*@", ":wrong@", urls[0]))
    with pytest.raises(redis.AuthenticationError):
        ping(re.sub(r"//.*@", "//", urls[1]))
    return urls


def check_that_all_come_back(run: Program, pid: int, urls: list[str]) -> None:
    before = children_of(pid)
    assert len(before) == 10
    for child in before:
        os.kill(child, signal.SIGKILL)
    expected = {"Postgres", "Valkey", "The language model", "The embedding model", "low", "clock"}
    expected |= {"web.1", "web.2", "worker.1", "worker.2"}
    while expected:
        ended = run.wait_for("; again in")
        expected = {name for name in expected if f"| {name} " not in ended}
    wait_until(lambda: len(children_of(pid)) == 10, "all run again")
    assert not any(map(is_alive, before))
    wait_until(lambda: answers(urls), "the three servers answer again")


def answers(urls: list[str]) -> bool:
    try:
        with psycopg.connect(urls[0]):
            ping(urls[1])
        return get(int(re.findall(r":(\d+)", urls[2])[0]), "/health") == 200
    except (psycopg.OperationalError, redis.ConnectionError, OSError):
        return False


def ping(url: str) -> None:
    with redis.from_url(url, retry=None) as client:
        client.ping()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_services_of_the_env_file_are_used(project, own_postgres, own_valkey):
    port = free_port()
    (project / ".env").write_text(
        f"DATABASE_URL={own_postgres.url}\nREDIS_URL={own_valkey.url}\nPORT={port}\n"
        "WEB_PROCESSES=1\nWORKER_PROCESSES=1\n"
        "OPENAI_BASE_URL=http://127.0.0.1:9/v1\nDEFAULT_MODEL=big-model\nSECRET_KEY=fixed\n"
        "EMBEDDINGS_BASE_URL=none\n"
    )
    with Program(["make", "run"], cwd=project, env=bare_environment()) as run:
        started_on, pid = wait_until_up(run, project)
        assert started_on == port
        assert len(children_of(pid)) == 4
        assert "Starting" not in run.text()
        assert get(port, "/health/ready") == 200
        assert "big-model fixed" in shell(
            project,
            "from django.conf import settings as s; from chat.models import Assistant;"
            " print(Assistant.objects.get().model.name, s.SECRET_KEY)",
        )
        stop_as_from_a_terminal(run)
    with psycopg.connect(own_postgres.url) as connection:
        assert connection.execute("SELECT count(*) FROM chat_assistant").fetchone() == (1,)
    assert {path.name for path in (project / ".data").iterdir()} == {"lock"}


def test_wrong_variable_is_named_before_the_start(project):
    (project / ".env").write_text("PORT=http\n")
    output = refused(project, "run")
    assert "PORT='http'" in output
    assert "Traceback" not in output
    assert "Starting" not in output


def test_setting_refused_by_django_is_shown(project, own_postgres, own_valkey):
    (project / ".env").write_text(
        f"DATABASE_URL={own_postgres.url}\nREDIS_URL={own_valkey.url}\n"
        "OPENAI_BASE_URL=ftp://model.example.org\n"
    )
    assert "OPENAI_BASE_URL must begin with" in refused(project, "run")
    assert not (project / ".data/env").exists()


def test_make_asks_for_a_newer_python(project):
    (project / ".venv").unlink()
    assert "Python 3.11 or newer" in refused(project, "run", "PYTHON=")


def test_make_asks_for_the_venv_package(project):
    (project / ".venv").unlink()
    (project / "python3").write_text("#!/bin/sh\nexit 1\n")
    (project / "python3").chmod(0o755)
    assert "apt-get install python3-venv" in refused(project, "run", "PYTHON=./python3")


def test_processes_are_one_per_core(monkeypatch):
    commands = {name: ["python", name] for name in ("web", "worker", "low", "clock")}
    monkeypatch.delenv("WEB_PROCESSES", raising=False)
    monkeypatch.setenv("WORKER_PROCESSES", "3")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5})
    started = run.with_processes_per_core(commands)
    assert [name for name in started if name.startswith("web")] == ["web.1", "web.2"]
    assert started["web.2"] == ["python", "web", "--reuse-port"]
    assert [name for name in started if name.startswith("wo")] == [f"worker.{n}" for n in (1, 2, 3)]
    assert (started["low"], started["clock"]) == (["python", "low"], ["python", "clock"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert run.with_processes_per_core(commands)["web"] == ["python", "web"]


def test_env_file_keeps_special_values(tmp_path, monkeypatch):
    values = {"SITE_NAME": 'Ann\'s "best" # site = mine', "SECRET_KEY": "'quoted'", "DEBUG": ""}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPENAI_API_KEY_FILE", "/a path/key")
    monkeypatch.setattr(run, "ENV_PATH", tmp_path / "env")
    run.write_env_file()
    read = dict(env.parse_file(tmp_path / "env"))
    assert {name: read[name] for name in values} == values
    assert read["OPENAI_API_KEY_FILE"] == "/a path/key"
    assert "PATH" not in read
    assert "ENV_FILE" not in read


def test_port_taken_on_ipv6_is_avoided(monkeypatch, capsys):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        taken = other.getsockname()[1]
        monkeypatch.setenv("PORT", str(taken))
        assert run.choose_port() != taken
    assert f"Port {taken} is taken" in capsys.readouterr().out
