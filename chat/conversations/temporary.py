"""Temporary chats: in no list, search, title or export, and purged when their page is closed, or after a day.

A browser reports a closed page (a beacon), also when it is loaded again. So the report names the time at which its
page was made, and counts only if no page of the chat was made since. A chat is purged a minute after it was closed.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from django.conf import settings
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from chat import access
from chat.models import ApiCall, Conversation, Run
from chat.streaming.user_channel import announce_conversation

if TYPE_CHECKING:
    from accounts.models import User

PURGED_AFTER = timedelta(minutes=1)  # from closing it
KEPT = timedelta(hours=24)  # from its last message
BATCH = 100
CALLS = 1_000  # of one statement


def opened(conversation: Conversation) -> None:
    """Record that a page of a temporary chat is made: it is open again."""
    conversation.opened_at, conversation.closed_at = timezone.now(), None
    conversation.save(update_fields=["opened_at", "closed_at"])


def close(*, user: User, conversation_id: UUID, opened_at: datetime | None) -> None:
    """Record that the page that was made at `opened_at` was closed; None: the page that began the chat.

    Nothing happens to an ordinary chat, or if a page was made since. Raises ChatError `not_found`.
    """
    conversation = access.conversation(user, conversation_id, write=True)
    last = Q(opened_at=None) if opened_at is None else Q(opened_at__lte=opened_at)
    Conversation.objects.filter(last, pk=conversation.pk, temporary=True).update(
        closed_at=timezone.now()
    )


def keep(*, user: User, conversation_id: UUID) -> Conversation:
    """Turn a temporary chat into an ordinary one. Raises ChatError `not_found` or `not_allowed`."""
    conversation = access.conversation(user, conversation_id, write=True)
    conversation.temporary, conversation.closed_at = False, None
    conversation.save(update_fields=["temporary", "closed_at"])
    active = Run.objects.active().filter(conversation=conversation).exists()
    announce_conversation(conversation, active=active)
    return conversation


def expire(now: datetime) -> int:
    """Delete the temporary chats that were closed or left, which retention then purges; return how many."""
    active = Run.objects.active().filter(conversation=OuterRef("pk"))
    due = Q(closed_at__lte=now - PURGED_AFTER) | Q(updated_at__lte=now - KEPT)
    found = Conversation.objects.filter(due, temporary=True, deleted_at=None, api_call=None)
    expired = _expire_calls(now)
    for conversation in found.exclude(Exists(active))[:BATCH]:
        # It may have been opened or kept meanwhile.
        same = Conversation.objects.filter(due, pk=conversation.pk, temporary=True, deleted_at=None)
        if same.update(deleted_at=now):
            conversation.deleted_at = now
            announce_conversation(conversation)
            expired += 1
    return expired


def _expire_calls(now: datetime) -> int:
    """Delete the chats of calls of the API; no page shows one, so none is announced."""
    made_before = now - timedelta(hours=settings.API_KEEP_HOURS)
    due = ApiCall.objects.filter(created_at__lte=made_before, conversation__deleted_at=None)
    ended = due.exclude(run__status__in=Run.ACTIVE).values("conversation")[:CALLS]
    return int(Conversation.objects.filter(pk__in=ended).update(deleted_at=now))
