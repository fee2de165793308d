"""What billing does by the clock, and the jobs that it puts into the queue for it."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import django_rq
import pytest
from django.core import mail
from django.db import connection
from django.utils import timezone
from rq.job import Job, JobStatus

from billing import jobs, queue, schedule
from billing.ledger import postings
from billing.models import Account, DailyUsage, Hold, LedgerCheck, Order, Plan
from chatproject.lib.db import money_transaction
from tests.support import money

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

CREDIT = 1_000_000


def waiting() -> list[str]:
    """The jobs in line, by their ids."""
    return django_rq.get_queue("billing").job_ids


def turn(now: datetime | None = None, *, but: tuple[str, ...] = ()) -> None:
    """Everything is due once."""
    for task in schedule.tasks():
        if task.name not in but:
            task.run(now or timezone.now())


def test_a_turn_puts_each_task_into_the_queue_once():
    for _ in range(3):
        turn()
    assert sorted(waiting()) == [
        "task-expire-credits",
        "task-expire-holds",
        "task-monthly-credits",
        "task-nightly-check",
        "task-roll-up-usage",
        "task-tell-of-expiry",
        "task-tell-of-low-balances",
    ]


def test_every_task_has_a_job_that_can_be_done(account):
    for name in schedule.JOBS:
        jobs.run_task(name)
    assert [check.problems for check in LedgerCheck.objects.all()] == [[], []]
    with pytest.raises(KeyError):
        jobs.run_task("something else")


def test_jobs_do_what_they_are_named_for(account):
    now = timezone.now()
    Plan.objects.create(slug="all", name="All", monthly_credits=9, is_default=True)
    jobs.run_task("monthly credits")
    held = money.hold(account, 5, expires_at=now - timedelta(seconds=1))
    jobs.run_task("expire holds")
    held.refresh_from_db()
    assert (held.status, held.resolved_by) == (Hold.Status.RELEASED, Hold.Resolver.EXPIRY)
    assert money.state(account) == (9, 0, 0)
    jobs.run_task("roll up usage")
    assert not DailyUsage.objects.exists()


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.FINISHED, JobStatus.QUEUED])
def test_a_task_that_was_lost_or_is_over_is_put_into_the_queue_again(status):
    queue.enqueue_task("expire holds")
    stored = django_rq.get_queue("billing")
    job = Job.fetch("task-expire-holds", connection=stored.connection, serializer=stored.serializer)
    stored.connection.delete(stored.key)
    job.set_status(status)
    queue.enqueue_task("expire holds")
    assert waiting() == ["task-expire-holds"]


@pytest.mark.parametrize(("minutes", "is_enqueued"), [(5, False), (30, True)])
def test_a_task_with_a_worker_is_waited_for_until_its_worker_must_have_died(minutes, is_enqueued):
    queue.enqueue_task("expire holds")
    stored = django_rq.get_queue("billing")
    job = Job.fetch("task-expire-holds", connection=stored.connection, serializer=stored.serializer)
    stored.connection.delete(stored.key)
    job.started_at = datetime.now(UTC) - timedelta(minutes=minutes)
    job.save()
    job.set_status(JobStatus.STARTED)
    queue.enqueue_task("expire holds")
    assert bool(waiting()) == is_enqueued


@pytest.mark.parametrize(
    ("checked", "now", "is_due"),
    [
        ("", "2099-05-10 12:00", True),
        ("2099-05-10 03:01", "2099-05-10 12:00", False),
        ("2099-05-10 03:01", "2099-05-11 02:59", False),
        ("2099-05-10 03:01", "2099-05-11 03:00", True),
        # By staff in the evening: the night's own comes all the same.
        ("2099-05-10 22:00", "2099-05-11 03:00", True),
        ("2099-05-08 03:01", "2099-05-11 01:00", True),
    ],
)
def test_the_books_are_checked_once_a_night(checked, now, is_due):
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    if checked:
        started = datetime.fromisoformat(checked).replace(tzinfo=UTC)
        LedgerCheck.objects.create(started_at=started, entries=0)
        # One of the last hours only is no reason to leave the whole out.
        LedgerCheck.objects.create(started_at=moment, entries=0, is_full=False)
    [task] = [task for task in schedule.tasks() if task.name == "nightly check"]
    task.run(moment)
    assert ("task-nightly-check" in waiting()) == is_due


def test_wrong_books_freeze_the_account_and_call_staff(account, settings, caplog):
    settings.BILLING_ALERT_EMAIL = ["billing@example.org"]
    money.grant(account, 100)
    other = money.open_account(50)
    with connection.cursor() as cursor:
        # Past all the rules, as only a person with the right to alter tables can.
        cursor.execute(
            "ALTER TABLE billing_account DISABLE TRIGGER billing_account_in_balance;"
            "UPDATE billing_account SET balance = 150 WHERE balance = 100;"
            "ALTER TABLE billing_account ENABLE TRIGGER billing_account_in_balance"
        )
    jobs.run_task("check ledger")
    assert LedgerCheck.objects.get().problems
    account.refresh_from_db()
    other.refresh_from_db()
    assert (account.status, other.status) == (Account.Status.FROZEN, Account.Status.ACTIVE)
    [alert] = mail.outbox
    assert alert.to == ["billing@example.org"]
    assert f"account {account.pk}: The balance is 0.00015, but its lots hold 0.0001" in alert.body


def test_at_night_the_latest_payments_are_compared_with_the_providers(account):
    old, new = money.order(account), money.order(account)
    money.order(account)  # never came to a provider
    for order, name in ((old, "old"), (new, "new")):
        order.provider_order_id = name
        order.save()
    Order.objects.filter(pk=old.pk).update(created_at=timezone.now() - timedelta(days=9))
    jobs.run_task("nightly check")
    stored = django_rq.get_queue("billing")
    assert [job.kwargs for job in stored.jobs] == [{"order_id": str(new.pk)}]


def test_low_balances_are_looked_at_after_a_change(account):
    money.grant(account, 100 * CREDIT)
    for cost in itertools.repeat(30 * CREDIT, 3):
        held = money.hold(account, cost)
        money.settle(held, cost=cost)
    jobs.run_task("tell of low balances")
    jobs.run_task("tell of low balances")
    assert [one.to for one in mail.outbox] == [[account.user.email]]


def test_where_all_is_free_nobody_is_told_of_low_balances(account, settings):
    settings.BILLING = False
    money.grant(account, 100 * CREDIT)
    money_transaction(
        postings.adjust,
        account_id=account.pk,
        amount=-99 * CREDIT,
        key="most",
        actor_id=account.user_id,
        note="Most",
    )
    jobs.run_task("tell of low balances")
    assert mail.outbox == []
