"""Keeps the processes of a Procfile running: for ``make run``, and for whoever likes it.

    python -m chatproject.local.supervisor Procfile

A process that ends is started again after a pause that grows while it keeps ending. SIGINT,
SIGTERM or SIGHUP ends all of them in order; a second signal at once. Production hosts have systemd
or a container platform for this.
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
from types import FrameType
from typing import IO

from chatproject.local.spawn import spawn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_TIMEOUT = 35.0  # seconds from SIGTERM to SIGKILL
# A terminal, make and timeout(1) may each deliver the same Ctrl-C or SIGTERM.
ONE_SIGNAL = 0.5  # seconds in which further signals are echoes of the first

FIRST_PAUSE = 0.5  # seconds before the first restart
LONGEST_PAUSE = 30.0
CALM = 60.0  # seconds of life after which a process counts as healthy again

LONGEST_LINE = 64 * 1024  # bytes; a longer one is printed in pieces
COLOURS = (36, 32, 35, 33, 34, 31)  # ANSI: one after the other


class Console:
    """Prints lines of several processes, each with its name before it; from any thread."""

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
        """Whether the reader is gone (a closed terminal or pipe)."""

    def print(self, name: str, line: str | bytes) -> None:
        """One line without its end."""
        line = line.encode(errors="replace") if isinstance(line, str) else line
        with self._lock:
            try:
                self._output.write(self._prefixes[name] + line + b"\n")
                self._output.flush()
            except OSError:
                self.is_broken = True


class Backoff:
    """The pauses between restarts: doubling to ``LONGEST_PAUSE``, forgotten after ``CALM``."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE

    def after(self, lived: float) -> float:
        """Seconds to wait before the next start of a process that lived so many seconds."""
        pause = FIRST_PAUSE if lived >= CALM else self._next
        self._next = min(2 * pause, LONGEST_PAUSE)
        return pause


class Service:
    """One line of the Procfile and, while it runs, its process."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.start_at = 0.0  # when it is to be started, while it does not run
        self.backoff = Backoff()
        self.rest = b""  # of a line whose end has not come yet

    @property
    def output(self) -> IO[bytes]:
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout


class Supervisor:
    """Runs commands, by name, until a signal ends it; then nothing of them is left.

    A command's first word ``python`` means this interpreter. ``stop_timeout`` is the time in
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
        """Start everything, and return when a signal came and all of it has ended.

        Only from the main thread, because of the signals.
        """
        with self._selector, _signals((*STOP_SIGNALS, signal.SIGCHLD)) as arrivals:
            self._selector.register(
                arrivals, selectors.EVENT_READ, lambda: self._on_signals(os.read(arrivals, 4096))
            )
            try:
                while not self._is_done():
                    self._start_what_is_due()
                    self._handle_events()
                    self._look_after_the_dead()
                    if self._console.is_broken and self._stopping_since is None:
                        self._begin_to_stop()
                    if time.monotonic() >= self._kill_at:
                        self._kill_all()
            finally:
                self._kill_all()

    def _is_done(self) -> bool:
        return self._stopping_since is not None and not self._running()

    def _running(self) -> list[Service]:
        return [service for service in self._services if service.process is not None]

    def _start_what_is_due(self) -> None:
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
                continue  # SIGCHLD, which is only here to wake the loop up
            if self._stopping_since is None:
                self._begin_to_stop()
            elif time.monotonic() - self._stopping_since > ONE_SIGNAL:
                self._kill_at = 0.0

    def _begin_to_stop(self) -> None:
        self._say("Stopping. Ctrl-C once more ends everything at once.")
        self._stopping_since = time.monotonic()
        self._kill_at = self._stopping_since + self._stop_timeout
        for service in self._running():
            assert service.process is not None
            service.process.terminate()

    def _on_output(self, service: Service) -> bool:
        """Print the lines that have come; False when there is nothing to read now."""
        try:
            chunk = os.read(service.output.fileno(), LONGEST_LINE)
        except BlockingIOError:
            return False
        *lines, service.rest = (service.rest + chunk).split(b"\n")
        if service.rest and (not chunk or len(service.rest) >= LONGEST_LINE):
            lines.append(service.rest)
            service.rest = b""
        for line in lines:
            self._console.print(service.name, line)
        if not chunk:
            self._stop_listening(service)
        return bool(chunk)

    def _stop_listening(self, service: Service) -> None:
        if service.output in self._selector.get_map():
            self._selector.unregister(service.output)

    def _look_after_the_dead(self) -> None:
        for service in self._running():
            assert service.process is not None
            if (code := service.process.poll()) is None:
                continue
            self._clear_away(service)
            if self._stopping_since is None:
                self._start_later(service, describe_exit(code))

    def _start_later(self, service: Service, reason: str) -> None:
        pause = service.backoff.after(time.monotonic() - service.started_at)
        service.start_at = time.monotonic() + pause
        self._say(f"{service.name} {reason}; again in {pause:g} s")

    def _clear_away(self, service: Service) -> None:
        assert service.process is not None
        # What it started itself may live on, and hold on to its port.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(service.process.pid, signal.SIGKILL)
        while self._on_output(service):
            pass
        self._stop_listening(service)
        service.output.close()
        service.process = None

    def _kill_all(self) -> None:
        for service in self._running():
            assert service.process is not None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(service.process.pid, signal.SIGKILL)
            service.process.wait()
            self._clear_away(service)

    def _say(self, line: str) -> None:
        self._console.print(self._name, line)


@contextlib.contextmanager
def _signals(numbers: Sequence[signal.Signals]) -> Iterator[int]:
    """A file descriptor that gives a byte, the number, for each of these signals that arrives."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    old_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    old_handlers = {number: signal.signal(number, _ignore) for number in numbers}
    try:
        yield reading
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_fd)
        os.close(reading)
        os.close(writing)


def _ignore(number: int, frame: FrameType | None) -> None:
    """The byte in the pipe is all that is wanted; SIG_IGN would not write one."""


def describe_exit(code: int) -> str:
    """A process' exit code, negative for a signal, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was ended by {signal.Signals(-code).name}"


def read_procfile(path: Path) -> dict[str, list[str]]:
    """The commands of a Procfile by name. Raises ValueError with the line that is none."""
    commands = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, command = line.partition(":")
        if not separator or not command.strip():
            raise ValueError(f"{path.name}, line {number}: write name: command.")
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
