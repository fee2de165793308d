"""Automatic titles: one call of a small model after the first reply, paid by the operator."""

from __future__ import annotations

import pytest

from billing.ledger import audit
from billing.models import UsageRecord
from chat.conversations import lifecycle
from chat.generation import generate, titles
from chat.models import Conversation, Message, Run
from chat.runs import queue
from chatproject.lib import db
from tests.support.conversations import send
from tests.support.runs import fresh

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker_loop")]


@pytest.fixture(autouse=True)
def title_model(settings, assistant) -> None:
    settings.TITLE_MODEL = assistant.model.provider_model


async def reply_to(owner, conversation, text: str) -> Run:
    run = await db.run(send, owner, conversation, text)
    await generate.run(run.pk, 1)
    return await db.run(fresh, run.pk)


def waiting() -> list[dict[str, str]]:
    return [job.kwargs for job in queue.rq_queue("low").get_jobs()]


async def test_first_reply_names_the_chat(owner, conversation):
    run = await reply_to(owner, conversation, "[[tokens=4 rate=0]] On tides")
    assert await db.run(waiting) == [{"run_id": str(run.pk)}]
    await titles.make_title(run.pk)
    named = await db.run(Conversation.objects.get, pk=conversation.pk)
    assert named.titled_by == "model"
    assert named.title not in ("", "[[tokens=4 rate=0]] On tides")
    record = await db.run(UsageRecord.objects.get, run_id=run.pk, purpose="title")
    assert (record.charged, record.absorbed) == (0, record.cost)
    assert record.cost > 0
    assert await db.run(audit.check) == []

    await titles.make_title(run.pk)  # the job is delivered twice
    await reply_to(owner, conversation, "[[tokens=4 rate=0]] More")
    assert len(await db.run(waiting)) == 1
    assert await db.run(UsageRecord.objects.filter(purpose="title").count) == 1


async def test_title_of_a_person_stays(owner, conversation):
    run = await reply_to(owner, conversation, "[[tokens=4 rate=0]] On tides")
    task = await db.run(titles._read, run.pk)
    assert task is not None
    await db.run(lifecycle.rename, user=owner, conversation_id=conversation.pk, title="Mine")
    await db.run(titles._store, task, "Theirs", None)  # the model's answer comes after the renaming
    named = await db.run(Conversation.objects.get, pk=conversation.pk)
    assert (named.title, named.titled_by) == ("Mine", "person")
    await titles.make_title(run.pk)
    assert (await db.run(Conversation.objects.get, pk=conversation.pk)).title == "Mine"


async def test_failure_leaves_the_first_line(owner, conversation, settings):
    run = await reply_to(owner, conversation, "[[tokens=4 rate=0]] On tides")
    asked = Message.objects.filter(conversation=conversation, role="user")
    await db.run(asked.update, text="[[status=400]] On tides")
    await titles.make_title(run.pk)
    settings.TITLE_MODEL = "unknown"
    await titles.make_title(run.pk)
    kept = await db.run(Conversation.objects.get, pk=conversation.pk)
    assert (kept.title, kept.titled_by) == ("[[tokens=4 rate=0]] On tides", "")
    assert not await db.run(UsageRecord.objects.filter(purpose="title").exists)


@pytest.mark.parametrize(
    ("answer", "title"),
    [
        ("Tides of the moon", "Tides of the moon"),
        ("“Tides of the moon.”\nIt is about tides.", "Tides of the moon"),
        ("\n**Title: Tides**", "Tides"),
        ("# Ebbe und Flut", "Ebbe und Flut"),
        ("<think>Hm, a name.</think>\nTides", "Tides"),
        ("word " * 40, "word " * 8 + "word word…"),
        ("\x00“”", ""),
        ("", ""),
    ],
)
def test_answer_is_cleaned_to_a_title(answer, title):
    assert titles.clean(answer) == title
