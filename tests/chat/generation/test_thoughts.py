"""Thoughts that a model sends as tags in its text: stored, followed, and after the loss of a worker."""

from __future__ import annotations

import asyncio

import pytest

from chat.generation import generate
from chat.generation.reply import Reply
from chat.llm.decoder import TextDelta
from chat.llm.tokens import typical_tokens
from chat.models import LanguageModel, MessagePart, Run
from chat.recovery import sweeper
from chat.runs.handover import LostAttempt, usage_of_attempt
from chat.runs.stop import stop_run
from chat.streaming import log as run_log
from chat.streaming.leases import lease_key
from chat.streaming.ticker import current_ticker
from chat.streaming.writer import RunWriter
from chatproject.lib import db
from tests.support.conversations import send
from tests.support.fake_llm import FakeLLM, reasoning_text, reply_text
from tests.support.runs import fresh, generate_until_hold, held_text, logged, until
from tests.support.sockets import open_tab

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop"),
]

# The end of the thoughts has come, and some of the text.
AFTER = "[[tokens=20 reasoning=8 rate=0 tags=end hold=5 key=thoughts]]"
# The thoughts have come, and are still taken for text.
BEFORE = "[[tokens=20 reasoning=8 rate=0 tags=end hold=0 key=thoughts]]"


async def stored(run: Run) -> tuple[str, str, str]:
    """Return a run's status, the text of its reply and its reasoning."""
    run = await db.run(fresh, run.pk)
    part = await db.run(MessagePart.objects.filter(message=run.message_id).first)
    return run.status, run.message.text, part.data["text"] if part else ""


def expected(text: str) -> tuple[str, str, str]:
    return "done", reply_text(20, text), reasoning_text(8, text)


async def held_before_end(run: Run, provider: FakeLLM) -> asyncio.Task[object]:
    """Generate a reply until its thoughts are shown as its text."""
    generating = asyncio.create_task(generate.run(run.pk, 1))
    await asyncio.to_thread(provider.wait, held=1)
    await until(lambda: run_log.read_reply(run.pk, 1).text == reasoning_text(8, BEFORE))
    return generating


async def lose(run: Run, generating: asyncio.Task[object], provider, valkey_client) -> None:
    """Let the worker of a run die."""
    writer = current_ticker()._writers[run.id]
    writer.mark_lost()
    current_ticker().forget(writer)
    await asyncio.wait_for(generating, 10)
    valkey_client.delete(lease_key(run.pk))
    await asyncio.to_thread(provider.release, "thoughts")


@pytest.mark.parametrize("tags", ["whole", "end"])
async def test_thoughts_in_tags_are_stored_as_reasoning(owner, conversation, provider, tags):
    text = f"[[tokens=20 reasoning=8 rate=0 chunk=7 tags={tags}]]"
    run = await db.run(send, owner, conversation, text)
    await generate.run(run.pk, 1)
    assert await stored(run) == expected(text)
    assert not (await db.run(fresh, run.pk)).usage_estimated

    await db.run(conversation.refresh_from_db)
    following = await db.run(send, owner, conversation, "[[tokens=3]] And then?")
    await generate.run(following.pk, 1)
    assert provider.requests[-1]["messages"][-2]["content"] == reply_text(20, text)


async def test_events_move_text_to_reasoning_once(owner, conversation, provider, valkey_client):
    run = await db.run(send, owner, conversation, BEFORE)
    generating = await held_before_end(run, provider)
    await asyncio.to_thread(provider.release, "thoughts")
    await asyncio.wait_for(generating, 10)

    events = logged(valkey_client, run.pk)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    kinds = [event["type"] for event in events]
    assert kinds.count("reply.replaced") == 1
    moved = kinds.index("reply.replaced")
    assert set(kinds[1:moved]) == {"text.delta"}
    assert events[moved].get("text", "") == ""
    assert events[moved]["reasoning"] == reasoning_text(8, BEFORE)
    after = "".join(event.get("text", "") for event in events[moved + 1 : -1])
    assert after == events[-1]["text"] == reply_text(20, BEFORE)


