"""The part of chat in the deletion of an account: what ends at the request, and steps of the purge."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from django.utils import timezone

from accounts.privacy.erase import addresses
from billing.metering import usage
from chat.conversations import sharing
from chat.documents import lifecycle, links
from chat.documents.models import Document
from chat.errors import ChatError
from chat.insights import finish
from chat.insights.models import InsightJob
from chat.models import (
    Assistant,
    Attachment,
    ChatExport,
    ChatImport,
    Conversation,
    ConversationShare,
    NextMessage,
    PushSubscription,
    Run,
    Webhook,
)
from chat.recovery import retention
from chat.runs import queue
from chat.runs.stop import stop_run, stop_run_by_staff
from chat.webhooks import ending
from chatproject.lib import private_files

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

BATCH = 100


def close(user: User) -> None:
    """Stop the user's replies and imports, pause waiting messages, end shares, remove devices of notifications.

    Messages to webhooks that wait are given up.
    """
    waiting = NextMessage.objects.filter(conversation__owner=user, state=NextMessage.State.WAITING)
    waiting.update(state=NextMessage.State.PAUSED)
    for run_id in list(Run.objects.active().filter(user=user).values_list("pk", flat=True)):
        try:
            stop_run(user=user, run_id=run_id)
        except ChatError as error:  # Redis is unreachable: the run ends later, and is settled then
            logger.warning("run %s of a leaving user goes on: %s", run_id, error.code)
    now = timezone.now()
    for rows in (ChatImport.objects.filter(owner=user), ChatExport.objects.filter(owner=user)):
        active = rows.filter(status__in=ChatImport.ACTIVE)
        active.update(status=ChatImport.Status.STOPPED, ended_at=now)
    _stop_insights(user)
    sharing.end_all_of(user)
    links.end_all_of(user)
    PushSubscription.objects.filter(user=user).delete()
    for webhook_id in list(Webhook.objects.filter(owner=user).values_list("pk", flat=True)):
        ending.give_up(webhook_id)


# --- Steps of the purge -------------------------------------------------------------------------


def erase_conversations(user: User, deadline: float) -> bool:
    """Purge all chats of the user with shares, messages, runs, index and the keys of runs in Redis."""
    now = timezone.now()
    sharing.end_all_of(user)
    # Shares with an address that was not verified here belong to no account.
    ConversationShare.objects.filter(email__in=addresses(user)).delete()
    chats = Conversation.objects.filter(owner=user)
    chats.filter(deleted_at=None).update(deleted_at=now)
    for chat_id in list(chats.values_list("pk", flat=True)):
        while (is_purged := retention.purge_some(chat_id, now)) is False:
            if time.monotonic() > deadline:
                return False
        if is_purged is None:  # a run goes on; the next job continues
            active = Run.objects.active().filter(conversation=chat_id)
            for run_id in list(active.values_list("pk", flat=True)):
                stop_run_by_staff(run_id)
        if time.monotonic() > deadline:
            return False
    return not chats.exists()


def erase_files(user: User, deadline: float) -> bool:
    """Delete the files of uploads, imports and exports, then their rows."""
    for kind in (Attachment, ChatImport, ChatExport):
        rows = kind._base_manager.filter(owner=user)
        while found := list(rows.order_by("pk")[:BATCH]):
            for one in found:
                for name in ("file", "thumbnail"):
                    private_files.remove(getattr(one, name, ""))
            rows.filter(pk__in=[one.pk for one in found]).delete()
            if time.monotonic() > deadline:
                return False
    return True


def erase_documents(user: User, deadline: float) -> bool:
    """Delete the user's documents, one at a time: its file, then its rows. Jobs of insights end before, charged."""
    _stop_insights(user)
    rows = Document.all_objects.filter(owner=user)
    while (found := rows.order_by("pk").first()) is not None:
        lifecycle.purge(found)
        if time.monotonic() > deadline:
            return False
    return True


def _stop_insights(user: User) -> None:
    """End the user's jobs of insights; each is charged for what it delivered."""
    jobs = InsightJob.objects.filter(owner=user, status=InsightJob.Status.ACTIVE)
    for job_id in list(jobs.values_list("pk", flat=True)):
        finish.stop(job_id)


def erase_assistants(user: User, deadline: float) -> bool:
    """Delete the user's assistants. One that chats of others have stays as a row without a text of the user.

    Their names are removed from records of usage, where those of the staff's assistants stay.
    """
    for pk in list(Assistant.objects.filter(owner=user).values_list("pk", flat=True)):
        Assistant.objects.filter(pk=pk).update(
            slug=f"erased-{pk}",
            name="(erased)",
            description="",
            system_prompt="",
            suggestions=[],
            owner=None,
            shared=False,
            deleted_at=timezone.now(),
        )
    kept = Assistant.objects.filter(personal=False).values_list("name", flat=True)
    usage.erase_assistants(user.pk, list(kept))
    return True


def erase_queue(user: User, deadline: float) -> bool:
    """Delete the throttle of the user's runs. Raises redis.RedisError."""
    queue.forget_user(user.pk)
    return True
