"""Continuing a reply that reached its length limit: a sibling that begins with its text."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
import pytest_asyncio

from billing.ledger import audit
from billing.models import Hold, UsageRecord
from chat.conversations import branches, prompt_builder
from chat.errors import ChatError
from chat.generation import generate
from chat.models import Conversation, LanguageModel, Message, Run
from chat.recovery import sweeper
from chat.rendering.message import message_html
from chat.runs import start
from chat.runs.stop import stop_run
from chat.streaming import log as run_log
from chat.streaming.leases import lease_key
from chat.streaming.ticker import current_ticker
from chatproject.lib import db
from tests.support.conversations import client_id, send
from tests.support.fake_llm import reply_pieces, reply_text
from tests.support.runs import fresh, held_text, logged, until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop"),
]

TEXT = "[[tokens=40 rate=0]] Tell me all"
CAP = 20
CUT_OFF = "".join(reply_pieces(40, TEXT)[:CAP])


@pytest_asyncio.fixture
async def cut_off(owner, conversation, provider) -> Run:
    """A run whose reply reached its length limit."""
    await db.run(LanguageModel.objects.update, max_output_tokens=CAP)
    run = await db.run(send, owner, conversation, TEXT)
    await generate.run(run.pk, 1)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.finish_reason, run.message.text) == ("done", "length", CUT_OFF)
    return run


def go_on(owner, reply_id: UUID) -> Run:
    return start.continue_reply(user=owner, message_id=reply_id, client_id=client_id()).run


def leaf() -> UUID | None:
    return Conversation.objects.get().leaf_id


@pytest.mark.parametrize("continuation", ["", "prefill", "prefix", "vllm"])
async def test_continued_reply_grows_and_keeps_old(
    cut_off, owner, provider, valkey_client, continuation
):
    await db.run(LanguageModel.objects.update, continuation=continuation)
    run = await db.run(go_on, owner, cut_off.message_id)
    assert await db.run(leaf) == cut_off.message_id
    await generate.run(run.pk, 1)
    run = await db.run(fresh, run.pk)
    rest = reply_text(40, TEXT).removeprefix(CUT_OFF)
    asked = provider.requests[-1]["messages"]
    if not continuation:
        rest = "".join(reply_pieces(24, prompt_builder.GO_ON)[:CAP])
        assert asked.pop() == {"role": "user", "content": prompt_builder.GO_ON}
    assert (asked[-1]["role"], asked[-1]["content"]) == ("assistant", CUT_OFF)
    assert (run.status, run.message.text) == ("done", CUT_OFF + rest)
    assert await db.run(leaf) == run.message_id
    old = await db.run(Message.objects.get, pk=cut_off.message_id)
    assert (old.text, old.parent_id) == (
        CUT_OFF,
        (await db.run(Message.objects.get, pk=run.message_id)).parent_id,
    )
    first = logged(valkey_client, run.pk)[0]
    assert (first["type"], first["text"], first["seq"]) == ("run.restarted", CUT_OFF, 1)
    # The new run alone is paid: its output is the rest.
    assert run.completion_tokens == CAP
    charges = await db.run(lambda: [*UsageRecord.objects.values_list("run_id", "charged")])
    assert dict(charges) == {cut_off.pk: cut_off.charged, run.pk: run.charged}
    assert run.charged
    assert not await db.run(audit.check)


async def test_copy_of_cut_reply_continues(cut_off, owner):
    copy = await db.run(
        branches.fork, user=owner, message_id=cut_off.message_id, client_id=client_id()
    )
    reply = await db.run(copy.messages.get, role="assistant")
    page = await db.run(message_html, reply)
    assert f'data-continue="{reply.pk}"' in page
    run = await db.run(go_on, owner, reply.pk)
    await generate.run(run.pk, 1)
    run = await db.run(fresh, run.pk)
    assert run.message.text.startswith(CUT_OFF)
    assert len(run.message.text) > len(CUT_OFF)


async def test_only_reply_at_its_limit_continues(cut_off, owner, stranger, conversation):
    for user, message_id in (
        (stranger, cut_off.message_id),
        (owner, (await db.run(Message.objects.get, role="user")).pk),
    ):
        with pytest.raises(ChatError, match="not_found:"):
            await db.run(start.continue_reply, user=user, message_id=message_id, client_id="a")
    await db.run(Run.objects.update, finish_reason="stop")
    with pytest.raises(ChatError, match="nothing to continue"):
        await db.run(go_on, owner, cut_off.message_id)


async def test_repeated_continue_has_one_effect(cut_off, owner):
    for _ in range(2):
        await db.run(start.continue_reply, user=owner, message_id=cut_off.message_id, client_id="a")
    assert await db.run(Run.objects.count) == 2


@pytest.mark.parametrize(
    ("directives", "code"),
    [("[[status=400]]", "provider_error"), ("[[tokens=0]]", "empty_reply")],
)
async def test_failed_continue_leaves_old_reply(cut_off, owner, monkeypatch, directives, code):
    monkeypatch.setattr(prompt_builder, "GO_ON", directives)
    run = await db.run(go_on, owner, cut_off.message_id)
    await generate.run(run.pk, 1)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.error_code, run.message.text, run.charged) == ("failed", code, "", 0)
    assert await db.run(leaf) == cut_off.message_id
    assert not await db.run(audit.check)


async def test_continue_stopped_in_queue_leaves_old_reply(cut_off, owner):
    run = await db.run(go_on, owner, cut_off.message_id)
    await db.run(stop_run, user=owner, run_id=run.pk)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text, run.charged) == ("stopped", "", 0)
    assert await db.run(leaf) == cut_off.message_id


async def test_thoughts_of_continued_reply_leave_its_text(cut_off, owner, monkeypatch):
    monkeypatch.setattr(prompt_builder, "GO_ON", "[[tokens=5 rate=0 reasoning=4 tags=end]]")
    run = await db.run(go_on, owner, cut_off.message_id)
    await generate.run(run.pk, 1)
    text = (await db.run(fresh, run.pk)).message.text
    assert text.startswith(CUT_OFF)
    assert "</" not in text


async def test_continue_survives_its_worker(cut_off, owner, provider, valkey_client, monkeypatch):
    asking = "[[tokens=15 rate=0 hold=5 key=continue]] Go on"
    monkeypatch.setattr(prompt_builder, "GO_ON", asking)
    run = await db.run(go_on, owner, cut_off.message_id)
    generating = asyncio.create_task(generate.run(run.pk, 1))
    await asyncio.to_thread(provider.wait, held=1)
    partial = CUT_OFF + held_text(asking)
    await until(lambda: run_log.read_reply(run.pk, 1).text == partial)
    writer = current_ticker()._writers[run.pk]
    writer.mark_lost()  # as dead as a task can be
    current_ticker().forget(writer)
    await asyncio.wait_for(generating, 10)
    valkey_client.delete(lease_key(run.pk))
    await asyncio.to_thread(provider.release, "continue")
    await db.run(sweeper.recover, [(run.pk, 1)])
    assert (await db.run(fresh, run.pk)).prefix == partial
    await generate.run(run.pk, 2)
    run = await db.run(fresh, run.pk)
    assert (run.status, run.message.text) == ("done", partial + reply_text(15, asking))

    def check() -> None:
        records = UsageRecord.objects.filter(run_id=run.pk).order_by("attempt")
        assert [(one.attempt, one.charged) for one in records] == [(1, 0), (2, run.charged)]
        # The text that it continued is counted once, as a part of the prompt.
        assert records[0].output_tokens < 20 < records[0].input_tokens < 150
        assert Hold.objects.get(pk=run.pk).settled == run.charged
        assert not audit.check()

    await db.run(check)
