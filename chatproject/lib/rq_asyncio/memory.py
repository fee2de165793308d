"""The memory of a worker process: its size, and less work for the garbage collector."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path


def resident_megabytes() -> float:
    """Return the resident memory of this process in MB; 0 where /proc is missing (not Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def freeze_startup_objects() -> None:
    """Exempt all objects made so far from garbage collection, until `gc.unfreeze()`.

    The collector would scan them again and again, and block the event loop for a tenth of a
    second each time. A worker outside the main thread shares its process and freezes nothing.
    """
    if threading.current_thread() is threading.main_thread():
        gc.collect()
        gc.freeze()
