"""Starts processes that cannot outlive the one that started them.

This file is also the program in between: run by its path, it sets what a process can only change for
itself (user, capabilities, parent-death signal) and replaces itself with the command. It imports
little, because every start pays for the imports.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

# linux/prctl.h, linux/securebits.h and linux/capability.h
PR_SET_PDEATHSIG = 1
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2

CANNOT_EXECUTE = 126  # exit code, as in shells


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged user that a process started by root runs as.

    ``reads_everything`` lets it pass folders that only root may enter (a project below a home of
    mode 0700): the process keeps one capability, CAP_DAC_READ_SEARCH, which gives no right to write.
    """

    uid: int
    gid: int
    reads_everything: bool = False


def spawn(
    command: Sequence[str | Path],
    *,
    death_signal: signal.Signals = signal.SIGKILL,
    account: Account | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    output: int | IO[bytes] = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, with stdout and stderr going to ``output``.

    On Linux it receives ``death_signal`` when this process ends for any reason, SIGKILL included;
    on other systems it would live on. A command that cannot be executed ends with exit code 126,
    with the reason in ``output``.
    """
    words = [str(word) for word in command]
    if sys.platform == "linux":
        user = f"{account.uid}:{account.gid}:{account.reads_everything:d}" if account else ""
        shim = [sys.executable, "-I", "-S", __file__]
        words = [*shim, str(os.getpid()), str(int(death_signal)), user, *words]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603  the callers' own commands, never a shell
            words,
            cwd=cwd,
            env=env,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    if threading.current_thread() is threading.main_thread():
        return start()
    with _lock:
        if _lasting_thread.ident is None:
            _lasting_thread.start()
    answer: _Answer = queue.SimpleQueue()
    _requests.put((start, answer))
    result = answer.get()
    if isinstance(result, OSError):
        raise result
    return result


def _serve_requests() -> None:
    while True:
        start, answer = _requests.get()
        try:
            answer.put(start())
        except OSError as error:
            answer.put(error)


# Linux sends the death signal when the *thread* that started the child ends: the child of a
# short-lived thread would be killed at once. Therefore one thread, which lives as long as the
# process, starts the children of all threads but the main one.
_Answer = queue.SimpleQueue["subprocess.Popen[bytes] | OSError"]
_requests: queue.SimpleQueue[tuple[Callable[[], subprocess.Popen[bytes]], _Answer]]
_requests = queue.SimpleQueue()
_lasting_thread = threading.Thread(target=_serve_requests, name="spawn", daemon=True)
_lock = threading.Lock()


def become(parent: int, death_signal: int, user: str, command: Sequence[str]) -> NoReturn:
    """Replace this process with ``command``; see :func:`spawn`, which runs this file for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if user:
            uid, gid, reads_everything = map(int, user.split(":"))
            _drop_root(libc, Account(uid, gid, bool(reads_everything)))
        # After the change of user, which resets it.
        _check(libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0), "set the parent-death signal")
        if os.getppid() != parent:
            sys.exit("The process that started this one has ended.")
        os.execvp(command[0], list(command))  # noqa: S606  no shell is the point
    except OSError as error:
        print(f"Cannot start {command[0]}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(CANNOT_EXECUTE)


def _drop_root(libc: ctypes.CDLL, account: Account) -> None:
    if account.reads_everything:
        # Without this bit access(2), which Postgres uses on its own files, ignores the capabilities
        # of a process whose real user is not root.
        action = "keep the right to enter every folder (CAP_SETPCAP is missing)"
        _check(libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0), action)
    os.setgroups([])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    if account.reads_everything:
        _keep_reading(libc)


def _keep_reading(libc: ctypes.CDLL) -> None:
    """Keep one capability: CAP_DAC_READ_SEARCH, or the one that containers usually have instead."""
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(struct.calcsize("=6I"))
    _check(libc.capget(header, data), "read its capabilities")
    permitted = struct.unpack("=6I", data.raw)[1]
    can_search = permitted & 1 << CAP_DAC_READ_SEARCH
    capability = CAP_DAC_READ_SEARCH if can_search else CAP_DAC_OVERRIDE
    action, mask = "keep the right to enter every folder", 1 << capability
    _check(libc.capset(header, struct.pack("=6I", mask, mask, mask, 0, 0, 0)), action)
    # A program without privileges of its own keeps only ambient capabilities over exec.
    _check(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0), action)


def _check(result: int, action: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: could not {action}")


if __name__ == "__main__":
    become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
