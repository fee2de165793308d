"""What processes cost: CPU time and memory by role, read from /proc."""

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
    return {
        role: TICK * sum(_ticks(pid) for pid in _with_descendants(pids, children))
        for role, pids in roles.items()
    }


def memory(roles: Roles) -> dict[str, float]:
    """Megabytes (10^6 bytes) in memory by role; what several processes of it share counts once.

    For a role of one process that is its RSS, as `ps` shows it.
    """
    children = _children()
    found = {}
    for role, pids in roles.items():
        family = _with_descendants(pids, children)
        found[role] = (_rss(family[0]) if len(family) == 1 else sum(map(_pss, family))) / 1e6
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


def _ticks(pid: int) -> int:
    fields = _stat(pid)
    # utime, stime, and both of the children that it waited for.
    return sum(int(field) for field in fields[11:15])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _rss(pid: int) -> int:
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS")


def _pss(pid: int) -> int:
    """Resident memory in which what is shared by n processes counts 1/n."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def _kilobytes(path: Path, name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:  # it has ended
        return 0
    return 1024 * int(found[1]) if found else 0
