"""Insights for tests: a category for sale, a chat, a purchase, and the work of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User
from billing.metering import settlement
from chat.documents.models import Block, Document
from chat.insights import generate, queue, seeds, unlock
from chat.insights.models import Category, InsightJob, InsightType
from chatproject.lib import db
from tests.support import money

PRICE = 30_000_000
NOW = timezone.now()


def for_sale() -> Category:
    """Return the first category, which the flush between tests may have removed."""
    Category.objects.all().delete()
    made = Category.objects.create(**seeds.CATEGORY)
    for position, fields in enumerate(seeds.TYPES):
        InsightType.objects.create(category=made, position=position, **fields)
    return made


@pytest.fixture
def category(db, assistant) -> Category:
    """The first category."""
    return for_sale()


@pytest.fixture
def payer(owner: User) -> None:
    """The owner has 100 credits."""
    money.grant(settlement.account_of(owner.pk), 100_000_000)


def chat_of(owner: User, *texts: str, senders: Sequence[str] = "AB", **fields: Any) -> Document:
    """Store a chat of the user, of which two people say a text each in turn."""
    document: Document = Document.objects.create(
        owner=owner, size=9, sha256=str(len(texts)), file="none", status="ready",
        **{"name": "Chat", "format": "whatsapp", "kind": "chat"} | fields,
    )  # fmt: skip
    Block.objects.bulk_create(
        Block(
            document=document,
            position=at,
            kind="message",
            sender=senders[at % len(senders)],
            sent_at=NOW,
            text=text,
        )
        for at, text in enumerate(texts)
    )
    return document


def buy(owner: User, document: Document) -> InsightJob:
    """Buy the first category at its price."""
    return unlock.unlock(user=owner, document_id=document.pk, slug="portrait", price=PRICE)[0]


async def work(*, most: int = 99) -> None:
    """Run waiting jobs as a worker does, so many one after the other or else all at once."""
    jobs = (await db.run(queue._queue().get_jobs))[:most]
    runs = []
    for job in jobs:
        await db.run(job.delete)
        runs.append(generate.run(job.kwargs["insight_id"], job.kwargs["attempt"]))
    if most < 99:
        for run in runs:
            await run
    else:
        await asyncio.gather(*runs)


def state(job: InsightJob) -> tuple[str, int, int | None]:
    """Return the status of a job, how many of its insights are done, and its charge."""
    job.refresh_from_db()
    return job.status, job.insights.filter(status="done").count(), job.charged
