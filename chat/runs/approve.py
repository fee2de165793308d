"""Approval of tools' calls: the user allows or refuses each that waits, and the run goes on.

A run that waits has no worker. Each decision is a compare-and-set on its call; the last one enqueues the run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from chat import access
from chat.errors import ChatError
from chat.models import Run
from chat.runs import start
from chat.tools.models import RunStep

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

Status = RunStep.Status

EXPIRED_AT_ONCE = 100


def decide(*, user: User, run_id: UUID, call: str, allow: bool) -> None:
    """Allow or refuse the call number `call` of a run. The same answer again has no further effect.

    Raises ChatError `not_found`, `not_allowed`, and `already_decided` for another answer than the first.
    """
    access.run(user, run_id, write=True)
    wanted = Status.ALLOWED if allow else Status.REFUSED
    with transaction.atomic():
        run = _lock(run_id)
        step = RunStep.objects.filter(run=run_id, number=int(call), kind=RunStep.Kind.CALL).first()
        if step is None:
            raise ChatError("already_decided" if run.has_ended else "not_found")
        if step.status != Status.WAITING:
            if step.status == wanted:
                return
            raise ChatError("already_decided")
        RunStep.objects.filter(pk=step.pk).update(status=wanted)
        goes_on = _go_on(run)
    if goes_on:
        _enqueue(run_id)


def expire(now: datetime) -> None:
    """Refuse the calls whose users did not answer in time; their runs go on without them."""
    due = Run.objects.filter(status=Run.Status.QUEUED, waits_until__lte=now)
    for run_id in list(due.values_list("pk", flat=True)[:EXPIRED_AT_ONCE]):
        with transaction.atomic():
            run = _lock(run_id)
            if run.waits_until is None or run.waits_until > now:
                continue
            RunStep.objects.filter(run=run_id, status=Status.WAITING).update(status=Status.EXPIRED)
            goes_on = _go_on(run)
        if goes_on:
            logger.info("the approval of a call of run %s expired", run_id)
            _enqueue(run_id)


def waiting_calls(run: Run) -> Sequence[RunStep]:
    """Return the calls of a run that wait for its user's answer."""
    return list(RunStep.objects.filter(run=run.pk, status=Status.WAITING).order_by("number"))


def _lock(run_id: UUID) -> Run:
    found: Run = Run.objects.select_for_update(no_key=True).get(pk=run_id)
    return found


def _go_on(run: Run) -> bool:
    """Return whether a locked run is to be enqueued: it waits, and no call of it does any longer."""
    if run.status != Run.Status.QUEUED or run.waits_until is None:
        return False
    if RunStep.objects.filter(run=run.pk, status=Status.WAITING).exists():
        return False
    Run.objects.filter(pk=run.pk).update(waits_until=None, queued_at=timezone.now())
    return True


def _enqueue(run_id: UUID) -> None:
    run = Run.objects.select_related("user", "conversation").get(pk=run_id)
    start.enqueue(run)
