"""The memory of a worker process: its size, and less work for the garbage collector."""

from __future__ import annotations

import gc
import threading

from chatproject.lib.metrics import resident_bytes


def resident_megabytes() -> float:
    """Return the resident memory of this process in MB; 0 where /proc is missing (not Linux)."""
    return resident_bytes() / 2**20


def freeze_startup_objects() -> None:
    """Exempt all objects made so far from garbage collection, until `gc.unfreeze()`.

    The collector would scan them again and again, and block the event loop for a tenth of a
    second each time. A worker outside the main thread shares its process and freezes nothing.
    """
    if threading.current_thread() is threading.main_thread():
        gc.collect()
        gc.freeze()
