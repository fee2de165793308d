"""Keeps the processes of a Procfile running: for ``make run``, or alone.

    python -m chatproject.local.supervisor Procfile

A process that ends is restarted after an exponential backoff. SIGINT, SIGTERM or SIGHUP stops all
processes in order; a second signal kills them. Production hosts have systemd or a container platform
for this.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from chatproject.local.spawn import spawn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_TIMEOUT = 35.0  # seconds from SIGTERM to SIGKILL
# A terminal, make and timeout(1) may each deliver the same Ctrl-C or SIGTERM.
ONE_SIGNAL = 0.5  # seconds in which further signals count as echoes of the first

FIRST_PAUSE = 0.5  # seconds before the first restart
MAX_PAUSE = 30.0
CALM = 60.0  # seconds of life after which a process counts as healthy again

MAX_LINE = 64 * 1024  # bytes; a longer line is printed in pieces
COLOURS = (36, 32, 35, 33, 34, 31)  # ANSI codes, one per process


class Console:
    """Prints lines of several processes, each after the process's name; safe in any thread."""

    def __init__(self, names: Sequence[str], *, output: IO[bytes] | None = None) -> None:
        self._output = output or sys.stdout.buffer
        self._lock = threading.Lock()
        width = max(map(len, names))
        colour = self._output.isatty() and not os.environ.get("NO_COLOR")
        self._prefixes = {
            name: f"\x1b[{COLOURS[index % len(COLOURS)]}m{name:{width}} |\x1b[0m ".encode()
            if colour
            else f"{name:{width}} | ".encode()
            for index, name in enumerate(names)
        }
        self.is_broken = False
        """Whether the terminal or pipe was closed."""

    def print(self, name: str, line: str | bytes) -> None:
        """Print one line, given without its line break."""
        line = line.encode(errors="replace") if isinstance(line, str) else line
        with self._lock:
            try:
                self._output.write(self._prefixes[name] + line + b"\n")
                self._output.flush()
            except OSError:
                self.is_broken = True


class Backoff:
    """Exponential backoff between restarts: doubles to ``MAX_PAUSE``, starts over after ``CALM``."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE

    def after(self, lived: float) -> float:
        """Return the seconds to wait before restarting a process that lived ``lived`` seconds."""
        pause = FIRST_PAUSE if lived >= CALM else self._next
        self._next = min(2 * pause, MAX_PAUSE)
        return pause


class Service:
    """One line of the Procfile and, while it runs, its process."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.start_at = 0.0  # time of the next start, while it does not run
        self.backoff = Backoff()
        self.rest = b""  # start of a line whose end has not arrived

    @property
    def output(self) -> IO[bytes]:
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout


