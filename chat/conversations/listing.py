"""Lists a user's conversations: newest first, by day, a page at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING
from uuid import UUID

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.formats import date_format

from chat.errors import ChatError
from chat.models import Conversation, Run

if TYPE_CHECKING:
    from accounts.models import User

SIDEBAR_LENGTH = 40
PAGE_LENGTH = 50  # conversations of one page of the list


@dataclass(frozen=True, slots=True)
class Day:
    """Conversations under one heading; `is_recent` when the heading is today or yesterday."""

    label: str
    conversations: list[Conversation]
    is_recent: bool


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the list; `next` is the cursor of the page after it, empty at the end."""

    days: list[Day]
    next: str


def sidebar(user: User) -> list[Day]:
    """Return the newest SIDEBAR_LENGTH conversations by day, in one query.

    Each has `active`: whether a reply is being generated in it.
    """
    return by_day(_newest(user)[:SIDEBAR_LENGTH])


def page(user: User, before: str = "") -> Page:
    """Return PAGE_LENGTH conversations from the newest, or from the cursor `before`; one query.

    Raises ChatError `not_found` for an invalid cursor.
    """
    found = _newest(user)
    if before:
        updated_at, id = _read_cursor(before)
        found = found.filter(Q(updated_at__lt=updated_at) | Q(updated_at=updated_at, id__lt=id))
    rows = list(found[: PAGE_LENGTH + 1])
    shown = rows[:PAGE_LENGTH]
    has_more = len(rows) > PAGE_LENGTH
    next = f"{shown[-1].updated_at.isoformat()}_{shown[-1].id}" if has_more else ""
    return Page(days=by_day(shown), next=next)


def _newest(user: User) -> QuerySet[Conversation]:
    active = Run.objects.active().filter(conversation=OuterRef("pk"))
    found: QuerySet[Conversation] = (
        Conversation.objects.not_deleted()
        .filter(owner=user)
        .annotate(active=Exists(active))
        .order_by("-updated_at", "-id")
    )
    return found


def _read_cursor(text: str) -> tuple[datetime, UUID]:
    updated_at, _, id = text.partition("_")
    try:
        moment = datetime.fromisoformat(updated_at)
        if moment.tzinfo is None:
            raise ValueError("A cursor names its time zone.")
        return moment, UUID(id)
    except ValueError as error:
        raise ChatError("not_found") from error


def by_day(conversations: Iterable[Conversation], *, today: date | None = None) -> list[Day]:
    """Group conversations, newest first: today, yesterday, the last 7 days, then by month."""
    day = today or timezone.localdate()

    def label(conversation: Conversation) -> tuple[str, bool]:
        updated = timezone.localdate(conversation.updated_at)
        if updated >= day:
            return "Today", True
        if updated == day - timedelta(days=1):
            return "Yesterday", True
        if updated > day - timedelta(days=7):
            return "The last 7 days", False
        return date_format(updated, "F Y"), False

    return [
        Day(label=name, conversations=list(found), is_recent=is_recent)
        for (name, is_recent), found in groupby(conversations, key=label)
    ]
