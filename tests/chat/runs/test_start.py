"""The use cases: what is stored, what is refused, what happens once however often it is asked."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from django.db import IntegrityError, connections, transaction
from django.utils import timezone

from chat.errors import ChatError
from chat.models import Conversation, Message, Run
from chat.runs import queue, start
from chat.runs.stop import stop_run
from chat.streaming.leases import stop_key
from tests.support.conversations import begin, client_id, send

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]


def test_a_message_is_stored_with_an_empty_reply_and_a_queued_run(owner, conversation):
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
    assert reply.parent is not None
    assert (reply.parent.role, reply.parent.text) == ("user", "Hello\nthere")
    conversation.refresh_from_db()
    assert conversation.leaf == reply
    assert conversation.title == "Hello"


def test_its_job_waits_in_the_queue_with_ids_only(owner, conversation):
    run = send(owner, conversation, "secret words")
    assert queue.length().queued == 1
    assert queue.position(run).number == 1
    assert queue.position(run)
    job = queue.rq_queue().fetch_job(queue.job_id(run.id, 1))
    assert job is not None
    assert job.kwargs == {"run_id": str(run.id), "attempt": 1}
    record: Any = job.connection.hgetall(job.key)
    assert b"secret" not in b"".join(record.values())


def test_a_first_message_begins_a_conversation(owner, assistant):
    started = start.send(user=owner, text="Hello", client_id="first")
    assert started.run.conversation.owner == owner
    assert started.run.conversation.assistant == assistant


def test_without_an_assistant_the_user_is_told(owner):
    with pytest.raises(ChatError) as error:
        start.send(user=owner, text="Hello", client_id="first")
    assert error.value.code == "unavailable"
    assert not Conversation.objects.exists()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty_text"),
        (" \n\t ", "empty_text"),
        ("\x00", "empty_text"),
        ("x" * 20_001, "text_too_long"),
    ],
)
def test_text_that_cannot_be_sent_stores_nothing(owner, conversation, text, code):
    with pytest.raises(ChatError) as error:
        send(owner, conversation, text)
    assert error.value.code == code
    assert not Message.objects.exists()


def test_the_longest_text_and_a_nul_byte_are_stored(owner, conversation):
    run = send(owner, conversation, "\x00" + "x" * 20_000)
    assert run.message.parent is not None
    assert run.message.parent.text == "x" * 20_000


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "ä", "a\n"])
def test_a_client_id_of_the_wrong_form_is_refused(owner, conversation, name):
    with pytest.raises(ChatError) as error:
        send(owner, conversation, client_id=name)
    assert error.value.code == "bad_json"
    assert not Run.objects.exists()


def test_the_same_client_id_gives_the_same_run(owner, conversation):
    first = send(owner, conversation, client_id="same")
    again = start.send(user=owner, conversation_id=conversation.pk, text="Hello", client_id="same")
    assert not again.is_new
    assert again.run == first
    assert Message.objects.count() == 2
    assert queue.length().queued == 1


def test_a_repetition_is_found_though_a_later_message_is_being_answered(owner, conversation):
    first = ended(send(owner, conversation, client_id="same"))
    send(owner, conversation)
    assert send(owner, conversation, client_id="same") == first


def test_a_repetition_needs_no_room(owner, conversation, settings):
    first = send(owner, conversation, client_id="same")
    settings.QUEUE_LIMIT = 0
    assert send(owner, conversation, client_id="same") == first


def test_a_repetition_of_what_began_a_deleted_conversation_begins_no_other(owner, assistant):
    first = start.send(user=owner, text="Hello", client_id="first").run
    Conversation.objects.update(deleted_at=timezone.now())
    assert start.send(user=owner, text="Hello", client_id="first").run == first


def test_a_repetition_shows_a_stranger_nothing(owner, stranger, conversation, settings):
    send(owner, conversation, client_id="same")
    for settings.QUEUE_LIMIT in (0, 1000):
        with pytest.raises(ChatError, match="not_found"):
            send(stranger, conversation, client_id="same")


def test_the_same_client_id_in_another_conversation_is_another_run(owner, assistant, conversation):
    first = send(owner, conversation, client_id="same")
    second = send(owner, begin(owner, assistant), client_id="same")
    assert first != second


def test_ten_clicks_at_once_have_one_effect(owner, conversation):
    results = at_once(
        10,
        lambda: start.send(
            user=owner, conversation_id=conversation.pk, text="Hello", client_id="same"
        ),
    )
    assert len({started.run.pk for started in results}) == 1
    assert [started.is_new for started in results].count(True) == 1
    assert Message.objects.count() == 2


def test_ten_first_messages_at_once_begin_one_conversation(owner, assistant):
    results = at_once(10, lambda: start.send(user=owner, text="Hello", client_id="first"))
    assert len({started.run.pk for started in results}) == 1
    assert Conversation.objects.count() == 1


def test_of_ten_different_messages_at_once_one_is_taken(owner, conversation):
    def ask():
        try:
            return send(owner, conversation)
        except ChatError as error:
            return error.code

    results = at_once(10, ask)
    assert results.count("run_active") == 9
    assert Message.objects.count() == 2


def test_the_database_itself_refuses_a_second_active_run(owner, conversation):
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


def test_a_stranger_is_told_that_nothing_is_there(stranger, conversation):
    with pytest.raises(ChatError) as error:
        send(stranger, conversation)
    assert error.value.code == "not_found"
    with pytest.raises(ChatError) as error:
        start.send(user=stranger, conversation_id=uuid4(), text="Hello", client_id="a")
    assert error.value.code == "not_found"
    assert not Message.objects.exists()


def test_a_deleted_conversation_takes_no_message(owner, assistant):
    conversation = begin(owner, assistant, deleted_at=timezone.now())
    with pytest.raises(ChatError) as error:
        send(owner, conversation)
    assert error.value.code == "not_found"


def test_a_parent_must_be_of_the_same_conversation(owner, assistant, conversation):
    elsewhere = send(owner, begin(owner, assistant)).message
    with pytest.raises(ChatError) as error:
        send(owner, conversation, parent_id=elsewhere.pk)
    assert error.value.code == "not_found"


def test_a_full_queue_refuses_before_anything_is_stored(owner, assistant, conversation, settings):
    settings.QUEUE_LIMIT = 1
    send(owner, conversation)
    with pytest.raises(ChatError) as error:
        start.send(user=owner, text="Hello", client_id="a")
    assert error.value.code == "busy"
    assert Conversation.objects.count() == 1


# --- Regenerate and edit ----------------------------------------------------------------------


def test_regenerate_asks_again_and_leaves_the_old_reply_in_place(owner, conversation):
    old = ended(send(owner, conversation))
    started = start.regenerate(user=owner, message_id=old.message_id, client_id=client_id())
    assert started.run.message.parent == old.message.parent
    conversation.refresh_from_db()
    assert conversation.leaf == old.message


def test_regenerate_is_for_replies_and_for_their_owner(owner, stranger, conversation):
    old = ended(send(owner, conversation))
    asked = old.message.parent
    for user, message_id in [(owner, asked.pk), (stranger, old.message_id)]:
        with pytest.raises(ChatError) as error:
            start.regenerate(user=user, message_id=message_id, client_id=client_id())
        assert error.value.code == "not_found"


def test_edit_makes_a_branch_and_keeps_the_old_message(owner, conversation):
    old = ended(send(owner, conversation, "Old"))
    asked = old.message.parent
    started = start.edit(user=owner, message_id=asked.pk, text="New", client_id=client_id())
    new = started.run.message.parent
    assert new is not None
    assert (new.text, new.parent_id) == ("New", asked.parent_id)
    assert Message.objects.get(pk=asked.pk).text == "Old"


# --- Stop -------------------------------------------------------------------------------------


def test_a_queued_run_is_stopped_at_once(owner, conversation):
    run = send(owner, conversation)
    stop_run(user=owner, run_id=run.pk)
    run.refresh_from_db()
    assert run.status == "stopped"
    assert run.message.status == "stopped"
    send(owner, conversation)  # the conversation is free again


def test_a_running_run_gets_a_flag(owner, conversation, valkey_client):
    run = send(owner, conversation)
    Run.objects.filter(pk=run.pk).update(status="running", attempt=1)
    stop_run(user=owner, run_id=run.pk)
    run.refresh_from_db()
    assert run.status == "running"
    assert valkey_client.get(stop_key(run.pk)) == b"1"
    assert valkey_client.ttl(stop_key(run.pk)) > 0


def test_to_stop_what_is_over_changes_nothing(owner, conversation):
    run = ended(send(owner, conversation))
    stop_run(user=owner, run_id=run.pk)
    run.refresh_from_db()
    assert run.status == "done"


def test_a_stranger_cannot_stop_a_run(owner, stranger, conversation):
    run = send(owner, conversation)
    with pytest.raises(ChatError) as error:
        stop_run(user=stranger, run_id=run.pk)
    assert error.value.code == "not_found"
    run.refresh_from_db()
    assert run.status == "queued"


# --- Helpers ----------------------------------------------------------------------------------


def ended(run: Run) -> Run:
    Run.objects.filter(pk=run.pk).update(status="done", attempt=1, ended_at=timezone.now())
    Message.objects.filter(pk=run.message_id).update(status="done", text="A reply")
    return run


def at_once(count, call):
    """Call the function in so many threads that all begin together."""
    barrier = threading.Barrier(count)

    def one(_):
        try:
            barrier.wait(timeout=10)
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
