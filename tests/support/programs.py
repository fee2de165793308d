"""Programs that tests start: their output is read line by line, and none outlives its test."""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

PATIENCE = 60.0  # seconds: only so that a hang fails


class Program:
    """A running program whose output is read line by line.

    At the end of the ``with`` its process group is killed.
    """

    def __init__(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._wanted = True
        self._new: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._new.put(line.decode(errors="replace").rstrip("\n"))
            if not self._wanted:
                return
        self._new.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # With its children: one that kept the pipe open would block the reader.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def wait_for(self, text: str, patience: float = PATIENCE) -> str:
        """Return the next line that contains this text, past all lines before it."""
        give_up_at = time.monotonic() + patience
        while True:
            try:
                line = self._new.get(timeout=max(0.0, give_up_at - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {text!r} in {patience} s:\n{self.text()}") from None
            assert line is not None, f"it ended without {text!r}:\n{self.text()}"
            self.lines.append(line)
            if text in line:
                return line

    def stop_reading(self) -> None:
        """Close the reading end of the pipe while the program runs."""
        assert self.process.stdout is not None
        self._wanted = False
        self._reader.join(PATIENCE)
        self.process.stdout.close()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for the end; returns the exit code. ``lines`` has the whole output then."""
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it still runs after {patience} s:\n{self.text()}") from None
        while (line := self._new.get(timeout=patience)) is not None:
            self.lines.append(line)
        return code

    def text(self) -> str:
        return "\n".join(self.lines)


def wait_until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    give_up_at = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < give_up_at, f"not in {patience} s: {what}"
        time.sleep(0.02)


def is_open(port: int) -> bool:
    """Whether a program listens on this port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_healthy(port: int) -> bool:
    """Whether a web process on this port of loopback answers `GET /health` with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def environment(**changes: str) -> dict[str, str]:
    """The environment of this process, with changes."""
    return {**os.environ, **changes}
