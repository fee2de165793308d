"""The end of insights, and of their jobs: charged once, for what was delivered, in the transaction that ends the job."""

from __future__ import annotations

from uuid import UUID

from django.db.models import Count, Q
from django.utils import timezone

from billing.metering import products
from billing.models import Hold
from billing.models.usage import Purpose
from chat import protocol
from chat.insights.models import Insight, InsightJob
from chat.streaming import groups
from chatproject.lib import db
from chatproject.lib.log_events import log_event
from chatproject.lib.pubsub.layer import publish

Status = InsightJob.Status


def end_if_over(job_id: UUID, by: Hold.Resolver = Hold.Resolver.WORKER) -> None:
    """End a job whose insights have all ended, or record that a retry has completed it; announce its state.

    Raises db.MoneyBusy, after which the clock ends the job.
    """
    job: InsightJob | None = db.money_transaction(_end, job_id, by)
    if job is not None:
        _report(job)
    announce(job_id)


def _end(job_id: UUID, by: Hold.Resolver) -> InsightJob | None:
    """Return the job if this call has ended it."""
    job = _locked(job_id)
    if job is None or job.status not in (Status.ACTIVE, Status.PARTIAL):
        return None
    done = Count("pk", filter=Q(status=Insight.Status.DONE))
    still = Count("pk", filter=Q(status__in=Insight.OPEN))
    counts = Insight.objects.filter(job=job).aggregate(done=done, open=still)
    if counts["open"]:
        return None
    if job.status == Status.PARTIAL:  # its charge is final
        if counts["done"] == job.total:
            InsightJob.objects.filter(pk=job.pk).update(status=Status.DONE)
        return None
    status = Status.FAILED
    if counts["done"]:
        status = Status.DONE if counts["done"] == job.total else Status.PARTIAL
    _charge(job, status, counts["done"], by)
    return job


def stop(job_id: UUID, by: Hold.Resolver = Hold.Resolver.USER) -> None:
    """End an active job whose document or owner is gone: charged for what was delivered, the rest is dropped."""
    db.money_transaction(_stop, job_id, by)


def _stop(job_id: UUID, by: Hold.Resolver) -> None:
    job = _locked(job_id)
    if job is None or job.status != Status.ACTIVE:
        return
    # One that is being stored at this moment is waited for: then it is done, or is not stored.
    mine = Insight.objects.filter(job=job)
    mine.filter(status__in=Insight.OPEN).update(
        status=Insight.Status.FAILED, error="stopped", ended_at=timezone.now()
    )
    _charge(job, Status.STOPPED, mine.filter(status=Insight.Status.DONE).count(), by)


def _locked(job_id: UUID) -> InsightJob | None:
    rows = InsightJob.objects.select_for_update(no_key=True, of=("self",))
    return rows.select_related("category", "model").filter(pk=job_id).first()


def _charge(job: InsightJob, status: InsightJob.Status, done: int, by: Hold.Resolver) -> None:
    job.status, job.delivered, job.ended_at, job.charged = status, done, timezone.now(), 0
    if job.is_held:  # late, as it locks the account
        job.charged = products.settle(
            user_id=job.owner_id,
            id=job.pk,
            model=job.model.provider_model if job.model else "",
            name=job.category.name,
            cost=products.share(job.price, done, job.total),
            purpose=Purpose.INSIGHT,
            by=by,
        )
    job.save(update_fields=["status", "delivered", "charged", "ended_at"])


def _report(job: InsightJob) -> None:
    log_event(
        "insights_ended",
        job_id=job.pk,
        user_id=job.owner_id,
        outcome=str(job.status),
        delivered=job.delivered,
        total=job.total,
        charged_microcredits=job.charged,
    )


def announce(job_id: UUID) -> None:
    """Publish the state of a job to its owner's pages; call it after the commit."""
    job = InsightJob.objects.filter(pk=job_id).first()
    if job is None:
        return
    found = Insight.objects.filter(job=job).values_list("status", flat=True)
    statuses = list(found)
    event = protocol.InsightUpdated(
        job=job.pk,
        document=job.document_id,
        status=job.status,
        done=statuses.count(Insight.Status.DONE),
        failed=statuses.count(Insight.Status.FAILED),
        total=job.total,
    )
    publish(groups.user_group(job.owner_id), event.encode())
