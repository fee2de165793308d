"""Runs checks at the same time, each within its time limit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from django.db import connections

from chatproject.lib.db import limits
from chatproject.ops.doctor.finding import Finding, Level, one_line, problem, warning

logger = logging.getLogger(__name__)

STATEMENT = 3.0  # seconds for each statement of a check


@dataclass(frozen=True, slots=True)
class Check:
    """A check of a part of the site, which yields its findings within so many seconds.

    `needs` are parts without which it fails; their checks come before it.
    """

    part: str
    run: Callable[[], Iterable[Finding]]
    seconds: float = 5.0
    needs: tuple[str, ...] = ()


def examine(checks: Sequence[Check]) -> Iterator[Finding]:
    """Run all checks at the same time; yield the findings in the order of the checks.

    A check that is late or fails is reported as a problem, behind the findings that it has yielded by
    then; or, when a part that it needs has a problem, as a warning that names that part. The daemon
    thread of a late check is left behind: each call in it has a time limit of its own.
    """
    runs = [_Run(check) for check in checks]
    broken: set[str] = set()
    for run in runs:
        for finding in run.findings(broken):
            if finding.level is Level.PROBLEM:
                broken.add(finding.part)
            yield finding


class _Run(threading.Thread):
    def __init__(self, check: Check) -> None:
        super().__init__(name=f"check {check.part}", daemon=True)
        self._check = check
        self._found: list[Finding] = []
        self._failure: Finding | None = None
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
            self._failure = problem(self._check.part, found, advice)
        finally:
            connections.close_all()

    def findings(self, broken: Collection[str]) -> list[Finding]:
        self.join(max(0.0, self._give_up_at - time.monotonic()))
        failure = self._failure
        if self.is_alive():
            late = f"no answer within {self._check.seconds:g} s"
            advice = "Check the network and firewall on the way to it."
            failure = problem(self._check.part, late, advice)
        if failure is None:
            return self._found
        if reason := next((part for part in self._check.needs if part in broken), None):
            found = f"not checked, because of the problem with {reason}"
            failure = warning(self._check.part, found, "Solve that, then check again.")
        return [*self._found, failure]
