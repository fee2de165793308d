"""The next message: written during a reply, and sent once when it has ended, whatever happens in between."""

from __future__ import annotations

from functools import partial

import pytest
from django.utils import timezone

from billing.ledger import audit
from billing.models import Account
from chat import protocol
from chat.conversations import drafts
from chat.conversations.offers import Choice
from chat.errors import ChatError
from chat.generation import generate
from chat.models import Conversation, Draft, Message, NextMessage, Run
from chat.recovery.next_messages import NextMessages
from chat.runs import next_message
from chat.runs.describe import Started
from chat.runs.stop import stop_run
from chatproject.lib import db
from tests.support import money
from tests.support.conversations import client_id, send
from tests.support.runs import mark_done, mark_running
from tests.support.sockets import open_tab
from tests.support.threads import race

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url"),
]

TEXT = "[[tokens=3 rate=0]] And then?"


def queue(owner, conversation, text: str = TEXT, id: str = "", **fields):
    return next_message.queue(
        user=owner,
        text=text,
        client_id=id or client_id(),
        conversation_id=conversation.pk,
        **fields,
    )


def state(conversation: Conversation) -> tuple[str, str, bool]:
    row = NextMessage.objects.get(pk=conversation.pk)
    return row.state, row.text, Conversation.objects.get(pk=conversation.pk).has_next


def sent_texts(conversation: Conversation) -> list[str]:
    asked = Message.objects.filter(conversation=conversation, role="user")
    return list(asked.values_list("text", flat=True))


def end(run: Run, status: str = "done") -> None:
    mark_done(run)
    Run.objects.filter(pk=run.pk).update(status=status)


def turn() -> None:
    NextMessages().send(timezone.now())


def test_message_waits_is_edited_removed_and_sent(owner, stranger, conversation):
    first = send(owner, conversation)
    event = queue(owner, conversation, id="a", choice=Choice(temperature=0.3))
    assert event == protocol.NextUpdated(conversation=conversation.pk, client_id="a", text=TEXT)
    assert queue(owner, conversation, id="a", text="repeated").text == TEXT
    assert queue(owner, conversation, "More", id="b").text == f"{TEXT}\n\nMore"
    with pytest.raises(ChatError, match="not_found:"):
        queue(stranger, conversation)
    for change in (next_message.edit, next_message.remove, next_message.send):
        with pytest.raises(ChatError, match="not_found:"):
            change(user=stranger, conversation_id=conversation.pk)
    assert state(conversation) == ("waiting", f"{TEXT}\n\nMore", True)

    drafts.save(user=owner, conversation_id=conversation.pk, text="Half", age_ms=10)
    taken = next_message.edit(user=owner, conversation_id=conversation.pk)
    assert taken.taken == f"{TEXT}\n\nMore"
    assert Draft.objects.get().text == f"{TEXT}\n\nMore\n\nHalf"
    assert state(conversation) == ("", "", False)
    for change in (next_message.edit, next_message.remove, next_message.send):
        with pytest.raises(ChatError, match="already_sent:"):
            change(user=owner, conversation_id=conversation.pk)

    queue(owner, conversation, id="c")
    next_message.remove(user=owner, conversation_id=conversation.pk)
    queue(owner, conversation, "Last", id="d", choice=Choice(temperature=0.7))
    turn()  # the reply has not ended
    assert sent_texts(conversation) == ["Hello"]
    end(first)
    turn()
    turn()
    assert sent_texts(conversation) == ["Hello", "Last"]
    assert state(conversation) == ("", "", False)
    latest = Run.objects.get(client_id="d")
    assert latest.model_snapshot["temperature"] == 0.7
    assert latest.message.parent is not None
    assert latest.message.parent.parent_id == first.message_id
    # A repetition whose answer was lost sends nothing twice.
    assert isinstance(queue(owner, conversation, "Last", id="d"), protocol.NextUpdated)
    end(latest)
    assert isinstance(queue(owner, conversation, "Idle", id="e"), Started)
    assert sent_texts(conversation) == ["Hello", "Last", "Idle"]


@pytest.mark.parametrize(
    ("text", "id", "code"),
    [
        (" ", "a", "empty_text"),
        ("\x00", "a", "bad_text"),
        ("x" * 20_001, "a", "text_too_long"),
        ("x", "a b", "bad_json"),
    ],
)
def test_bad_next_message_is_refused(owner, conversation, text, id, code):
    send(owner, conversation)
    with pytest.raises(ChatError, match=f"{code}:"):
        queue(owner, conversation, text, id)
    queue(owner, conversation, "x" * 19_999)
    with pytest.raises(ChatError, match="text_too_long:"):
        queue(owner, conversation, "too much")
    assert state(conversation) == ("waiting", "x" * 19_999, True)


@pytest.mark.parametrize(
    ("status", "code"), [("failed", "reply_failed"), ("stopped", "reply_stopped")]
)
def test_reply_without_success_asks_before_sending(owner, conversation, status, code):
    run = send(owner, conversation)
    queue(owner, conversation)
    if status == "stopped":
        stop_run(user=owner, run_id=run.pk)
    else:
        end(run, status)
        turn()
    row = NextMessage.objects.get()
    assert (row.state, row.code) == ("paused", code)
    assert row.problem.endswith("Your next message was not sent.")
    turn()
    assert sent_texts(conversation) == ["Hello"]
    assert isinstance(next_message.send(user=owner, conversation_id=conversation.pk), Started)
    assert sent_texts(conversation) == ["Hello", TEXT]


