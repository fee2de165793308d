"""Problems of the installation in the log, one line each, at the start of a process.

A daemon thread looks for them, so a start is neither delayed nor stopped by them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from chatproject.ops import doctor

logger = logging.getLogger(__name__)


def start(checks: Sequence[doctor.Check] = doctor.AT_START) -> threading.Thread:
    """Begin to look for problems; return the thread."""
    thread = threading.Thread(target=_report, args=[checks], name="start report", daemon=True)
    thread.start()
    return thread


def _report(checks: Sequence[doctor.Check]) -> None:
    for finding in doctor.examine(checks):
        if finding.level is doctor.Level.PROBLEM:
            logger.warning("%s: %s. %s", finding.part, finding.found, finding.advice)
