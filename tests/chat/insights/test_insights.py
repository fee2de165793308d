"""Paid insights: one job, one hold, one charge, whatever is repeated, lost or killed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.ledger import audit
from billing.metering import settlement
from billing.models import Hold, LedgerEntry, UsageRecord
from billing.reports import statements
from chat.documents.models import Block
from chat.errors import ChatError
from chat.insights import finish, generate, queue, recovery, unlock
from chat.insights.models import Category, Insight, InsightJob, InsightType
from chatproject.lib import db
from tests.support import money
from tests.support.insights import PRICE, buy, category, chat_of, payer, state, work
from tests.support.threads import race

__all__ = ["category", "payer"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker_loop")]


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
    (line,) = (
        await db.run(statements.history, await db.run(settlement.account_of, owner.pk))
    ).lines[:1]
    assert (line.title, line.amount) == ("Insights: Portrait of a chat", -PRICE)
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


@pytest.mark.usefixtures("payer")
async def test_ten_parallel_requests_buy_once(owner, category):
    document = await db.run(chat_of, owner, "[[json=valid rate=0]]", "yes")
    url = reverse("chat:insight_category", args=[document.pk, "portrait"])

    def browser() -> Callable[[], int]:
        client = Client()
        client.force_login(owner)
        return lambda: client.post(url, {"price": PRICE}).status_code

    answers = await db.run(race, [await db.run(browser) for _ in range(10)])
    assert answers == [302] * 10
    job = await db.run(InsightJob.objects.get)
    held = await db.run(Hold.objects.get)
    assert (held.pk, held.amount, await db.run(Insight.objects.count)) == (job.pk, PRICE, 6)
    await work()
    assert await db.run(state, job) == ("done", 6, PRICE)
    assert await db.run(LedgerEntry.objects.filter(kind="usage").count) == 1
    assert await db.run(audit.check) == []


async def test_types_share_one_context_in_parallel(owner, payer, category, provider, valkey_client):
    await db.run(category.types.filter(key="style").update, prompt="[[json=valid rate=0]]")
    held = category.types.exclude(key="style")
    await db.run(held.update, prompt="[[json=valid rate=0 hold=1 key=all]]")
    job = await db.run(buy, owner, await db.run(chat_of, owner, "hello", "yes"))
    await work(most=1)
    (key,) = valkey_client.scan_iter("insights:context:*")
    assert 0 < valkey_client.ttl(key) <= 20 * 60
    await db.run(Block.objects.all().delete)  # another look at the document would find nothing
    working = asyncio.create_task(work())
    await asyncio.to_thread(provider.wait, held=5)  # all are asked before one has answered
    provider.release("all")
    await working
    assert await db.run(state, job) == ("done", 6, PRICE)
    texts = [one["messages"][-1]["content"] for one in provider.requests]
    assert (len(texts), {"hello" in text for text in texts}) == (6, {True})


def test_refused_unlocks_buy_nothing(owner, category):
    document = chat_of(owner, "hello", "yes")
    dear = 10**12
    Category.objects.update(price=dear)
    for price, code in ((dear, "insufficient_credits"), (PRICE, "price_changed")):
        with pytest.raises(ChatError) as refused:
            unlock.unlock(user=owner, document_id=document.pk, slug="portrait", price=price)
        assert refused.value.code == code
    assert not InsightJob.objects.exists()
    assert not Hold.objects.exists()
    owner.is_staff = True
    owner.save()
    job, is_new = unlock.unlock(user=owner, document_id=document.pk, slug="portrait", price=0)
    assert (is_new, job.is_held) == (True, False)
