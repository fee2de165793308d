"""Deleted chats are purged with all of their text, and records without text stay."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.apps import apps
from django.db import connection
from django.utils import timezone

from accounts import api_keys
from billing.models import Hold, LedgerEntry, UsageRecord
from chat.conversations import lifecycle
from chat.conversations.api_prompt import ApiRequest
from chat.models import (
    ApiCall,
    Conversation,
    Message,
    MessageFeedback,
    MessagePart,
    Report,
    Run,
    UserNote,
)
from chat.protocol import Usage
from chat.recovery import retention
from chat.recovery.retention import Retention
from chat.runs import api_calls, finish
from chat.streaming import leases
from chat.tools.models import RunStep
from tests.support.bad_rows import refused
from tests.support.conversations import add_turns, begin, send
from tests.support.runs import add_to_log, delta, mark_running

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey_url")]

WORD = "xylophone"
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
LATER = 31 * DAY


def finished_chat(owner, assistant, valkey_client) -> Conversation:
    """A chat whose reply, reasoning and log hold WORD."""
    chat = begin(owner, assistant, title=WORD)
    run = send(owner, chat, f"Play the {WORD}")
    mark_running(run)
    add_to_log(valkey_client, delta(run, 1, WORD))
    leases.request_stop(run.pk)
    finish.end(
        run_id=run.pk,
        attempt=1,
        status=Run.Status.RUNNING,
        seq=5,
        outcome=finish.Outcome(
            status=Run.Status.DONE,
            text=f"A {WORD}",
            reasoning=f"Hm, {WORD}",
            usage=Usage(prompt_tokens=10, completion_tokens=10),
        ),
    )
    return chat


def delete(owner, chat: Conversation) -> None:
    lifecycle.change(user=owner, conversation_ids=[chat.pk], action="delete")


def purge(after: timedelta) -> int:
    return Retention().purge(timezone.now() + after)


def text_of_tables() -> str:
    """All rows of chat and billing as text."""
    found = []
    with connection.cursor() as cursor:
        for label in ("chat", "billing"):
            for model in apps.get_app_config(label).get_models():
                cursor.execute(f"SELECT string_agg(t::text, ' ') FROM {model._meta.db_table} AS t")  # noqa: S608
                found.append(str(cursor.fetchone()[0]))
    return " ".join(found)


def test_deleted_chat_is_purged_with_all_text(owner, assistant, valkey_client):
    chat = finished_chat(owner, assistant, valkey_client)
    reply = chat.messages.filter(role="assistant")[0]
    MessageFeedback.objects.create(message=reply, user=owner, rating="bad", text=WORD)
    Report.objects.create(message=reply, user=owner, reason="other", text=WORD)
    kept = begin(owner, assistant, title="Kept")
    add_turns(owner, kept, 2)
    records = (LedgerEntry.objects.count(), UsageRecord.objects.count(), Hold.objects.count())
    delete(owner, chat)
    assert WORD in text_of_tables()
    assert purge(29 * DAY) == 0
    assert purge(LATER) == 1
    assert purge(LATER) == 0
    assert WORD not in text_of_tables()
    assert not list(valkey_client.scan_iter("run:*"))
    assert records == (
        LedgerEntry.objects.count(),
        UsageRecord.objects.count(),
        Hold.objects.count(),
    )
    assert [one.title for one in Conversation.objects.all()] == ["Kept"]
    assert kept.messages.count() == 4


def test_purge_keeps_notes_of_the_chat(owner, assistant, valkey_client):
    chat = finished_chat(owner, assistant, valkey_client)
    reply = chat.messages.filter(role="assistant")[0]
    note = UserNote.objects.create(user=owner, text="Note", created_by="assistant", message=reply)
    # Left by a run whose end was cut short.
    RunStep.objects.create(
        run=reply.run, number=1, request=1, attempt=1, kind="call", status="done", result=WORD
    )
    delete(owner, chat)
    assert purge(LATER) == 1
    assert not RunStep.objects.exists()
    note.refresh_from_db()
    assert (note.text, note.message_id) == ("Note", None)


def test_setting_decides_when_chats_are_purged(owner, assistant, settings, client):
    settings.DELETED_CHAT_DAYS = 1
    chat = begin(owner, assistant)
    client.force_login(owner)
    menu = client.get(f"/c/{chat.pk}/").content.decode()
    assert "Deleted chats are removed for good after 1 day." in menu
    deleted = client.post(f"/c/{chat.pk}/delete/", follow=True).content.decode()
    assert "was deleted. Removed for good after 1 day." in deleted
    assert purge(DAY - timedelta(hours=1)) == 0
    assert purge(DAY) == 1


def test_long_chat_is_purged_in_small_statements(owner, assistant, monkeypatch):
    """Whatever the order of its ids: clocks of two web processes may differ."""
    monkeypatch.setattr(retention, "MESSAGES", 3)
    chat = begin(owner, assistant)
    messages = add_turns(owner, chat, 8)
    Message.objects.filter(pk=messages[0].pk).update(parent=messages[-1].pk)
    delete(owner, chat)
    assert purge(LATER) == 1
    assert not Message.objects.exists()
    assert not MessagePart.objects.exists()


def test_purge_ends_at_its_time_limit(owner, assistant, monkeypatch):
    monkeypatch.setattr(retention, "SECONDS", 0.0)
    monkeypatch.setattr(retention, "MESSAGES", 3)
    chats = [begin(owner, assistant) for _ in range(2)]
    for chat in chats:
        add_turns(owner, chat, 4)
        delete(owner, chat)
    turns = 0
    while Conversation.objects.exists():
        purge(LATER)
        turns += 1
    assert turns > 4


def test_chat_with_active_run_waits_for_its_end(owner, assistant):
    chat = begin(owner, assistant)
    run = send(owner, chat)
    delete(owner, chat)
    other = begin(owner, assistant)
    delete(owner, other)
    assert purge(LATER) == 1
    assert Run.objects.get().pk == run.pk
    outcome = finish.Outcome(status=Run.Status.STOPPED)
    finish.end(run_id=run.pk, attempt=0, status=Run.Status.QUEUED, seq=9, outcome=outcome)
    assert purge(LATER) == 1
    assert not Run.objects.exists()


def test_bad_chat_does_not_stop_the_others(owner, assistant, monkeypatch):
    monkeypatch.setattr(retention, "CHATS", 1)
    chats = [begin(owner, assistant) for _ in range(3)]
    for chat in chats:
        add_turns(owner, chat, 1)
        delete(owner, chat)
    keeper, now = Retention(), timezone.now() + LATER
    # Purging it clears its leaf.
    with refused("chat_conversation", f"NEW.id = '{chats[0].pk}'"):
        for _ in range(3):
            keeper.purge(now)
    assert [chat.pk for chat in Conversation.objects.all()] == [chats[0].pk]
    assert keeper.purge(now + DAY) == 1


def test_purge_knows_all_tables_of_a_chat():
    """A new table that refers to messages, runs or chats must be purged, too.

    Django deletes imported chats, shares, links, results of tables and bindings to documents with their chat; the
    database deletes entries of the search with their message, drafts and the next message with their chat, and clears the chat of a report.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint"
            " WHERE contype = 'f' AND confrelid::regclass::text = ANY(%s)",
            [["chat_conversation", "chat_message", "chat_run"]],
        )
        references = set(cursor.fetchall())
    assert references == {
        ("chat_apicall", "chat_conversation"),
        ("chat_apicall", "chat_run"),
        ("chat_message", "chat_conversation"),
        ("chat_report", "chat_conversation"),
        ("chat_run", "chat_conversation"),
        ("chat_conversation", "chat_message"),
        ("chat_message", "chat_message"),
        ("chat_messagepart", "chat_message"),
        ("chat_messageattachment", "chat_message"),
        ("chat_messagefeedback", "chat_message"),
        ("chat_report", "chat_message"),
        ("chat_importedchat", "chat_conversation"),
        ("chat_conversationshare", "chat_conversation"),
        ("chat_publiclink", "chat_conversation"),
        ("chat_nextmessage", "chat_conversation"),
        ("chat_draft", "chat_conversation"),
        ("chat_searchentry", "chat_message"),
        ("chat_run", "chat_message"),
        ("chat_usernote", "chat_message"),
        ("tools_runstep", "chat_run"),
        ("documents_conversationdocument", "chat_conversation"),
        ("documents_tableresult", "chat_conversation"),
    }


