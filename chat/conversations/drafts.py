"""Drafts: the unsent text of a user in each conversation, on all devices.

A client stores its text some seconds after the last key. Of two edits the newer one wins, by the
server's clock: a client sends the age of its edit, so its own clock does not matter. No message waits for a
draft: the one that it used is cleared after the response.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from chat import access, protocol
from chat.errors import ChatError
from chat.models import Conversation, Draft
from chat.streaming.user_channel import announce_draft
from chatproject.lib import db
from chatproject.lib.db import prepared

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

MAX_AGE = timedelta(days=365)

# An edit that is not older than the stored one replaces it.
STORE = """
INSERT INTO chat_draft (user_id, conversation_id, text, edited_at) VALUES (%s, %s, %s, %s)
ON CONFLICT {key} DO UPDATE SET text = EXCLUDED.text, edited_at = EXCLUDED.edited_at
WHERE chat_draft.edited_at <= EXCLUDED.edited_at
"""
KEY = "(user_id, conversation_id) WHERE conversation_id IS NOT NULL"
KEY_OF_NEW = "(user_id) WHERE conversation_id IS NULL"

# In plain SQL, as each page needs it: see lib.db.prepared.
SHOWN_OF_NEW = f"""
SELECT {prepared.columns(Draft, "draft")} FROM chat_draft draft
WHERE user_id = %(user)s AND conversation_id IS NULL
"""  # noqa: S608 # of names alone
SHOWN = f"""
SELECT {prepared.columns(Draft, "draft")} FROM chat_draft draft
WHERE user_id = %(user)s AND conversation_id = %(conversation)s
"""  # noqa: S608 # of names alone


def save(
    *, user: User, conversation_id: UUID | None, text: str, age_ms: int = 0
) -> protocol.DraftUpdated:
    """Store a text that was typed `age_ms` milliseconds ago, unless a newer one is stored.

    Returns the draft as it is now, which is also published to the user's pages. Raises ChatError
    `not_found`, `not_allowed`, `bad_text` or `text_too_long`.
    """
    check(text)
    if conversation_id is not None:
        access.conversation(user, conversation_id, write=True)
    now = timezone.now()
    edited_at = now - min(timedelta(milliseconds=age_ms), MAX_AGE)
    if _store(user.pk, conversation_id, text, edited_at):
        event = _event(conversation_id, text, now - edited_at)
        announce_draft(user.pk, event)
        return event
    stored = Draft.objects.get(user=user, conversation=conversation_id)
    return _event(conversation_id, stored.text, now - stored.edited_at)


def check(text: str) -> None:
    """Raise ChatError `bad_text` or `text_too_long` for a text that is not stored."""
    if not protocol.is_storable(text):
        raise ChatError("bad_text")
    if len(text) > settings.TEXT_MAX_CHARACTERS:
        raise ChatError("text_too_long")


def _store(user_id: int, conversation_id: UUID | None, text: str, edited_at: datetime) -> bool:
    sql = STORE.format(key=KEY_OF_NEW if conversation_id is None else KEY)
    with connection.cursor() as cursor:
        cursor.execute(sql, [user_id, conversation_id, text, edited_at])
        return bool(cursor.rowcount)


def _event(conversation_id: UUID | None, text: str, age: timedelta) -> protocol.DraftUpdated:
    milliseconds = max(0, age // timedelta(milliseconds=1))
    return protocol.DraftUpdated(conversation=conversation_id, text=text, age=milliseconds)


def shown(user: User, conversation: Conversation | None) -> Draft | None:
    """Return the draft that a page shows, whose text may be empty; None if there was never one. One query."""
    values = {"user": user.pk, "conversation": conversation.pk if conversation else None}
    row = prepared.first(SHOWN if conversation else SHOWN_OF_NEW, values, Draft)
    return row[0] if row else None


def put_before(*, user: User, conversation_id: UUID | None, text: str) -> str:
    """Put a text before the present draft, and return the new draft; what is too long is cut at its end."""
    with transaction.atomic():
        drafts = Draft.objects.select_for_update()
        stored = drafts.filter(user=user, conversation=conversation_id).first()
        joined = "\n\n".join(filter(None, [text, stored.text if stored else ""]))
        joined = joined[: settings.TEXT_MAX_CHARACTERS]
        _store(user.pk, conversation_id, joined, timezone.now())
    return joined


def clear(user_id: int, conversation_id: UUID | None, sent_at: datetime) -> None:
    """Empty the draft of a message that was sent, unless it was edited since; called after the response."""
    try:
        changed = Draft.objects.filter(
            user=user_id, conversation=conversation_id, edited_at__lte=sent_at
        ).update(text="", edited_at=sent_at)
    except db.UNREACHABLE as error:
        logger.warning("a draft of user %d was not cleared: %s", user_id, error)
        return
    if changed:
        announce_draft(user_id, _event(conversation_id, "", timezone.now() - sent_at))
