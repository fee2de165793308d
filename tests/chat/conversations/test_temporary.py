"""Temporary chats: in no list, search, title or export, and purged when they are closed, or after a day."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from billing.models import LedgerEntry
from chat.conversations import branches, listing, search, search_index, temporary
from chat.errors import ChatError
from chat.generation import generate
from chat.models import Conversation, Draft, Message
from chat.recovery.retention import Retention
from chatproject.lib import db
from tests.support.sockets import open_tab

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("worker_loop", "socket_loop"),
]


async def test_temporary_chat_is_hidden_until_kept(owner, stranger, assistant, provider, settings):
    settings.TITLE_MODEL = "stub-model"
    async with open_tab(owner) as tab:
        fields = {"text": "[[tokens=3 rate=0]] Walrus", "temporary": True}
        await tab.send(type="chat.send", client_id="1", **fields)
        queued = await tab.until("run.queued")
        await generate.run(queued["run"], 1)
        await tab.end()
        assert "conversation.updated" not in {event["type"] for event in tab.received}

        def check() -> None:
            [chat] = Conversation.objects.all()
            assert chat.temporary
            assert chat.leaf_id
            copy = branches.fork(user=owner, message_id=chat.leaf_id, client_id="f")
            assert copy.temporary
            while search_index.index_batch():
                pass
            assert listing.sidebar(owner).days == []
            assert search.search(owner, "walrus").hits == []
            assert temporary.expire(timezone.now()) == 0
            with pytest.raises(ChatError, match="not_found:"):
                temporary.keep(user=stranger, conversation_id=chat.pk)
            temporary.keep(user=owner, conversation_id=chat.pk)
            [day] = listing.sidebar(owner).days
            assert day.conversations == [chat]
            assert [hit.conversation for hit in search.search(owner, "walrus").hits] == [chat.pk]
            assert temporary.expire(timezone.now() + timedelta(days=2)) == 1  # the copy

        await db.run(check)
        event = await tab.until("conversation.updated")
        assert event["title"].endswith("Walrus")


def test_closed_page_purges_chat_unless_opened_again(owner, stranger, assistant, provider):
    client = Client()
    client.force_login(owner)
    made = client.post("/c/new/", {"text": "Secret", "client_id": "1", "temporary": "1"})
    address = made["Location"].removesuffix("#end")
    [chat] = Conversation.objects.all()
    chat.runs.update(status="done", ended_at=timezone.now())
    assert "chat-temporary" in client.get("/?temporary=1").content.decode()
    client.get(address)
    chat.refresh_from_db()
    first = chat.opened_at.isoformat()
    client.get(address, headers={"X-Sync": "1"})
    client.get(address)  # a reload, whose report comes late
    assert client.post(f"{address}close/", {"opened": first}).status_code == 204
    later = timezone.now() + timedelta(minutes=2)
    assert temporary.expire(later) == 0
    for opened in ("x", "2026-01-01T00:00:00", "2026-01-01"):
        assert client.post(f"{address}close/", {"opened": opened}).status_code == 400
    chat.refresh_from_db()
    other = Client()
    other.force_login(stranger)
    last = {"opened": chat.opened_at.isoformat()}
    assert other.post(f"{address}close/", last).status_code == 404
    client.post(f"{address}close/", last)
    entries = LedgerEntry.objects.count()
    Draft.objects.create(user=owner, conversation=chat, text="More", edited_at=later)
    Retention().purge(timezone.now())
    assert Conversation.objects.exists()
    Retention().purge(later)
    assert not Conversation.objects.exists()
    assert not Message.objects.exists()
    assert not Draft.objects.exists()
    assert LedgerEntry.objects.count() == entries > 0


def test_temporary_chat_is_purged_after_a_day(owner, assistant):
    Conversation.objects.create(
        owner=owner, assistant=assistant, temporary=True, updated_at=timezone.now()
    )
    Retention().purge(timezone.now() + timedelta(hours=23))
    assert Conversation.objects.exists()
    Retention().purge(timezone.now() + timedelta(hours=25))
    assert not Conversation.objects.exists()
