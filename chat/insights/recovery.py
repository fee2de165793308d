"""The clock's care for insights: lost jobs and workers, jobs whose end was lost, and jobs that take too long."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q

from billing.metering import products
from billing.metering.pricing import Tokens
from billing.models import Hold, UsageRecord
from billing.models.usage import Purpose
from chat.insights import finish, generate, queue
from chat.insights.models import Insight, InsightJob
from chatproject.lib import db

logger = logging.getLogger(__name__)

EVERY = 15  # seconds
GRACE = timedelta(minutes=1)  # of a running one after its time; then its worker has died
QUEUED_AGAIN_AFTER = timedelta(minutes=2)  # of a waiting one, whose job may be lost
ATTEMPTS = 3  # of one try, that lose their worker
LONGEST = timedelta(hours=2)  # of a job; its hold lasts longer
BATCH = 200


def resume(now: datetime) -> None:
    """Enqueue lost insights again or give them up; end jobs that are over, too old, or whose document is gone."""
    lost_after = timedelta(seconds=settings.INSIGHT_SECONDS) + GRACE
    for one in _overdue(now, Insight.Status.RUNNING, lost_after):
        _give_back(one, now)
    waiting = []
    for one in _overdue(now, Insight.Status.QUEUED, QUEUED_AGAIN_AFTER):
        same = Insight.objects.filter(pk=one.pk, status=one.status, attempt=one.attempt)
        if same.update(beat_at=now):
            waiting.append(one)
    queue.enqueue(waiting)
    _end_jobs(now)


def _overdue(now: datetime, status: Insight.Status, after: timedelta) -> list[Insight]:
    found = Insight.objects.filter(status=status, beat_at__lt=now - after)
    return list(found.select_related("job__category", "job__model").order_by("beat_at")[:BATCH])


def _give_back(one: Insight, now: datetime) -> None:
    """Queue an insight whose worker was lost, or fail it; what the worker asked for is recorded at our expense."""
    is_last = one.lost + 1 >= ATTEMPTS
    with transaction.atomic():
        same = Insight.objects.filter(pk=one.pk, status=one.status, attempt=one.attempt)
        changed = same.update(
            status=Insight.Status.FAILED if is_last else Insight.Status.QUEUED,
            error="unavailable" if is_last else "",
            lost=F("lost") + 1,
            asked_tokens=0,
            beat_at=now,
            ended_at=now if is_last else None,
        )
        if not changed:
            return
        if one.asked_tokens and settings.BILLING and one.job.model is not None:
            cost = products.absorb(
                user_id=one.job.owner_id,
                id=one.job_id,
                attempt=one.attempt,
                step=generate.step_of(one, 0),
                model=one.job.model.provider_model,
                name=one.job.category.name,
                tokens=Tokens(input=one.asked_tokens),
                source=UsageRecord.Source.COUNTED,
                finish=UsageRecord.Finish.CRASHED,
                purpose=Purpose.INSIGHT,
            )
            Insight.objects.filter(pk=one.pk).update(
                input_tokens=F("input_tokens") + one.asked_tokens, cost=F("cost") + cost
            )
    logger.warning("%s lost its worker at attempt %d", one, one.attempt)
    if is_last:
        finish.end_if_over(one.job_id, by=Hold.Resolver.SWEEPER)
    else:
        one.status = Insight.Status.QUEUED
        queue.enqueue([one])


def _end_jobs(now: datetime) -> None:
    """End active jobs without open insights, and those that must not go on."""
    active = InsightJob.objects.filter(status=InsightJob.Status.ACTIVE)
    still = Insight.objects.filter(job=OuterRef("pk"), status__in=Insight.OPEN)
    over = active.filter(~Exists(still)).values_list("pk", flat=True)[:BATCH]
    gone = Q(document__deleted_at__isnull=False) | Q(owner__is_active=False)
    stopped = active.filter(gone | Q(created_at__lt=now - LONGEST)).values_list("pk", flat=True)
    try:
        for job_id in list(over):
            finish.end_if_over(job_id, by=Hold.Resolver.SWEEPER)
        for job_id in list(stopped[:BATCH]):
            _stop(job_id, now)
    except db.MoneyBusy:
        logger.warning("the end of jobs of insights waits for an account")


def _stop(job_id: UUID, now: datetime) -> None:
    job = InsightJob.objects.select_related("document", "owner").filter(pk=job_id).first()
    if job is None:
        return
    if job.document.deleted_at is None and job.owner.is_active:
        # It took too long: what is open has failed, and can be tried again for nothing.
        open_ones = Insight.objects.filter(job=job, status__in=Insight.OPEN)
        open_ones.update(status=Insight.Status.FAILED, error="unavailable", ended_at=now)
        finish.end_if_over(job.pk, by=Hold.Resolver.SWEEPER)
    else:
        finish.stop(job.pk, by=Hold.Resolver.SWEEPER)
