"""All files of a user: a page of them with the chats that have them, and their deletion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from django.db import transaction

from billing.metering import plan_limits
from chat.models import Attachment, Conversation, MessageAttachment
from chatproject.lib.db import prepared

if TYPE_CHECKING:
    from accounts.models import User

FILES = 50  # of one page

# The entries stay in the messages, as deleted ones, so that a reader sees what the message had.
MARK_DELETED = """
UPDATE chat_message SET attached = (
  SELECT jsonb_agg(
    CASE WHEN entry ->> 'id' = ANY(%(ids)s::text[]) THEN entry || '{"deleted": true}' ELSE entry END ORDER BY place)
  FROM jsonb_array_elements(attached) WITH ORDINALITY AS one(entry, place))
WHERE id IN (SELECT message_id FROM chat_messageattachment WHERE attachment_id = ANY(%(ids)s::uuid[]))
"""


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file with the newest chat that has it; None for a file of no message, or of deleted chats alone."""

    attachment: Attachment
    chat: Conversation | None


@dataclass(frozen=True, slots=True)
class Page:
    """Files, newest first; `next` is the cursor of the next page, None at the end. Sizes are in bytes."""

    files: list[ListedFile]
    next: UUID | None
    used: int
    most: int


def page(user: User, before: str, used: int) -> Page:
    """Return a page of a user's files: those before the cursor `before`, unchecked text from a URL."""
    mine = Attachment.objects.filter(owner=user)
    try:
        found = mine.filter(pk__lt=UUID(before)) if before else mine
    except ValueError:
        found = mine
    rows = list(found[: FILES + 1])
    links = MessageAttachment.objects.select_related("message__conversation").filter(
        attachment__in=rows[:FILES],
        message__conversation__owner=user,
        message__conversation__deleted_at=None,
    )
    chats = {link.attachment_id: link.message.conversation for link in links.order_by("message")}
    return Page(
        files=[ListedFile(one, chats.get(one.pk)) for one in rows[:FILES]],
        next=rows[FILES - 1].pk if len(rows) > FILES else None,
        used=used,
        most=plan_limits.upload_bytes(user.plan_id),
    )


def delete(*, user: User, ids: Sequence[UUID]) -> int:
    """Delete files of a user, also from messages, which then name them as deleted; return how many."""
    with transaction.atomic():
        rows = Attachment.objects.select_for_update().filter(owner=user, pk__in=ids[:FILES])
        found = [one.pk for one in rows.order_by("pk")]
        if found:
            prepared.change(MARK_DELETED, {"ids": [str(id) for id in found]})
            Attachment.objects.filter(pk__in=found).delete()
    return len(found)
