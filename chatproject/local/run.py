"""``make run``: the whole service on a bare machine, until Ctrl-C.

    python -m chatproject.local run           everything: servers, database, Procfile
    python -m chatproject.local manage …      manage.py with the environment of that instance

``.data/`` holds the data of Postgres and Valkey, the secret key, the logs, and during a run the
environment of its processes (``.data/env``).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, NoReturn

from django.core.exceptions import ImproperlyConfigured

from chatproject.lib import env
from chatproject.local.embeddings import EmbeddingServer
from chatproject.local.servers import (
    BASE_DIR,
    HOST,
    MODEL_CONTEXT,
    MODEL_NAME,
    EmbeddedServer,
    ModelServer,
    PostgresServer,
    ServerError,
    ValkeyServer,
    free_port,
    is_free,
    kept_secret,
)
from chatproject.local.spawn import spawn
from chatproject.local.supervisor import STOP_SIGNALS, Backoff, Console, Supervisor, read_procfile

DATA_DIR = BASE_DIR / ".data"
ENV_PATH = DATA_DIR / "env"
LOCK_PATH = DATA_DIR / "lock"

NAME = "parley"  # prefix of the lines of `make run` itself
PORT = 8000
PORTS_TO_TRY = 20  # from PORT on; then any free one
WATCH_INTERVAL = 0.5  # seconds
CLEAR_UP_SECONDS = 10  # beyond the longest drain, before SIGKILL


class RunError(Exception):
    """A command cannot go on; the message is a sentence for the user."""


def run() -> None:
    """Start everything on this machine and keep it running until a signal comes.

    Raises RunError, ServerError or ImproperlyConfigured with a sentence for the user.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, frame: sys.exit(128 + received))
    env.load_file(BASE_DIR, env.text("ENV_FILE"))
    # Postgres, started by root, runs as another user and must be able to pass through the folder.
    DATA_DIR.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
    with contextlib.ExitStack() as cleanup:
        lock = cleanup.enter_context(_only_one())
        _set_up_site()
        address = f"http://localhost:{os.environ['PORT']}"
        servers = []
        for server in _missing_servers():
            _say(f"Starting {server.name} …")
            cleanup.callback(server.stop)
            server.start()
            os.environ[server.variable] = server.url
            servers.append(server)
        later = []
        if not env.secret("EMBEDDINGS_BASE_URL"):
            later.append(EmbeddingServer(log_path=DATA_DIR / "logs" / "embeddings.log"))
            cleanup.callback(later[0].stop)
            os.environ["EMBEDDINGS_BASE_URL"] = later[0].url
        _say("Preparing the database and the static files …")
        for command in ("migrate --noinput", "collectstatic --noinput", "create_catalogue"):
            _run_manage(*command.split())
        cleanup.callback(ENV_PATH.unlink, missing_ok=True)
        write_env_file()

        commands = with_processes_per_core(read_procfile(BASE_DIR / "Procfile"))
        console = Console([NAME, *commands])
        watch = Watch(servers, later=later, console=console, address=address)
        cleanup.callback(watch.finish)
        watch.start()
        _note(lock, f"runs at {address}")
        drain = max(env.integer("WORKER_DRAIN_SECONDS", 25), env.integer("WEB_DRAIN_SECONDS", 10))
        stop_timeout = drain + CLEAR_UP_SECONDS
        Supervisor(
            commands, cwd=BASE_DIR, stop_timeout=stop_timeout, console=console, name=NAME
        ).run()
        # Stopping the servers takes a moment, and an interrupted stop helps no one.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _only_one() -> Iterator[IO[str]]:
    """Hold the lock of the project's folder; the locked file names the holder and its state."""
    with LOCK_PATH.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RunError(
                f"Parley {lock.read().strip()} from this folder already."
                " Stop it with Ctrl-C in its terminal."
            ) from None
        _note(lock, "is starting")
        yield lock