def test_call_of_the_api_leaves_its_record_alone(owner, assistant, valkey_client, settings):
    settings.API_KEEP_HOURS = 30
    key, _ = api_keys.create(owner, api_keys.Terms(name="Test"))
    request = ApiRequest([{"role": "user", "content": WORD}])
    run = api_calls.start_call(key, assistant.model, request, streamed=False)
    mark_running(run)
    assert purge(31 * HOUR) == 0  # its reply is being written
    outcome = finish.Outcome(
        status=Run.Status.DONE,
        text=WORD,
        tool_calls=[{"id": "1", "name": WORD, "arguments": "{}"}],
        usage=Usage(prompt_tokens=10, completion_tokens=10),
    )
    finish.end(run_id=run.pk, attempt=1, status=Run.Status.RUNNING, seq=5, outcome=outcome)
    assert purge(29 * HOUR) == 0
    assert ApiCall.objects.get().request.count(WORD) == 1
    assert purge(31 * HOUR) == 1
    assert not ApiCall.objects.exists()
    assert not Run.objects.exists()
    assert not MessagePart.objects.exists()
    assert not Conversation.objects.exists()
    record = UsageRecord.objects.get()
    assert (record.api_key, record.conversation) == (key.pk, run.conversation_id)
    key.refresh_from_db()
    assert key.spent == record.charged > 0


def test_old_chats_are_purged_by_site_and_user(owner, stranger, assistant, settings, client):
    client.force_login(owner)
    ages = (10, 100, 400)
    for user in (owner, stranger):
        for days in ages:
            chat = begin(user, assistant, title=f"{days}", pinned_at=timezone.now())
            Conversation.objects.filter(pk=chat.pk).update(updated_at=timezone.now() - days * DAY)
    temporary = begin(owner, assistant, temporary=True)
    Conversation.objects.filter(pk=temporary.pk).update(updated_at=timezone.now() - 400 * DAY)
    assert retention.expire_old(timezone.now()) == 0
    page = "/settings/data/"
    assert client.post(page, {"retention": "7"}).status_code in (400, 422)
    client.post(page, {"retention": "90"})
    assert retention.expire_old(timezone.now()) == 2
    settings.RETENTION_DAYS = 365
    html = client.get(page).content.decode()
    assert "for 365 days" in html
    assert 'value="365"' not in html
    assert retention.expire_old(timezone.now()) == 1
    Conversation.objects.filter(temporary=True).delete()
    assert purge(timedelta()) == 3
    left = Conversation.objects.values_list("owner", "title").order_by("owner", "title")
    assert list(left) == [(owner.pk, "10"), (stranger.pk, "10"), (stranger.pk, "100")]
