"""Drafts: the newer edit is kept on all devices, and the message that used it empties it."""

from __future__ import annotations

import pytest

from chat.conversations import drafts
from chat.errors import ChatError
from chat.models import Draft
from chatproject.lib import db
from tests.support.sockets import open_tab

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url"),
]


def save(owner, conversation, text: str, age_ms: int = 0):
    return drafts.save(
        user=owner,
        conversation_id=conversation and conversation.pk,
        text=text,
        age_ms=age_ms,
    )


@pytest.mark.parametrize("is_new", [False, True])
def test_newer_edit_of_two_devices_is_kept(owner, stranger, conversation, is_new):
    chat = None if is_new else conversation
    save(owner, chat, "Laptop", age_ms=5_000)
    assert save(owner, chat, "Phone, an hour ago", age_ms=3_600_000).text == "Laptop"
    assert save(owner, chat, "Phone").text == "Phone"
    assert save(owner, chat, "").text == ""
    assert save(owner, chat, "Laptop, late", age_ms=60_000).text == ""
    shown = drafts.shown(owner, chat)
    assert shown is not None
    assert shown.text == ""
    save(owner, chat, "Mine", age_ms=2**53)
    assert Draft.objects.get().text == ""
    assert drafts.shown(stranger, chat) is None


@pytest.mark.parametrize(("text", "code"), [("x" * 20_001, "text_too_long"), ("\x00", "bad_text")])
def test_bad_draft_is_refused(owner, stranger, conversation, text, code):
    with pytest.raises(ChatError, match=f"{code}:"):
        save(owner, conversation, text)
    with pytest.raises(ChatError, match="not_found:"):
        save(stranger, conversation, "Hello")
    assert not Draft.objects.exists()


@pytest.mark.usefixtures("worker_loop", "socket_loop")
async def test_draft_reaches_other_tabs_until_sent(owner, conversation, provider):
    chat = str(conversation.pk)
    async with open_tab(owner) as tab, open_tab(owner) as other:
        await tab.send(type="draft.save", text="Half a", conversation=chat, age=10)
        assert (await tab.until("draft.updated"))["text"] == "Half a"
        event = await other.until("draft.updated")
        assert (event["conversation"], event["text"]) == (chat, "Half a")
        await tab.send(type="draft.save", text="\x00", conversation=chat)
        assert (await tab.until("error"))["ref"] == f"draft:{chat}"
        await tab.send(
            type="chat.send", client_id="1", conversation=chat, text="Half a message", draft=True
        )
        assert "text" not in await other.until("draft.updated")
        assert await db.run(lambda: Draft.objects.get().text) == ""
        await tab.send(type="draft.save", text="New chat", age=0)
        assert "conversation" not in await other.until("draft.updated")
