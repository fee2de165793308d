"""The parent's side of a sandbox: starts the child, reads its output within the limits, and ends it."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from chatproject.lib.sandbox.errors import SandboxError

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[3]
CHILD = Path(__file__).with_name("child.py")
CHUNK = 262_144
SLICE = (
    1.0  # seconds of one wait at most, so that an exception sent to this thread is raised in time
)

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}

# Frames of the child's output: a letter and its content up to the end of the line. Bytes follow their line.
DATA, BYTES, ERROR, END = b"d", b"b", b"e", b"."


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one call. `seconds` leaves out the time in which the caller works on the lines of the child."""

    memory: int = 300_000_000  # bytes
    # Bytes of addresses, for libraries that reserve far more than they use (V8); 0: as `memory`.
    address_space: int = 0
    seconds: float = 60
    cpu: int = 60  # seconds
    output: int = 256_000_000  # bytes
    files: int = 64  # open at once
    file_bytes: int = 64_000_000  # of each file that it writes
    nice: int = 0  # of the scheduler: 10 for work that nobody waits for


def lines(
    function: str,
    argument: dict[str, Any],
    limits: Limits | None = None,
    *,
    readable: Sequence[str | os.PathLike[str]] = (),
    writable: Sequence[str | os.PathLike[str]] = (),
) -> Generator[dict[str, Any], None, None]:
    """Yield what a sandboxed generator yields. Raises SandboxError, perhaps after some lines.

    `function` is called with `argument`; it may read the files and folders `readable`, and write `writable`.
    Close the iterator (`contextlib.closing`) if it is not read to its end: that ends the child.
    """
    with _child("lines", function, argument, limits or Limits(), readable, writable) as child:
        for kind, content in child.frames():
            if kind == DATA:
                yield msgspec.json.decode(content)


def call(
    function: str,
    argument: dict[str, Any],
    limits: Limits | None = None,
    *,
    readable: Sequence[str | os.PathLike[str]] = (),
    writable: Sequence[str | os.PathLike[str]] = (),
) -> Any:
    """Return what a sandboxed function returns: bytes, or a value that JSON can hold. Raises SandboxError."""
    with _child("call", function, argument, limits or Limits(), readable, writable) as child:
        found: Any = None
        for kind, content in child.frames():
            found = content if kind == BYTES else msgspec.json.decode(content)
        return found


@contextmanager
def _child(
    mode: Literal["lines", "call"],
    function: str,
    argument: dict[str, Any],
    limits: Limits,
    readable: Sequence[str | os.PathLike[str]],
    writable: Sequence[str | os.PathLike[str]],
) -> Iterator[Child]:
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
        request = {
            "mode": mode,
            "function": function,
            "argument": argument,
            "limits": asdict(limits),
            "readable": [os.fspath(path) for path in readable],
            "writable": [os.fspath(path) for path in writable],
            "folder": folder,
            "root": str(ROOT),
            "parent": os.getpid(),
        }
        process = subprocess.Popen(  # noqa: S603 # our own interpreter and file
            [sys.executable, "-I", "-B", "-X", "utf8", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=ENVIRONMENT | {"HOME": folder, "TMPDIR": folder},
            start_new_session=True,
            bufsize=0,
        )
        try:
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin:  # it ended at once: `frames` says why
                process.stdin.write(msgspec.json.encode(request) + b"\n")
            yield Child(process, limits)
        finally:
            # With what it may have started, which is in its session.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


class Child:
    """The output of a running child, as frames."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits) -> None:
        assert process.stdout is not None
        self._process = process
        self._out = process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN | select.POLLHUP)
        self._left = limits.seconds
        self._most = limits.output
        self._read = 0

    def frames(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the frames of data with their kinds. Raises SandboxError unless the last one ends the call."""
        buffer = bytearray()
        while chunk := self._next():
            buffer += chunk
            if b"\n" not in chunk:
                continue
            *complete, rest = bytes(buffer).split(b"\n")
            buffer = bytearray(rest)
            for at, line in enumerate(complete):
                kind, content = line[:1], line[1:]
                if kind == END:
                    return
                if kind == ERROR:
                    error = msgspec.json.decode(content)
                    raise SandboxError(error["code"], error["reason"], error["details"])
                if kind == BYTES:
                    begun = b"\n".join([*complete[at + 1 :], rest])
                    yield kind, self._bytes(begun, int(content))
                    return
                yield kind, content
        raise self._death()

    def _bytes(self, begun: bytes, size: int) -> bytes:
        parts, got = [begun], len(begun)
        while got < size:
            if not (chunk := self._next()):
                raise self._death()
            parts.append(chunk)
            got += len(chunk)
        return b"".join(parts)[:size]

    def _next(self) -> bytes:
        """Return the next bytes of the output, none at its end; the time of waiting counts."""
        begun = time.monotonic()
        while not self._poll.poll(1000 * max(0.0, min(SLICE, self._left))):
            self._left -= time.monotonic() - begun
            begun = time.monotonic()
            if self._left <= 0:
                raise SandboxError("too_slow")
        self._left -= time.monotonic() - begun
        chunk = os.read(self._out, CHUNK)
        self._read += len(chunk)
        if self._read > self._most:
            raise SandboxError("too_much_output")
        return chunk

    def _death(self) -> SandboxError:
        """Return the error of a child that ended without a last frame."""
        try:
            code = self._process.wait(timeout=max(0.1, self._left))
        except subprocess.TimeoutExpired:  # it closed its output, and goes on
            return SandboxError("too_slow")
        if code in (
            -signal.SIGXCPU,
            -signal.SIGKILL,
        ):  # the second by the hard limit, or for memory
            code_word = "too_slow" if code == -signal.SIGXCPU else "too_much_memory"
            return SandboxError(code_word)
        reason = signal.Signals(-code).name if code < 0 else f"exit {code}"
        logger.warning("a sandboxed function ended the child: %s", reason)
        return SandboxError("crashed", reason)