def _note(lock: IO[str], state: str) -> None:
    lock.truncate(0)
    lock.write(f"{state} (process {os.getpid()})\n")
    lock.flush()


def _set_up_site() -> None:
    """Set the variables that settings.py needs for a site on loopback, unless the user did."""
    os.environ["PORT"] = str(choose_port())
    if not env.secret("SECRET_KEY"):
        os.environ["SECRET_KEY"] = kept_secret(DATA_DIR / "secret-key")
    os.environ.setdefault("HTTPS", "0")
    os.environ.setdefault("ALLOW_UNVERIFIED_CREDITS", "1")
    if not env.text("ALLOWED_HOSTS"):
        os.environ["ALLOWED_HOSTS"] = "localhost,127.0.0.1,[::1]"


def choose_port() -> int:
    """Return PORT, or the next port that is free in IPv4 and IPv6; print a line when it differs."""
    wanted = env.integer("PORT", PORT, least=1, most=65_535)
    for port in range(wanted, min(wanted + PORTS_TO_TRY, 65536)):
        # A browser may resolve "localhost" to either address.
        if is_free(port, HOST) and is_free(port, "::1"):
            break
    else:
        port = free_port()
    if port != wanted:
        _say(f"Port {wanted} is taken; using {port}")
    return port


def _missing_servers() -> Iterator[EmbeddedServer]:
    """Yield a server for each service that the environment does not name."""
    logs = DATA_DIR / "logs"
    # Full pools of all processes (`low` and clock, too), and some connections for tools.
    processes = sum(processes_per_role().values()) + 2
    connections = 50 + processes * env.integer("DB_POOL_SIZE", 16, least=2)
    if not env.secret("DATABASE_URL"):
        yield PostgresServer(
            DATA_DIR / "postgres",
            password=True,
            settings={"max_connections": str(connections)},
            log_path=logs / "postgres.log",
        )
    if not env.secret("REDIS_URL"):
        yield ValkeyServer(
            DATA_DIR / "valkey",
            password=True,
            settings={"appendonly": "yes"},
            log_path=logs / "valkey.log",
        )
    if not env.secret("OPENAI_BASE_URL"):
        if env.secret("OPENAI_API_KEY"):
            _say(
                "OPENAI_API_KEY is ignored because OPENAI_BASE_URL is not set"
                " (OpenAI's is https://api.openai.com/v1)"
            )
        os.environ["OPENAI_API_KEY"] = "none"  # the embedded model needs no key
        os.environ["DEFAULT_MODEL"] = MODEL_NAME
        os.environ["DEFAULT_MODEL_CONTEXT"] = str(MODEL_CONTEXT)
        yield ModelServer(log_path=logs / "model.log")


def processes_per_role() -> dict[str, int]:
    """Return the number of web and of worker processes: by default one of each per core."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return {
        "web": env.integer("WEB_PROCESSES", cores, least=1, most=256),
        "worker": env.integer("WORKER_PROCESSES", cores, least=1, most=256),
    }


def with_processes_per_core(commands: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the commands by name, those of web and worker several times: `web.1`, `web.2` …"""
    counts = processes_per_role()
    started: dict[str, list[str]] = {}
    for name, command in commands.items():
        count = counts.get(name, 1)
        shared = [*command, "--reuse-port"] if name == "web" and count > 1 else command
        started |= {f"{name}.{n + 1}" if count > 1 else name: shared for n in range(count)}
    return started


def _run_manage(*arguments: str) -> None:
    with tempfile.TemporaryFile() as output:
        process = spawn([sys.executable, "manage.py", *arguments], cwd=BASE_DIR, output=output)
        try:
            code = process.wait()
        finally:  # for Ctrl-C
            process.kill()
            process.wait()
        if code != 0:
            output.seek(0)
            raise RunError(
                f"manage.py {' '.join(arguments)} failed:\n{output.read().decode(errors='replace')}"
            )


