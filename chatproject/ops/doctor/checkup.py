"""Runs checks at the same time, each within its time limit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from django.db import connections

from chatproject.lib.db import limits
from chatproject.ops.doctor.finding import Finding, one_line, problem

logger = logging.getLogger(__name__)

STATEMENT = 3.0  # seconds for each statement of a check


@dataclass(frozen=True, slots=True)
class Check:
    """A check of a part of the site, which yields its findings within so many seconds."""

    part: str
    run: Callable[[], Iterable[Finding]]
    seconds: float = 5.0


def examine(checks: Sequence[Check]) -> Iterator[Finding]:
    """Run all checks at the same time; yield the findings in the order of the checks.

    A check that is late is reported as a problem, behind the findings that it has yielded by then. Its
    daemon thread is left behind: each call in it has a time limit of its own.
    """
    runs = [_Run(check) for check in checks]
    for run in runs:
        yield from run.findings()


class _Run(threading.Thread):
    def __init__(self, check: Check) -> None:
        super().__init__(name=f"check {check.part}", daemon=True)
        self._check = check
        self._found: list[Finding] = []
        self._give_up_at = time.monotonic() + check.seconds
        self.start()

    def run(self) -> None:
        try:
            with limits.statements(STATEMENT):
                for finding in self._check.run():
                    self._found.append(finding)  # each one counts if a later one is late
        except Exception as error:
            # A check that fails must not hide the others.
            logger.debug("the check of %s failed", self._check.part, exc_info=True)
            found = f"the check failed: {type(error).__name__}: {one_line(error)}"
            advice = "If the lines above do not explain it, report it as a bug."
            self._found.append(problem(self._check.part, found, advice))
        finally:
            connections.close_all()

    def findings(self) -> list[Finding]:
        self.join(max(0.0, self._give_up_at - time.monotonic()))
        if not self.is_alive():
            return self._found
        late = f"no answer within {self._check.seconds:g} s"
        return [
            *self._found,
            problem(self._check.part, late, "Check the network and firewall on the way to it."),
        ]
