"""The child's side of a sandbox, a program of its own: limits itself, then calls one function.

It is started by chatproject.lib.sandbox.process with a request in one line of JSON, and writes frames.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SPARE = 32_000_000  # bytes above the limit, to report that it was reached
RESERVED = 1_000_000_000  # addresses that the interpreter and shared libraries take, about


def main() -> None:
    request: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    out = os.fdopen(os.dup(1), "wb", buffering=65_536)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what a library prints is not a frame
        os.dup2(nothing, stream)
    _die_with(request["parent"])
    sys.path.insert(0, request["root"])
    limit(request["limits"])
    from chatproject.lib.sandbox import landlock
    from chatproject.lib.sandbox.errors import Refused

    landlock.confine(
        root=request["root"],
        packages={"chatproject", request["function"].split(".")[0]},
        readable=request["readable"],
        writable=[*request["writable"], request["folder"]],
    )
    try:
        _run(request, out)
    except Refused as error:
        _fail(out, "failed", error.code, error.details)
    except MemoryError:
        _spend_spare()
        _fail(out, "too_much_memory")
    except OSError as error:
        full = {errno.EFBIG: "too_much_output", errno.ENOMEM: "too_much_memory"}
        _fail(out, full.get(error.errno or 0, "crashed"), _place(error))
    except BaseException as error:  # noqa: BLE001 # whatever the file made the function do
        _fail(out, "crashed", _place(error))
    out.flush()
    os._exit(0)  # without the threads and the clean-up of libraries


def _die_with(parent: int) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def limit(limits: dict[str, Any]) -> None:
    """Set the limits of this process."""
    memory = limits["memory"]
    space = limits["address_space"] or memory
    cpu = limits["cpu"]
    for kind, soft, hard in (
        # Private writable memory, then all addresses, of which the code of libraries takes some.
        (resource.RLIMIT_DATA, memory, memory + SPARE),
        (resource.RLIMIT_AS, space + RESERVED, space + RESERVED + SPARE),
        (resource.RLIMIT_CPU, cpu, cpu + 5),
        (resource.RLIMIT_NOFILE, limits["files"], limits["files"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead
    os.nice(limits["nice"])


def _spend_spare() -> None:
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (hard, hard))


def _run(request: dict[str, Any], out: IO[bytes]) -> None:
    import msgspec

    module, _, name = request["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    encode = msgspec.json.Encoder().encode
    if request["mode"] == "lines":
        found: Iterable[Any] = function(request["argument"])
        for one in found:
            out.write(b"d%b\n" % encode(one))
    else:
        one = function(request["argument"])
        if isinstance(one, bytes):
            out.write(b"b%d\n" % len(one))
            out.write(one)
            return
        out.write(b"d%b\n" % encode(one))
    out.write(b".\n")


def _fail(
    out: IO[bytes], code: str, reason: str = "", details: dict[str, Any] | None = None
) -> None:
    error = {"code": code, "reason": reason, "details": details or {}}
    out.write(b"e%b\n" % json.dumps(error).encode())


def _place(error: BaseException) -> str:
    """Return the type of an exception and its place in the code, without its message, which may have text."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{at}"


if __name__ == "__main__":
    main()