def test_refused_message_is_kept_with_words(owner, conversation, assistant, settings):
    run = send(owner, conversation)
    queue(owner, conversation)
    end(run)
    settings.QUEUE_LIMIT = 0
    turn()
    row = NextMessage.objects.get()
    assert (row.state, row.code, row.tries) == ("waiting", "busy", 1)
    assert row.due_at > timezone.now()
    NextMessage.objects.update(due_at=timezone.now())
    settings.QUEUE_LIMIT = 100
    account = Account.objects.get(user=owner)
    money.adjust(account, account.held - account.balance)
    turn()
    row = NextMessage.objects.get()
    assert (row.state, row.code, row.text) == ("paused", "insufficient_credits", TEXT)
    assert "Buy" in row.problem
    assistant.model.enabled = False
    assistant.model.save()
    with pytest.raises(ChatError, match="model_unavailable:"):
        next_message.send(user=owner, conversation_id=conversation.pk)
    row = NextMessage.objects.get()
    assert (row.state, row.code, row.text) == ("paused", "model_unavailable", TEXT)
    assert sent_texts(conversation) == ["Hello"]


@pytest.mark.parametrize("change", [next_message.edit, next_message.remove, None])
def test_racing_senders_send_once_or_never(owner, conversation, change):
    """Five senders, a second text, and an edit or a removal at the same time."""
    for _round in range(4):
        before = len(sent_texts(conversation))
        run = send(owner, conversation)
        queue(owner, conversation, "One")
        end(run)
        calls = [partial(next_message.proceed, conversation.pk) for _ in range(5)]
        calls.append(partial(queue, owner, conversation, "Two"))
        if change:
            calls.append(partial(change, user=owner, conversation_id=conversation.pk))
        results = race(calls)
        assert [str(error) for error in results[:6] if isinstance(error, Exception)] == []
        new = sent_texts(conversation)[before + 1 :]
        row = NextMessage.objects.get()
        draft = Draft.objects.values_list("text", flat=True).first() or ""
        everything = "\n\n".join([*new, row.text, draft])
        is_kept = change != next_message.remove or isinstance(results[-1], ChatError)
        for text in ("One", "Two"):
            assert everything.count(text) in ({1} if is_kept else {0, 1})
        assert Run.objects.active().count() <= 1
        for active in Run.objects.active():
            end(active)
        NextMessage.objects.all().delete()
        Draft.objects.all().delete()
        Conversation.objects.update(has_next=False)
    assert not audit.check()


@pytest.mark.usefixtures("worker_loop", "socket_loop")
async def test_next_message_follows_reply_in_all_tabs(owner, conversation, provider):
    async with open_tab(owner) as tab, open_tab(owner) as other:
        await tab.send(
            type="chat.send",
            client_id="1",
            conversation=str(conversation.pk),
            text="[[tokens=2]] Hi",
        )
        run = (await tab.until("run.queued"))["run"]
        fields = {"conversation": str(conversation.pk)}
        await tab.send(type="next.queue", client_id="2", text=TEXT, **fields)
        assert (await tab.until("next.updated"))["text"] == TEXT
        assert (await other.until("next.updated"))["text"] == TEXT
        await other.send(type="next.edit", **fields)
        assert (await other.until("next.updated")).get("text", "") == ""
        await tab.send(type="next.queue", client_id="3", text=TEXT, draft=True, **fields)
        await generate.run(run, 1)  # no tab and no clock is needed
        queued = await db.run(Run.objects.get, client_id="3")
        assert queued.status == "queued"
        await db.run_deferred()
        while (event := await other.until("run.queued"))["client_id"] != "3":
            pass
        assert TEXT in event["sent"]["html"]
        await other.send(type="next.remove", **fields)
        assert (await other.until("error"))["code"] == "already_sent"
        assert await db.run(Draft.objects.filter(text=TEXT).exists) is False


async def test_follower_of_a_run_receives_the_next_message(owner, conversation):
    """A page may have been made before the next message was stored, changed or removed."""
    run = await db.run(send, owner, conversation)
    resume = {"type": "resume", "run": str(run.pk)}
    chat = {"type": "next.updated", "conversation": str(conversation.pk)}
    async with open_tab(owner) as tab:
        await tab.send(**resume, after=0)
        assert await tab.until("next.updated") == chat
        await db.run(queue, owner, conversation)
        await tab.until("next.updated")
        await tab.send(**resume, after=0)
        assert await tab.until("next.updated") == {**chat, "text": TEXT}
        await db.run(NextMessage.objects.update, state="paused", code="busy", problem="Later.")
        await tab.send(**resume, after=0)
        paused = {"paused": True, "code": "busy", "message": "Later."}
        assert await tab.until("next.updated") == {**chat, "text": TEXT, **paused}
        # A client that has events of the run had a connection, or fetches its page.
        await tab.send(**resume, after=1)
        await tab.until("run.queued")
        assert await tab.is_silent()


async def test_killed_worker_leaves_message_to_clock(owner, conversation, provider, worker_loop):
    run = await db.run(send, owner, conversation, "[[tokens=2]] Hi")
    await db.run(queue, owner, conversation, TEXT, "n")
    await db.run(mark_running, run)
    await db.run(end, run)  # and its worker does nothing more
    await db.run(turn)
    queued = await db.run(Run.objects.get, client_id="n")
    await generate.run(queued.pk, 1)
    assert await db.run(sent_texts, conversation) == ["[[tokens=2]] Hi", TEXT]


def test_message_without_next_costs_no_statement(owner, conversation, django_assert_num_queries):
    run = send(owner, conversation)
    end(run)
    with django_assert_num_queries(1):
        turn()
