"""The cost of processes: CPU time and memory by role, read from /proc."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

Roles = Mapping[str, Sequence[int]]

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds


def cpu(roles: Roles) -> dict[str, float]:
    """Seconds of CPU time so far, of each role's processes and all of their descendants.

    A descendant that has ended counts with the one that waited for it, so the figure never falls.
    """
    children = _children()
    # The four fields are utime, stime, and both of the children that the process waited for.
    return {
        role: TICK
        * sum(
            int(field) for pid in _with_descendants(pids, children) for field in _stat(pid)[11:15]
        )
        for role, pids in roles.items()
    }


def memory(roles: Roles) -> dict[str, float]:
    """Megabytes (10^6 bytes) in memory by role.

    For a role of one process that is its RSS, as `ps` shows it. For several it is the sum of their PSS,
    in which memory that n processes share counts 1/n each.
    """
    children = _children()
    found = {}
    for role, pids in roles.items():
        family = _with_descendants(pids, children)
        if len(family) == 1:
            size = _kilobytes(f"/proc/{family[0]}/status", "VmRSS")
        else:
            size = sum(_kilobytes(f"/proc/{pid}/smaps_rollup", "Pss") for pid in family)
        found[role] = size * 1024 / 1e6
    return found


def alive(roles: Roles) -> list[str]:
    """The roles of which every process still runs."""
    return [
        role
        for role, pids in roles.items()
        if all(_stat(pid)[:1] not in ([], ["Z"], ["X"]) for pid in pids)
    ]


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(path.name))
        if fields:
            found.setdefault(int(fields[1]), []).append(int(path.name))
    return found


def _with_descendants(pids: Sequence[int], children: Mapping[int, list[int]]) -> list[int]:
    family = list(pids)
    for pid in family:  # it grows meanwhile
        family += children.get(pid, [])
    return family


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
