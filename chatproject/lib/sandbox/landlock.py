"""Confines this process to some files and to no TCP connection, by Linux's Landlock (5.13 and later).

Without it in the kernel, or where a container forbids its calls, nothing is confined.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # numbers of system calls, on all machines
VERSION = 1  # a flag that asks for the version
PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
TRUNCATE = 1 << 14
READ = EXECUTE | READ_FILE | READ_DIR
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
# The rights of files that each version knows; those of the last one hold for later versions.
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}
TCP, TCP_SINCE = 3, 4  # to bind and to connect
SCOPES, SCOPES_SINCE = 3, 6  # abstract sockets, and signals to others

# Parts of the system that interpreters and libraries read.
SYSTEM = (
    "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/fonts",
    "/proc/self", "/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/sys/devices/system/cpu", "/sys/fs/cgroup",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)


class Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class Rule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Return the version of Landlock, 0 without one."""
    found: int = _libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION)
    return max(0, found)


def confine(
    *, root: str, packages: Iterable[str], readable: Iterable[str], writable: Iterable[str]
) -> bool:
    """Confine this process for the rest of its life; return whether the kernel can.

    It may read the interpreter, `packages` below the project's `root`, the files and folders `readable`, and
    change `writable`. Raises OSError when the kernel has Landlock, and refuses the rules.
    """
    if not (known := version()):
        return False
    rights = RIGHTS[min(known, max(RIGHTS))]
    ruleset = Ruleset(
        rights, TCP if known >= TCP_SINCE else 0, SCOPES if known >= SCOPES_SINCE else 0
    )
    size = 8 if known < TCP_SINCE else 16 if known < SCOPES_SINCE else 24
    rules = _checked(_libc.syscall(CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0))
    try:
        for path in (*SYSTEM, sys.prefix, sys.base_prefix, *readable):
            _allow(rules, path, READ)
        for package in packages:
            _allow(rules, str(Path(root) / package), READ)
        _allow(rules, root, READ_DIR)  # the import looks for packages there
        for path in (*DEVICES, *writable):
            _allow(rules, path, rights)
        _checked(_libc.syscall(RESTRICT_SELF, rules, 0))
    finally:
        os.close(rules)
    return True


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = Rule(rights if os.path.isdir(path) else rights & OF_FILES, parent)
        _checked(_libc.syscall(ADD_RULE, rules, PATH_BENEATH, ctypes.byref(rule), 0))
    finally:
        os.close(parent)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
