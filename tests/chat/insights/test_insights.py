"""Paid insights: one job, one hold, one charge, whatever is repeated, lost or killed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from billing.ledger import audit
from billing.metering import settlement
from billing.models import Hold, LedgerEntry, UsageRecord
from chat.documents.models import Block, Document
from chat.errors import ChatError
from chat.insights import finish, generate, queue, recovery, seeds, unlock
from chat.insights.models import Category, Insight, InsightJob, InsightType
from chatproject.lib import db
from tests.support import money
from tests.support.threads import race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker_loop")]

PRICE = 30_000_000
NOW = timezone.now()


@pytest.fixture
def category(db, assistant) -> Category:
    """The first category, which the flush between tests may have removed."""
    Category.objects.all().delete()
    made = Category.objects.create(**seeds.CATEGORY)
    for position, fields in enumerate(seeds.TYPES):
        InsightType.objects.create(category=made, position=position, **fields)
    return made


@pytest.fixture
def payer(owner) -> None:
    money.grant(settlement.account_of(owner.pk), 100_000_000)


def chat_of(owner, *texts: str) -> Document:
    document: Document = Document.objects.create(
        owner=owner, name="Chat", format="whatsapp", kind="chat", size=9, sha256=str(len(texts)),
        file="none", status="ready",
    )  # fmt: skip
    Block.objects.bulk_create(
        Block(
            document=document,
            position=at,
            kind="message",
            sender="AB"[at % 2],
            sent_at=NOW,
            text=text,
        )
        for at, text in enumerate(texts)
    )
    return document


def buy(owner, document) -> InsightJob:
    return unlock.unlock(user=owner, document_id=document.pk, slug="portrait", price=PRICE)[0]


async def work(*, most: int = 99) -> None:
    """Run waiting jobs as a worker does."""
    for _ in range(most):
        jobs = await db.run(queue._queue().get_jobs)
        if not jobs:
            return
        await db.run(jobs[0].delete)
        kwargs = jobs[0].kwargs
        await generate.run(kwargs["insight_id"], kwargs["attempt"])


def state(job: InsightJob) -> tuple[str, int, int | None]:
    job.refresh_from_db()
    return job.status, job.insights.filter(status="done").count(), job.charged


async def test_unlocked_category_delivers_and_charges_once(owner, payer, category):
    document = await db.run(chat_of, owner, "Quote [[json=valid rate=0]]", "hello")
    job = await db.run(buy, owner, document)
    assert (await db.run(buy, owner, document)).pk == job.pk
    await work()
    assert await db.run(state, job) == ("done", 6, PRICE)
    await db.run(finish.end_if_over, job.pk)  # a job is delivered twice
    assert await db.run(LedgerEntry.objects.filter(kind="usage").count) == 1
    records = await db.run(list, UsageRecord.objects.filter(run_id=job.pk, purpose="insight"))
    assert sum(one.charged for one in records) == PRICE
    assert len([one for one in records if one.absorbed]) == 6
    moments = await db.run(Insight.objects.get, job=job, key="moments")
    assert moments.data
    assert moments.data["moments"][0]["sender"] == "A"  # its quote was found in line 0
    assert await db.run(audit.check) == []


async def test_failures_lower_the_charge_and_are_retried(owner, payer, category):
    broken = InsightType.objects.filter(key__in=["style", "plans"])
    await db.run(broken.update, prompt="[[json=wrong rate=0]]")
    await db.run(InsightType.objects.filter(key="moods").update, prompt="[[json=repair rate=0]]")
    others = InsightType.objects.filter(key__in=["topics", "questions", "moments"])
    await db.run(others.update, prompt="[[json=fenced rate=0]]")
    document = await db.run(chat_of, owner, "hello", "yes")
    job = await db.run(buy, owner, document)
    await work()
    assert await db.run(state, job) == ("partial", 4, PRICE * 4 // 6)
    failed = await db.run(list, job.insights.filter(status="failed"))
    assert {one.error for one in failed} == {"bad_answer"}
    balance = await db.run(money.state, await db.run(settlement.account_of, owner.pk))

    rows = Insight.objects.filter(pk__in=[one.pk for one in failed])
    await db.run(rows.update, prompt="[[json=valid rate=0]]")
    for one in failed:
        await db.run(unlock.retry, user=owner, insight_id=one.pk)
    await work()
    assert await db.run(state, job) == ("done", 6, PRICE * 4 // 6)
    assert await db.run(money.state, await db.run(settlement.account_of, owner.pk)) == balance
    assert await db.run(audit.check) == []


async def test_lost_worker_and_queue_lose_nothing(owner, payer, category):
    document = await db.run(chat_of, owner, "[[json=valid rate=0]]", "hello")
    job = await db.run(buy, owner, document)
    await work(most=2)
    jobs = await db.run(queue._queue().get_jobs)
    claimed = await db.run(
        generate._claim, jobs[0].kwargs["insight_id"], 0
    )  # and the worker is killed
    assert claimed is not None
    await db.run(queue._queue().empty)  # Redis loses the others
    finished = await db.run(list, job.insights.filter(status="done").values_list("pk", "ended_at"))
    later = timezone.now() + timedelta(minutes=10)
    await db.run(recovery.resume, later)
    await work()
    assert await db.run(state, job) == ("done", 6, PRICE)
    lost = await db.run(Insight.objects.get, pk=claimed.insight.pk)
    assert (lost.attempt, lost.lost) == (2, 1)
    kept = await db.run(
        list, job.insights.filter(pk__in=[pk for pk, _ in finished]).values_list("pk", "ended_at")
    )
    assert sorted(kept) == sorted(finished)
    crashed = UsageRecord.objects.filter(finish="crashed", purpose="insight")
    assert await db.run(crashed.count) == 1
    assert await db.run(LedgerEntry.objects.filter(kind="usage").count) == 1
    assert await db.run(audit.check) == []


async def test_deleted_document_ends_its_job(owner, payer, category):
    document = await db.run(chat_of, owner, "[[json=valid rate=0]]", "hello")
    job = await db.run(buy, owner, document)
    await work(most=2)
    await db.run(Document.objects.filter(pk=document.pk).update, deleted_at=timezone.now())
    await work()
    assert await db.run(state, job) == ("stopped", 2, PRICE * 2 // 6)
    assert await db.run(audit.check) == []


def test_parallel_unlocks_make_one_job(owner, payer, category):
    document = chat_of(owner, "hello", "yes")
    found = race([lambda: buy(owner, document)] * 10)
    assert len({job.pk for job in found}) == 1
    assert InsightJob.objects.count() == Hold.objects.count() == 1
    assert Insight.objects.count() == 6


def test_refused_unlocks_buy_nothing(owner, category):
    document = chat_of(owner, "hello", "yes")
    dear = 10**12
    Category.objects.update(price=dear)
    for price, code in ((dear, "insufficient_credits"), (PRICE, "price_changed")):
        with pytest.raises(ChatError) as refused:
            unlock.unlock(user=owner, document_id=document.pk, slug="portrait", price=price)
        assert refused.value.code == code
    assert not InsightJob.objects.exists()
    owner.is_staff = True
    owner.save()
    job, is_new = unlock.unlock(user=owner, document_id=document.pk, slug="portrait", price=0)
    assert (is_new, job.is_held) == (True, False)