def write_env_file() -> None:
    """Write all documented variables that are set to ENV_PATH, which `manage` reads."""
    names = {name for known in documented_variables() for name in (known, f"{known}_FILE")}
    names.remove("ENV_FILE")  # its readers use this file in that one's place
    lines = [f'{name}="{os.environ[name]}"\n' for name in sorted(names & os.environ.keys())]
    ENV_PATH.unlink(missing_ok=True)
    ENV_PATH.touch(mode=0o600)
    ENV_PATH.write_text("".join(lines), encoding="utf-8")


def documented_variables() -> list[str]:
    """Return the names of all environment variables of Parley, from .env.example."""
    example = (BASE_DIR / ".env.example").read_text(encoding="utf-8")
    return re.findall(r"^# ?([A-Z_]+)=", example, re.MULTILINE)


class Watch(threading.Thread):
    """Restarts embedded servers that end, and prints the address as soon as the site answers.

    Then it starts the servers of `later`, which the site can do without.
    """

    def __init__(
        self,
        servers: Sequence[EmbeddedServer],
        *,
        later: Sequence[EmbeddedServer] = (),
        console: Console,
        address: str,
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._backoffs = {server: Backoff() for server in servers}
        self._started_at = dict.fromkeys(servers, time.monotonic())
        self._start_at = dict.fromkeys(servers, float("inf"))
        self._later = later
        self._console = console
        self._address = address
        self._ending = threading.Event()

    def run(self) -> None:
        is_announced = False
        while not self._ending.wait(WATCH_INTERVAL):
            for server in self._backoffs:
                if not server.is_running:
                    self._restart(server)
            if not is_announced and self._site_answers():
                is_announced = True
                self._announce()
                for server in self._later:
                    self._start_later(server)

    def finish(self) -> None:
        """Stop the thread; after it returns no server is restarted."""
        self._ending.set()
        self.join()

    def _start_later(self, server: EmbeddedServer) -> None:
        self._backoffs[server] = Backoff()
        self._start_at[server] = 0.0
        self._restart(server)

    def _restart(self, server: EmbeddedServer) -> None:
        now = time.monotonic()
        if self._start_at[server] == float("inf"):
            pause = self._backoffs[server].after(now - self._started_at[server])
            self._say(f"{server.name.capitalize()} has ended; again in {pause:g} s")
            self._start_at[server] = now + pause
        elif now >= self._start_at[server]:
            self._started_at[server] = now
            self._start_at[server] = float("inf")
            try:
                server.start()
            except (ServerError, OSError) as error:
                for line in str(error).splitlines():
                    self._say(line)

    def _site_answers(self) -> bool:
        connection = http.client.HTTPConnection(HOST, int(os.environ["PORT"]), timeout=5.0)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status < http.HTTPStatus.INTERNAL_SERVER_ERROR
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _announce(self) -> None:
        self._say(f"Parley runs at {self._address}")
        self._say(
            f"For a staff user, run make staff in another terminal; then {self._address}/admin/"
        )
        if not env.flag("DEBUG", default=False):
            self._say("To try buying credits, start with DEBUG=1 make run: it adds a sandbox bank")
        self._say("Ctrl-C stops everything; the data stays in .data/")

    def _say(self, line: str) -> None:
        self._console.print(NAME, line)


def manage(arguments: Sequence[str]) -> NoReturn:
    """Replace this process with manage.py in the environment of `run`. Raises RunError without one."""
    if not ENV_PATH.exists():
        raise RunError("Parley is not running: start it with make run first.")
    running = dict(env.parse_file(ENV_PATH))
    os.environ.update(running)
    os.chdir(BASE_DIR)
    os.execv(sys.executable, [sys.executable, "manage.py", *arguments])  # noqa: S606


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chatproject.local")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="start everything")
    manager = commands.add_parser("manage", help="manage.py with the environment of `run`")
    manager.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    try:
        if options.command == "run":
            run()
        else:
            manage(options.arguments)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (RunError, ServerError, ImproperlyConfigured, ValueError) as error:
        sys.exit(str(error))
