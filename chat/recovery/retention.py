"""Retention: deleted chats and projects are purged DELETED_CHAT_DAYS after their deletion, temporary chats at once.

Everything that holds text goes: messages with their parts, runs, the chat's title, and the runs' keys in
Redis. Files that only its messages have go with the next turn of chat.attachments.sweep. Records of usage and of
credits stay; they name a chat by its id and hold no text. Deleted personal assistants are purged when no chat has them any longer.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Q

from accounts.models import User
from chat.conversations import assistants, lifecycle, sharing, temporary
from chat.models import Conversation, IdempotencyKey, Message, Project, Run
from chat.streaming import log as run_log
from chatproject.lib.batches import SetAside
from chatproject.lib.db import prepared

logger = logging.getLogger(__name__)

EXPIRED_EVERY = 3600.0  # seconds
EVERY = 10.0  # seconds: a temporary chat has a minute from its closing
SECONDS = 2.0  # time limit of one turn, as the clock has other work; the next turn continues
CHATS = 100  # chats of one query
ASSISTANTS = "assistants"  # in place of a chat's id, when their purge is set aside
MESSAGES = 500  # rows of one statement, which thus locks nothing for long


class Retention:
    """Purges deleted chats; one that fails is set aside."""

    def __init__(self) -> None:
        self._set_aside = SetAside()

    def purge(self, now: datetime) -> int:
        """Purge chats that were deleted long enough ago; return how many.

        Raises redis.RedisError while Redis is unreachable: nothing may be left there.
        """
        deadline = time.monotonic() + SECONDS
        if self._set_aside.is_due(ASSISTANTS, now):
            with self._set_aside.apart(ASSISTANTS, "the purge of assistants", now):
                assistants.purge(CHATS)
        before = now - timedelta(days=settings.DELETED_CHAT_DAYS)
        purged = 0
        # Without chats (conversations/projects.py); some at a time, as all others.
        projects = Project.objects.filter(deleted_at__lte=before).values("pk")[:CHATS]
        Project.objects.filter(pk__in=projects).delete()
        temporary.expire(now)
        # Some at a time, as all others.
        old = IdempotencyKey.objects.filter(created_at__lt=now - IdempotencyKey.KEPT).values("pk")
        IdempotencyKey.objects.filter(pk__in=old[:MESSAGES]).delete()
        deleted = Conversation.objects.filter(deleted_at__lte=before).order_by("deleted_at")
        gone = Conversation.objects.filter(temporary=True, deleted_at__lte=now)
        # A bad chat must not keep its place at the front: as many more are read as were set aside.
        most = CHATS + self._set_aside.count
        found = [(chat_id, now) for chat_id in gone.values_list("pk", flat=True)[:most]]
        found += [(chat_id, before) for chat_id in deleted.values_list("pk", flat=True)[:most]]
        for chat_id, until in found:
            if not self._set_aside.is_due(chat_id, now):
                continue
            with self._set_aside.apart(chat_id, f"the purge of chat {chat_id}", now):
                while (is_purged := purge_some(chat_id, until)) is False:
                    if time.monotonic() > deadline:
                        return purged
                purged += bool(is_purged)
            if time.monotonic() > deadline:
                break
        if purged:
            logger.info("%d deleted chats were purged", purged)
        return purged


def expire_old(now: datetime) -> int:
    """Delete chats that had no message for RETENTION_DAYS, or for the days that their user has chosen; return how many.

    Pinned and archived ones too. Their purge is due at once. Called by the clock, rarely: an index by time would
    cost each message a write.
    """
    periods: list[tuple[int, Q]] = []
    if settings.RETENTION_DAYS:
        periods.append((settings.RETENTION_DAYS, Q()))
    chosen = User.objects.filter(retention_days__isnull=False).order_by().distinct()
    for days in chosen.values_list("retention_days", flat=True):
        assert days is not None
        periods.append((days, Q(owner__retention_days=days)))
    deadline = time.monotonic() + SECONDS
    deleted_at = now - timedelta(days=settings.DELETED_CHAT_DAYS)
    expired = 0
    for days, owners in periods:
        old = Q(updated_at__lt=now - timedelta(days=days), deleted_at=None, temporary=False)
        while time.monotonic() < deadline:
            found = list(Conversation.objects.filter(old, owners)[:CHATS])
            if not found:
                break
            # A message may have come meanwhile.
            rows = Conversation.objects.filter(old, pk__in=[one.pk for one in found])
            if not (count := rows.update(deleted_at=deleted_at)):
                break
            expired += count
            gone = list(
                Conversation.objects.filter(pk__in=[one.pk for one in found], deleted_at=deleted_at)
            )
            sharing.end_all(gone)
            lifecycle.announce_all(gone)
    if expired:
        logger.info("%d chats without a message for long are deleted", expired)
    return expired


def purge_some(chat_id: UUID, before: datetime) -> bool | None:
    """Delete up to MESSAGES messages of a chat that was deleted before a time, the newest first.

    Returns True when the chat is purged, False when messages are left, and None when the chat is not to
    be purged now: a run of it has not ended (the next turn finds the chat again), or another process
    has it.
    """
    if Run.objects.active().filter(conversation=chat_id).exists():
        return None
    newest = Message.objects.filter(conversation=chat_id).order_by("-id")
    found = list(newest.values_list("pk", flat=True)[:MESSAGES])
    runs = Run.objects.filter(message__in=found)
    run_log.forget([*runs.values_list("pk", flat=True)])
    with transaction.atomic():
        chat = (
            Conversation.objects.select_for_update(skip_locked=True)
            .filter(pk=chat_id, deleted_at__lte=before)
            .first()
        )
        if chat is None:
            return None
        if found:
            Conversation.objects.filter(pk=chat_id, leaf__isnull=False).update(leaf=None)
            prepared.change(DELETE, {"messages": found})
        if len(found) == MESSAGES:
            return False
        chat.delete()
        return True


# In one statement, so that no message is left without its parent. Django would read all rows first.
DELETE = """
WITH runs AS (DELETE FROM chat_run WHERE message_id = ANY(%(messages)s) RETURNING id),
calls AS (DELETE FROM chat_apicall WHERE run_id IN (SELECT id FROM runs)),
steps AS (DELETE FROM tools_runstep WHERE run_id IN (SELECT id FROM runs)),
parts AS (DELETE FROM chat_messagepart WHERE message_id = ANY(%(messages)s)),
links AS (DELETE FROM chat_messageattachment WHERE message_id = ANY(%(messages)s)),
feedback AS (DELETE FROM chat_messagefeedback WHERE message_id = ANY(%(messages)s)),
reports AS (UPDATE chat_report SET message_id = NULL, text = '' WHERE message_id = ANY(%(messages)s)),
notes AS (UPDATE chat_usernote SET message_id = NULL WHERE message_id = ANY(%(messages)s)),
children AS (
  UPDATE chat_message SET parent_id = NULL
  WHERE parent_id = ANY(%(messages)s) AND NOT id = ANY(%(messages)s)
)
DELETE FROM chat_message WHERE id = ANY(%(messages)s)
"""
