"""A user's conversations: listed, renamed, deleted, and told of to the user's open pages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING
from uuid import UUID

from django.conf import settings
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.formats import date_format

from billing import pricing
from chat import access, events
from chat.events import ChatError
from chat.models import Assistant, Conversation, Run
from chatproject.lib.pubsub.layer import publish

if TYPE_CHECKING:
    from accounts.models import User

SIDEBAR_LENGTH = 40
PAGE_LENGTH = 50  # conversations of one page of the list


@dataclass(frozen=True, slots=True)
class Day:
    """Conversations under one heading; `is_recent` when the heading is one single day."""

    label: str
    conversations: list[Conversation]
    is_recent: bool


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the list; `next` is the cursor of the part after it, empty at the end."""

    days: list[Day]
    next: str


def sidebar(user: User) -> list[Day]:
    """The newest SIDEBAR_LENGTH conversations by day, in one query.

    Each has `active`: whether a reply is being written in it.
    """
    return by_day(_newest(user)[:SIDEBAR_LENGTH])


def page(user: User, before: str = "") -> Page:
    """PAGE_LENGTH conversations from the newest, or from the cursor `before`; one query.

    Raises ChatError `not_found` for a cursor that `page` did not make.
    """
    found = _newest(user)
    if before:
        updated_at, id = _read_cursor(before)
        found = found.filter(Q(updated_at__lt=updated_at) | Q(updated_at=updated_at, id__lt=id))
    rows = list(found[: PAGE_LENGTH + 1])
    shown = rows[:PAGE_LENGTH]
    return Page(days=by_day(shown), next=_cursor(shown[-1]) if len(rows) > PAGE_LENGTH else "")


def _newest(user: User) -> QuerySet[Conversation]:
    active = Run.objects.active().filter(conversation=OuterRef("pk"))
    found: QuerySet[Conversation] = (
        Conversation.objects.kept()
        .filter(owner=user)
        .annotate(active=Exists(active))
        .order_by("-updated_at", "-id")
    )
    return found


def _cursor(conversation: Conversation) -> str:
    return f"{conversation.updated_at.isoformat()}_{conversation.id}"


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
    """Group conversations, newest first, as one speaks of days: today, yesterday, this week, months."""
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


def default_assistant() -> Assistant | None:
    """Whom a new conversation talks to; None when nobody is enabled whose model has a price."""
    offered = Assistant.objects.select_related("model").filter(enabled=True, model__enabled=True)
    if settings.BILLING:
        offered = offered.filter(model__provider_model__in=pricing.priced_models())
    found: Assistant | None = offered.first()
    return found


def rename(*, user: User, conversation_id: UUID, title: str) -> Conversation:
    """Give a conversation another name and tell the user's pages.

    Raises ChatError `not_found` or `not_allowed`. `title` is checked by forms.TitleForm.
    """
    conversation = access.conversation(user, conversation_id, write=True)
    conversation.title = title
    conversation.save(update_fields=["title"])
    announce(conversation, active=active_run(conversation) is not None)
    return conversation


def delete(*, user: User, conversation_id: UUID) -> Conversation:
    """Take a conversation away; it stays in the database until it is purged.

    A reply that is being written in it should be stopped first (`active_run`, `runs.stop`). Raises
    ChatError `not_found` or `not_allowed`.
    """
    conversation = access.conversation(user, conversation_id, write=True)
    conversation.deleted_at = timezone.now()
    conversation.save(update_fields=["deleted_at"])
    announce(conversation, deleted=True)
    return conversation


def active_run(conversation: Conversation) -> Run | None:
    """The run that makes a reply in the conversation now, if there is one."""
    run: Run | None = conversation.runs.active().select_related("message").first()
    return run


def announce(conversation: Conversation, *, active: bool = False, deleted: bool = False) -> None:
    """Tell the open pages of the owner how a conversation stands; call it after the commit.

    Pages are right after a reload, so a Redis that is away (`publish` logs it) only delays the news.
    """
    event = events.ConversationUpdated(
        conversation=conversation.id,
        title=str(conversation),
        url=conversation.get_absolute_url(),
        updated_at=conversation.updated_at.isoformat(),
        active=active,
        deleted=deleted,
    )
    publish(events.user_group(conversation.owner_id), event.encode())