async def test_tab_that_resumes_receives_the_same(owner, conversation, provider, socket_loop):
    """From the beginning, from before the move, and after the end."""
    run = await db.run(send, owner, conversation, AFTER)
    generating = await generate_until_hold(run, provider)
    async with open_tab(owner) as tab:
        for after in (0, 1):
            await tab.send(type="resume", run=str(run.pk), after=after)
            replaced = await tab.until("reply.replaced")
            assert replaced["reasoning"] == reasoning_text(8, AFTER)
            assert (await tab.until("text.delta"))["text"] == held_text(AFTER)
        await asyncio.to_thread(provider.release, "thoughts")
        assert (await tab.until("run.done"))["text"] == reply_text(20, AFTER)
        await asyncio.wait_for(generating, 10)


@pytest.mark.parametrize("continuation", ["", "prefill"])
async def test_next_attempt_goes_on_after_moved_thoughts(
    owner, conversation, provider, valkey_client, continuation
):
    await db.run(LanguageModel.objects.update, continuation=continuation)
    run = await db.run(send, owner, conversation, AFTER)
    generating = await generate_until_hold(run, provider)
    await lose(run, generating, provider, valkey_client)
    await db.run(sweeper.recover, [(run.pk, 1)])
    handed_over = await db.run(fresh, run.pk)
    assert handed_over.prefix == (held_text(AFTER) if continuation else "")
    assert handed_over.prefix_reasoning == (reasoning_text(8, AFTER) if continuation else "")

    await generate.run(run.pk, 2)
    assert await stored(run) == expected(AFTER)


async def test_worker_lost_within_thoughts_begins_again(
    owner, conversation, provider, valkey_client
):
    run = await db.run(send, owner, conversation, BEFORE)
    generating = await held_before_end(run, provider)
    await lose(run, generating, provider, valkey_client)
    await db.run(sweeper.recover, [(run.pk, 1)])
    await generate.run(run.pk, 2)
    assert await stored(run) == expected(BEFORE)


async def test_last_lost_attempt_keeps_thoughts_apart(
    owner, conversation, provider, valkey_client, settings
):
    settings.RUN_ATTEMPTS = 1
    run = await db.run(send, owner, conversation, AFTER)
    generating = await generate_until_hold(run, provider)
    await lose(run, generating, provider, valkey_client)
    await db.run(sweeper.recover, [(run.pk, 1)])
    assert await stored(run) == ("failed", held_text(AFTER), reasoning_text(8, AFTER))


async def test_lost_log_has_moved_thoughts_again(owner, conversation, provider, valkey_client):
    run = await db.run(send, owner, conversation, AFTER)
    generating = await generate_until_hold(run, provider)
    before = logged(valkey_client, run.pk)
    valkey_client.flushall()
    await asyncio.to_thread(provider.release, "thoughts")
    await asyncio.wait_for(generating, 10)
    assert logged(valkey_client, run.pk)[: len(before)] == before
    assert await stored(run) == expected(AFTER)


async def test_stop_within_thoughts_keeps_them_as_text(owner, conversation, provider):
    run = await db.run(send, owner, conversation, BEFORE)
    generating = await held_before_end(run, provider)
    await db.run(stop_run, user=owner, run_id=run.pk)
    await asyncio.wait_for(generating, 10)
    assert await stored(run) == ("stopped", reasoning_text(8, BEFORE), "")


@pytest.mark.parametrize("texts", [["<thi"], ["a ", "</th"], [" "], ["<think>a</th"]])
async def test_held_back_text_is_released_at_end(owner, conversation, texts):
    """Text that may be the beginning of a tag is held back, and must not be lost."""
    run = await db.run(send, owner, conversation)
    reply = Reply(prompt_tokens=0)
    writer = RunWriter(run.id, 1, lambda writer, urgent: None, lambda writer, resume: False)
    for text in texts:
        reply.add(TextDelta(text), writer)
    reply.release(writer)
    assert reply.whole_text() + reply.whole_reasoning() == "".join(texts).removeprefix("<think>")


async def test_usage_leaves_out_prefix_that_became_reasoning():
    run = Run(prompt_estimate=5, prefix="a plan", prefix_reasoning="first ")
    lost = LostAttempt(run.pk, 2, text="Answer", reasoning="first a plan, longer")
    usage = usage_of_attempt(run, lost)
    assert usage is not None
    assert usage.reasoning_tokens == typical_tokens(", longer")
    assert usage.completion_tokens == typical_tokens("Answer") + usage.reasoning_tokens
