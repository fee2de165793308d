"""A whole conversation: its default assistant, first title, renaming, deletion, active runs."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from django.conf import settings
from django.utils import timezone

from billing.metering import pricing
from chat import access
from chat.models import Assistant, Conversation, Run
from chat.streaming.user_channel import announce_conversation

if TYPE_CHECKING:
    from accounts.models import User

TITLE_CHARACTERS = 50


def default_assistant() -> Assistant | None:
    """Return the assistant of new conversations; None if no enabled one has a priced model.

    The model's provider must be enabled as well.
    """
    offered = (
        Assistant.objects.select_related("model__provider")
        .filter(enabled=True, model__enabled=True)
        .exclude(model__provider__enabled=False)
    )
    if settings.BILLING:
        offered = offered.filter(model__provider_model__in=pricing.priced_models())
    return offered.first()


def put_first(chosen: Assistant) -> bool:
    """Put an assistant before all others; return whether it is now the one of new conversations."""
    ordered = [chosen, *Assistant.objects.exclude(pk=chosen.pk)]
    for position, assistant in enumerate(ordered):
        assistant.position = position
    Assistant.objects.bulk_update(ordered, ["position"])
    return default_assistant() == chosen


def first_title(text: str) -> str:
    """Return the title of a conversation that begins with a text: its first line, cut at a word.

    A long word is cut within it: an address, or a line of Chinese, has no spaces.
    """
    line = " ".join(text.splitlines()[0].split())
    if len(line) <= TITLE_CHARACTERS:
        return line or "…"
    words = line[:TITLE_CHARACTERS].rpartition(" ")[0]
    cut = words if 2 * len(words) >= TITLE_CHARACTERS else line[: TITLE_CHARACTERS - 1]
    return cut.rstrip() + "…"


def rename(*, user: User, conversation_id: UUID, title: str) -> Conversation:
    """Set a conversation's title and announce it to the user's pages.

    Raises ChatError `not_found` or `not_allowed`. `title` is validated by forms.TitleForm.
    """
    conversation = access.conversation(user, conversation_id, write=True)
    conversation.title = title
    conversation.save(update_fields=["title"])
    announce_conversation(conversation, active=bool(active_runs(conversation)))
    return conversation


def delete(*, user: User, conversation_id: UUID) -> Conversation:
    """Mark a conversation as deleted; recovery/retention.py purges it after some days.

    Replies that are being generated should be stopped first (`active_runs`, `runs.stop`). Raises
    ChatError `not_found` or `not_allowed`.
    """
    conversation = access.conversation(user, conversation_id, write=True)
    conversation.deleted_at = timezone.now()
    conversation.save(update_fields=["deleted_at"])
    announce_conversation(conversation)
    return conversation


def active_runs(conversation: Conversation) -> list[Run]:
    """Return the runs that generate replies in the conversation: several only for a comparison."""
    return list(conversation.runs.active().select_related("message").order_by("lane"))