class Supervisor:
    """Runs commands, by name, until a signal comes, and ends all of their processes.

    The first word ``python`` of a command means this interpreter. ``stop_timeout`` is the time in
    seconds from SIGTERM to SIGKILL.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        stop_timeout: float = STOP_TIMEOUT,
        console: Console | None = None,
        name: str = "supervisor",
    ) -> None:
        self._name = name
        self._services = [Service(name, command) for name, command in commands.items()]
        self._cwd = cwd
        self._env = {**(os.environ if env is None else env), "PYTHONUNBUFFERED": "1"}
        self._stop_timeout = stop_timeout
        self._console = console or Console([name, *commands])
        self._selector = selectors.DefaultSelector()
        self._stopping_since: float | None = None
        self._kill_at = float("inf")

    def run(self) -> None:
        """Start everything; return after a signal, when all processes have ended.

        Call it from the main thread only, since it handles signals.
        """
        with self._selector, _signals((*STOP_SIGNALS, signal.SIGCHLD)) as arrivals:
            self._selector.register(
                arrivals, selectors.EVENT_READ, lambda: self._on_signals(os.read(arrivals, 4096))
            )
            try:
                while self._stopping_since is None or self._running():
                    self._start_due()
                    self._handle_events()
                    self._reap()
                    if self._console.is_broken and self._stopping_since is None:
                        self._begin_to_stop()
                    if time.monotonic() >= self._kill_at:
                        self._kill_all()
            finally:
                self._kill_all()

    def _running(self) -> list[tuple[Service, subprocess.Popen[bytes]]]:
        return [(each, each.process) for each in self._services if each.process is not None]

    def _start_due(self) -> None:
        if self._stopping_since is not None:
            return
        for service in self._services:
            if service.process is None and time.monotonic() >= service.start_at:
                try:
                    self._start(service)
                except OSError as error:  # no memory, too many processes
                    self._start_later(service, f"cannot be started ({error.strerror})")

    def _start(self, service: Service) -> None:
        program, *arguments = service.command
        service.started_at = time.monotonic()
        service.process = spawn(
            [sys.executable if program == "python" else program, *arguments],
            cwd=self._cwd,
            env=self._env,
            output=subprocess.PIPE,
        )
        os.set_blocking(service.output.fileno(), False)
        self._selector.register(
            service.output, selectors.EVENT_READ, lambda: self._on_output(service)
        )

    def _handle_events(self) -> None:
        moments = [self._kill_at, time.monotonic() + 1.0]
        if self._stopping_since is None:
            moments += [s.start_at for s in self._services if s.process is None]
        for key, _ in self._selector.select(max(0.0, min(moments) - time.monotonic())):
            on_event: Callable[[], None] = key.data
            on_event()

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number not in STOP_SIGNALS:
                continue  # SIGCHLD: it only wakes the loop up
            if self._stopping_since is None:
                self._begin_to_stop()
            elif time.monotonic() - self._stopping_since > ONE_SIGNAL:
                self._kill_at = 0.0

    def _begin_to_stop(self) -> None:
        self._say("Stopping. Press Ctrl-C again to end everything at once.")
        self._stopping_since = time.monotonic()
        self._kill_at = self._stopping_since + self._stop_timeout
        for _, process in self._running():
            process.terminate()

    def _on_output(self, service: Service) -> bool:
        """Print the pending lines; return whether there may be more to read."""
        try:
            chunk = os.read(service.output.fileno(), MAX_LINE)
        except BlockingIOError:
            return False
        *lines, service.rest = (service.rest + chunk).split(b"\n")
        if service.rest and (not chunk or len(service.rest) >= MAX_LINE):
            lines.append(service.rest)
            service.rest = b""
        for line in lines:
            self._console.print(service.name, line)
        if not chunk and service.output in self._selector.get_map():
            self._selector.unregister(service.output)
        return bool(chunk)

    def _reap(self) -> None:
        for service, process in self._running():
            if (code := process.poll()) is not None:
                self._end(service, process)
                if self._stopping_since is None:
                    self._start_later(service, describe_exit(code))

    def _start_later(self, service: Service, reason: str) -> None:
        pause = service.backoff.after(time.monotonic() - service.started_at)
        service.start_at = time.monotonic() + pause
        self._say(f"{service.name} {reason}; again in {pause:g} s")

    def _end(self, service: Service, process: subprocess.Popen[bytes]) -> None:
        # The whole group: a child of an ended process may live on and keep its port.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while self._on_output(service):
            pass
        if service.output in self._selector.get_map():
            self._selector.unregister(service.output)
        service.output.close()
        service.process = None

    def _kill_all(self) -> None:
        for service, process in self._running():
            self._end(service, process)

    def _say(self, line: str) -> None:
        self._console.print(self._name, line)


@contextlib.contextmanager
def _signals(numbers: Sequence[signal.Signals]) -> Iterator[int]:
    """Yield a file descriptor from which each arriving signal is read as one byte, its number."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    old_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # A handler of its own: with SIG_IGN no byte would be written.
    old_handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield reading
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        os.close(reading)
        os.close(writing)


def describe_exit(code: int) -> str:
    """Return a process' exit code, negative for a signal, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was ended by {signal.Signals(-code).name}"


def read_procfile(path: Path) -> dict[str, list[str]]:
    """Return the commands of a Procfile by name, without `release`, which is no process to keep running.

    Raises ValueError that names a malformed line.
    """
    commands = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, command = line.partition(":")
        if not separator or not command.strip():
            raise ValueError(f"{path.name}, line {number}: write name: command.")
        if name.strip() != "release":
            commands[name.strip()] = shlex.split(command)
    return commands


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chatproject.local.supervisor")
    parser.add_argument("procfile", type=Path)
    parser.add_argument("--stop-timeout", type=float, default=STOP_TIMEOUT, metavar="SECONDS")
    options = parser.parse_args()
    commands = read_procfile(options.procfile)
    folder = options.procfile.resolve().parent
    Supervisor(commands, cwd=folder, stop_timeout=options.stop_timeout).run()


if __name__ == "__main__":
    main()
