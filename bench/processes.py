"""Processes: their cost by role, read from /proc, and their end."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

Roles = Mapping[str, Sequence[int]]

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds


def cpu(roles: Roles) -> dict[str, float]:
    """Seconds of CPU time so far, of each role's processes and all of their descendants.

    A descendant that has ended counts with the one that waited for it, so the figure never falls.
    """
    # The four fields are utime, stime, and both of the children that the process waited for.
    return {
        role: TICK * sum(int(field) for pid in family for field in _stat(pid)[11:15])
        for role, family in families(roles).items()
    }


def memory(roles: Roles) -> dict[str, float]:
    """Megabytes (10^6 bytes) in memory by role.

    For a role of one process that is its RSS, as `ps` shows it. For several it is the sum of their PSS,
    in which memory that n processes share counts 1/n each.
    """
    found = {}
    for role, family in families(roles).items():
        if len(family) == 1:
            size = _kilobytes(f"/proc/{family[0]}/status", "VmRSS")
        else:
            size = sum(_kilobytes(f"/proc/{pid}/smaps_rollup", "Pss") for pid in family)
        found[role] = size * 1024 / 1e6
    return found


def families(roles: Roles) -> dict[str, list[int]]:
    """The processes of each role, with all of their descendants."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*"):
        if fields := _stat(int(path.name)):
            children[int(fields[1])].append(int(path.name))
    found = {role: list(pids) for role, pids in roles.items()}
    for family in found.values():
        for pid in family:  # it grows meanwhile
            family += children[pid]
    return found


def alive(roles: Roles) -> list[str]:
    """The roles of which every process still runs."""
    return [
        role
        for role, pids in roles.items()
        if all(_stat(pid)[:1] not in ([], ["Z"], ["X"]) for pid in pids)
    ]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none when the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _kilobytes(path: str, name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
    except OSError:  # the process has ended
        return 0
    return int(found[1]) if found else 0


def end(started: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """End processes with SIGTERM, or SIGKILL after so many seconds; return when all have ended."""
    for process in started:
        process.terminate()
    give_up_at = time.monotonic() + seconds
    for process in started:
        try:
            process.wait(max(0.0, give_up_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
