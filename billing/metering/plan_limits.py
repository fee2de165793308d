"""The limits of a user: those of the plan, and the installation's where the plan has none.

The user's row names its plan, and each process keeps all plans in memory, so that a limit costs neither a
statement nor a round trip. A change by staff takes effect within REFRESH seconds: the plans are read again after
a response, and the ones read before serve until then.
"""

from __future__ import annotations

import time
from typing import Any

from django.conf import settings
from django.db.models.signals import post_delete, post_save

from billing.models import Plan
from chatproject.lib import db, rate_limits
from chatproject.lib.env import Limit

REFRESH = 5.0  # seconds
MEGABYTE = 10**6  # as sizes are written on pages

# The named limits that a plan may replace: its column, and the seconds of the period.
RATES = {
    "messages": ("messages_per_minute", 60),
    "uploads": ("uploads_per_hour", 3600),
    "api_requests": ("api_requests_per_minute", 60),
    "shares": ("shares_per_hour", 3600),
}


class _Memory:
    """The plans as they were last read, by their keys; None is the key of the default plan."""

    def __init__(self) -> None:
        self.found: dict[int | None, Plan] | None = None
        self.due = 0.0  # time.monotonic() of the next reading

    def plan(self, plan_id: int | None) -> Plan | None:
        now = time.monotonic()
        if self.found is None or (plan_id is not None and plan_id not in self.found):
            self.read()
        elif now >= self.due:
            self.due = now + REFRESH
            db.after_response(self.read)
        return (self.found or {}).get(plan_id)

    def read(self) -> None:
        found: dict[int | None, Plan] = {}
        for plan in Plan.objects.all():
            found[plan.pk] = plan
            if plan.is_default:
                found[None] = plan
        self.found, self.due = found, time.monotonic() + REFRESH

    def forget(self) -> None:
        """Read the plans before the next use."""
        self.found = None


memory = _Memory()


def connect() -> None:
    """Let a process that changes a plan use the change at once."""
    post_save.connect(_changed, sender=Plan, dispatch_uid="billing.plan_saved")
    post_delete.connect(_changed, sender=Plan, dispatch_uid="billing.plan_deleted")


def _changed(**kwargs: Any) -> None:
    memory.forget()
    db.after_commit(memory.forget)


def limit_of(name: str, plan_id: int | None) -> Limit:
    """Return a named limit for the users of a plan; without an id those of the default plan."""
    limit = rate_limits.limit_of(name)
    if name in RATES:
        column, seconds = RATES[name]
        plan = memory.plan(plan_id)
        amount = getattr(plan, column) if plan is not None else None
        if amount is not None:
            return Limit(((amount, seconds),), limit.fails_closed)
    return limit


def parallel_runs(plan_id: int | None) -> int:
    """Return how many replies of a user are made at the same time."""
    plan = memory.plan(plan_id)
    own = plan.parallel_runs if plan is not None else None
    return int(own or settings.USER_CONCURRENCY)


def upload_bytes(plan_id: int | None) -> int:
    """Return the space for the files of a user."""
    plan = memory.plan(plan_id)
    own = plan.upload_mb if plan is not None else None
    return own * MEGABYTE if own is not None else int(settings.ATTACHMENT_USER_BYTES)
