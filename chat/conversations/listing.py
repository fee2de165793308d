"""Lists a user's conversations: newest first, by day, a page at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING
from uuid import UUID

from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _

from chat.conversations.lifecycle import MAX_PINNED
from chat.errors import ChatError
from chat.models import Conversation, Project, Run
from chatproject.lib.db import prepared

if TYPE_CHECKING:
    from accounts.models import User

SIDEBAR_LENGTH = 40
SIDEBAR_MAX = 400  # conversations of one request
PAGE_LENGTH = 50  # conversations of one page of the list


@dataclass(frozen=True, slots=True)
class Day:
    """Conversations under one heading; `is_recent` when the heading is today or yesterday."""

    label: str
    conversations: list[Conversation]
    is_recent: bool
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list; `next` is the cursor of the page after it, empty at the end."""

    days: list[Day]
    next: str


def sidebar(user: User, before: str = "", length: int = SIDEBAR_LENGTH) -> Page:
    """Return the pinned conversations and the `length` newest others, or those from the cursor `before`.

    At most SIDEBAR_MAX. Each has `active`: whether a reply is being generated in it. One query. Raises
    ChatError `not_found` for an invalid cursor.
    """
    return page(user, before, max(1, min(length, SIDEBAR_MAX)))


def page(user: User, before: str = "", length: int = PAGE_LENGTH) -> Page:
    """Return the pinned conversations and the `length` newest others, or those from the cursor `before`.

    The pinned ones are on the first page only. One query. Raises ChatError `not_found` for an invalid
    cursor.
    """
    if before:
        others = _conversations(user).filter(archived_at=None, pinned_at=None)
        updated_at, id = _read_cursor(before)
        earlier = Q(updated_at__lt=updated_at) | Q(updated_at=updated_at, id__lt=id)
        found = list(others.filter(earlier).order_by("-updated_at", "-id")[: length + 1])
    else:
        found = _newest(user, length + 1)
    rows = [each for each in found if each.pinned_at is None]
    rows.sort(key=lambda each: (each.updated_at, each.id), reverse=True)
    next = _cursor(rows[length - 1].updated_at, rows[length - 1]) if len(rows) > length else ""
    pins = [each for each in found if each.pinned_at is not None]
    pins.sort(key=lambda each: (each.pinned_at, each.id), reverse=True)
    group = [Day(_("Pinned"), pins, is_recent=False, is_pinned=True)] if pins else []
    return Page(days=group + by_day(rows[:length]), next=next)


# In plain SQL, as each page needs it: see lib.db.prepared. `_conversations` selects the same.
NEWEST = f"""
SELECT {prepared.columns(Conversation, "shown")},
  EXISTS (SELECT 1 FROM chat_run WHERE conversation_id = shown.id AND status IN ('queued', 'running')),
  project.name
FROM (
  (SELECT * FROM chat_conversation
   WHERE owner_id = %(user)s AND deleted_at IS NULL AND archived_at IS NULL AND NOT temporary
     AND pinned_at IS NOT NULL
   ORDER BY pinned_at DESC LIMIT {MAX_PINNED})
  UNION ALL
  (SELECT * FROM chat_conversation
   WHERE owner_id = %(user)s AND deleted_at IS NULL AND archived_at IS NULL AND NOT temporary
     AND pinned_at IS NULL
   ORDER BY updated_at DESC, id DESC LIMIT %(length)s)
) AS shown LEFT JOIN chat_project project ON project.id = shown.project_id
"""  # noqa: S608 # of names alone


def _newest(user: User, length: int) -> list[Conversation]:
    """Return the pinned conversations and the `length` newest others, in any order."""
    found: list[Conversation] = []
    values = {"user": user.pk, "length": length}
    for conversation, active, project_name in prepared.each(NEWEST, values, Conversation):
        conversation.active, conversation.project_name = active, project_name
        found.append(conversation)
    return found


def archive(user: User, before: str = "", length: int = PAGE_LENGTH) -> Page:
    """Return `length` archived conversations by the day of their archiving; one query.

    Raises ChatError `not_found` for an invalid cursor.
    """
    found = _conversations(user).filter(archived_at__isnull=False)
    if before:
        archived_at, id = _read_cursor(before)
        found = found.filter(Q(archived_at__lt=archived_at) | Q(archived_at=archived_at, id__lt=id))
    rows = list(found.order_by("-archived_at", "-id")[: length + 1])
    shown = rows[:length]
    next = _cursor(shown[-1].archived_at, shown[-1]) if len(rows) > length else ""
    return Page(days=by_day(shown, by="archived_at"), next=next)


def in_project(project: Project, before: str = "", length: int = PAGE_LENGTH) -> Page:
    """Return `length` conversations of a project, newest first; one query.

    Raises ChatError `not_found` for an invalid cursor.
    """
    found = _conversations(project.owner).filter(project=project, archived_at=None)
    if before:
        updated_at, id = _read_cursor(before)
        found = found.filter(Q(updated_at__lt=updated_at) | Q(updated_at=updated_at, id__lt=id))
    rows = list(found.order_by("-updated_at", "-id")[: length + 1])
    shown = rows[:length]
    next = _cursor(shown[-1].updated_at, shown[-1]) if len(rows) > length else ""
    return Page(days=by_day(shown), next=next)


def _conversations(user: User) -> QuerySet[Conversation]:
    active = Run.objects.active().filter(conversation=OuterRef("pk"))
    found: QuerySet[Conversation] = (
        Conversation.objects.not_deleted()
        .filter(owner=user, temporary=False)
        .annotate(active=Exists(active), project_name=F("project__name"))
    )
    return found


def _cursor(moment: datetime | None, conversation: Conversation) -> str:
    assert moment is not None  # the list is ordered by it
    return f"{moment.isoformat()}_{conversation.id}"


def _read_cursor(text: str) -> tuple[datetime, UUID]:
    updated_at, _underscore, id = text.partition("_")
    try:
        moment = datetime.fromisoformat(updated_at)
        if moment.tzinfo is None:
            raise ValueError("A cursor names its time zone.")
        return moment, UUID(id)
    except ValueError as error:
        raise ChatError("not_found") from error


def by_day(
    conversations: Iterable[Conversation], *, today: date | None = None, by: str = "updated_at"
) -> list[Day]:
    """Group conversations, newest first: today, yesterday, the last 7 days, then by month."""
    day = today or timezone.localdate()

    def label(conversation: Conversation) -> tuple[str, bool]:
        updated = timezone.localdate(getattr(conversation, by))
        if updated >= day:
            return _("Today"), True
        if updated == day - timedelta(days=1):
            return _("Yesterday"), True
        if updated > day - timedelta(days=7):
            return _("The last 7 days"), False
        return date_format(updated, "F Y"), False

    return [
        Day(label=name, conversations=list(found), is_recent=is_recent)
        for (name, is_recent), found in groupby(conversations, key=label)
    ]
