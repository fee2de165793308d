"""Sending, regenerating, editing, stopping: rows stored, refusals, and repetitions without effect."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from chat.errors import ChatError
from chat.models import Conversation, Message, Run
from chat.runs import queue, start
from chat.runs.stop import stop_run
from chat.streaming.leases import stop_key
from tests.support.conversations import begin, client_id, send
from tests.support.runs import mark_done, send_running
from tests.support.threads import race

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def test_message_is_stored_with_queued_run(owner, conversation):
    started = start.send(
        user=owner, conversation_id=conversation.pk, text=" Hello\nthere ", client_id="a"
    )
    run = Run.objects.get()
    assert started.is_new
    assert started.run == run
    assert (run.status, run.attempt, run.client_id) == ("queued", 0, "a")
    assert run.model_snapshot["provider_model"] == "stub-model"
    reply = run.message
    assert (reply.role, reply.status, reply.text) == ("assistant", "pending", "")
    assert (reply.parent.role, reply.parent.text) == ("user", "Hello\nthere")
    conversation.refresh_from_db()
    assert conversation.leaf == reply
    assert conversation.title == "Hello"


def test_job_in_queue_has_only_ids(owner, conversation):
    run = send(owner, conversation, "secret words")
    assert queue.length().queued == 1
    assert queue.position(run).number == 1
    job = queue.rq_queue().fetch_job(queue.job_id(run.id, 1))
    assert job.kwargs == {"run_id": str(run.id), "attempt": 1}
    record: Any = job.connection.hgetall(job.key)
    assert b"secret" not in b"".join(record.values())


def test_first_message_begins_conversation(owner, assistant):
    started = start.send(user=owner, text="Hello", client_id="first")
    assert started.run.conversation.owner == owner
    assert started.run.conversation.assistant == assistant


def test_message_without_assistant_is_refused(owner):
    with pytest.raises(ChatError, match="unavailable:"):
        start.send(user=owner, text="Hello", client_id="first")
    assert not Conversation.objects.exists()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty_text"),
        (" \n\t ", "empty_text"),
        ("\x00", "bad_text"),
        ("x\x00y", "bad_text"),
        ("x\ud83dy", "bad_text"),
        ("x" * 20_001, "text_too_long"),
    ],
)
def test_refused_text_stores_nothing(owner, conversation, text, code):
    with pytest.raises(ChatError, match=f"{code}:"):
        send(owner, conversation, text)
    assert not Message.objects.exists()


def test_longest_text_is_stored(owner, conversation):
    run = send(owner, conversation, "x" * 20_000)
    assert run.message.parent.text == "x" * 20_000


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "ä", "a\n"])
def test_invalid_client_id_is_refused(owner, conversation, name):
    with pytest.raises(ChatError, match="bad_json:"):
        send(owner, conversation, client_id=name)
    assert not Run.objects.exists()


def test_same_client_id_returns_same_run(owner, conversation):
    first = send(owner, conversation, client_id="same")
    again = start.send(user=owner, conversation_id=conversation.pk, text="Hello", client_id="same")
    assert not again.is_new
    assert again.run == first
    assert Message.objects.count() == 2
    assert queue.length().queued == 1


def test_repetition_is_found_during_later_run(owner, conversation):
    first = mark_done(send(owner, conversation, client_id="same"))
    send(owner, conversation)
    assert send(owner, conversation, client_id="same") == first


def test_repetition_passes_full_queue(owner, conversation, settings):
    first = send(owner, conversation, client_id="same")
    settings.QUEUE_LIMIT = 0
    assert send(owner, conversation, client_id="same") == first


def test_repetition_does_not_restore_deleted_conversation(owner, assistant):
    first = start.send(user=owner, text="Hello", client_id="first").run
    Conversation.objects.update(deleted_at=timezone.now())
    assert start.send(user=owner, text="Hello", client_id="first").run == first


def test_repetition_by_stranger_is_not_found(owner, stranger, conversation, settings):
    send(owner, conversation, client_id="same")
    for settings.QUEUE_LIMIT in (0, 1000):
        with pytest.raises(ChatError, match="not_found"):
            send(stranger, conversation, client_id="same")


def test_client_ids_are_per_conversation(owner, assistant, conversation):
    first = send(owner, conversation, client_id="same")
    second = send(owner, begin(owner, assistant), client_id="same")
    assert first != second


@pytest.mark.parametrize("is_first", [False, True])
def test_ten_concurrent_repetitions_have_one_effect(owner, assistant, is_first):
    """Whether the message begins a conversation or follows in one."""
    conversation_id = None if is_first else begin(owner, assistant).pk
    send_same = partial(
        start.send, user=owner, conversation_id=conversation_id, text="Hello", client_id="same"
    )
    results = race([send_same] * 10)
    assert len({started.run.pk for started in results}) == 1
    assert [started.is_new for started in results].count(True) == 1
    assert Message.objects.count() == 2
    assert Conversation.objects.count() == 1


def test_one_of_ten_concurrent_messages_is_accepted(owner, conversation):
    results = race([partial(send, owner, conversation)] * 10)
    refusals = [result.code for result in results if isinstance(result, ChatError)]
    assert refusals == ["run_active"] * 9
    assert Message.objects.count() == 2


def test_database_refuses_second_active_run(owner, conversation):
    run = send(owner, conversation)
    other = Message.objects.create(
        conversation=conversation, role="assistant", status="pending", parent=run.message.parent
    )
    with pytest.raises(IntegrityError, match="run_one_active"), transaction.atomic():
        Run.objects.create(
            conversation=conversation,
            message=other,
            user=owner,
            client_id="b",
            assistant=run.assistant,
            model=run.model,
        )


def test_message_of_stranger_is_not_found(stranger, conversation):
    with pytest.raises(ChatError, match="not_found:"):
        send(stranger, conversation)
    with pytest.raises(ChatError, match="not_found:"):
        start.send(user=stranger, conversation_id=uuid4(), text="Hello", client_id="a")
    assert not Message.objects.exists()


def test_deleted_conversation_accepts_no_message(owner, assistant):
    conversation = begin(owner, assistant, deleted_at=timezone.now())
    with pytest.raises(ChatError, match="not_found:"):
        send(owner, conversation)


def test_parent_must_be_in_same_conversation(owner, assistant, conversation):
    elsewhere = send(owner, begin(owner, assistant)).message
    with pytest.raises(ChatError, match="not_found:"):
        send(owner, conversation, parent_id=elsewhere.pk)


def test_full_queue_refuses_before_storing(owner, assistant, conversation, settings):
    settings.QUEUE_LIMIT = 1
    send(owner, conversation)
    with pytest.raises(ChatError, match="busy:"):
        start.send(user=owner, text="Hello", client_id="a")
    assert Conversation.objects.count() == 1


# --- Regenerate and edit ----------------------------------------------------------------------


def test_regenerate_keeps_old_reply_as_leaf(owner, conversation):
    old = mark_done(send(owner, conversation))
    started = start.regenerate(user=owner, message_id=old.message_id, client_id=client_id())
    assert started.run.message.parent == old.message.parent
    conversation.refresh_from_db()
    assert conversation.leaf == old.message


def test_regenerate_is_for_own_conversations(owner, stranger, conversation):
    old = mark_done(send(owner, conversation))
    for message_id in (old.message.parent.pk, old.message_id):
        with pytest.raises(ChatError, match="not_found:"):
            start.regenerate(user=stranger, message_id=message_id, client_id=client_id())


def test_edit_begins_branch_beside_old_message(owner, conversation):
    old = mark_done(send(owner, conversation, "Old"))
    asked = old.message.parent
    started = start.edit(user=owner, message_id=asked.pk, text="New", client_id=client_id())
    new = started.run.message.parent
    assert (new.text, new.parent_id) == ("New", asked.parent_id)
    assert Message.objects.get(pk=asked.pk).text == "Old"


# --- Stop -------------------------------------------------------------------------------------


def test_queued_run_is_stopped_at_once(owner, conversation):
    run = send(owner, conversation)
    stop_run(user=owner, run_id=run.pk)
    run.refresh_from_db()
    assert run.status == "stopped"
    assert run.message.status == "stopped"
    send(owner, conversation)  # the conversation is free again


def test_running_run_gets_stop_flag(owner, conversation, valkey_client):
    run = send_running(owner, conversation)
    stop_run(user=owner, run_id=run.pk)
    run.refresh_from_db()
    assert run.status == "running"
    assert valkey_client.get(stop_key(run.pk)) == b"1"
    assert valkey_client.ttl(stop_key(run.pk)) > 0


def test_stop_of_ended_run_changes_nothing(owner, conversation):
    run = mark_done(send(owner, conversation))
    stop_run(user=owner, run_id=run.pk)
    run.refresh_from_db()
    assert run.status == "done"


def test_stranger_cannot_stop_run(owner, stranger, conversation):
    run = send(owner, conversation)
    with pytest.raises(ChatError, match="not_found:"):
        stop_run(user=stranger, run_id=run.pk)
    run.refresh_from_db()
    assert run.status == "queued"
