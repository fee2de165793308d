"""A whole conversation: its default assistant, first title, renaming, deletion, active runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from django.utils import timezone
from django.utils.translation import gettext_lazy

from chat import access
from chat.conversations import assistants
from chat.conversations.plain_text import plain
from chat.errors import ChatError
from chat.models import Assistant, Conversation, Project, Run
from chat.streaming.user_channel import announce_conversation

if TYPE_CHECKING:
    from accounts.models import User

TITLE_CHARACTERS = 50
LONGEST_LINE = 500  # characters of a first line that are read
MAX_CHANGED = 200  # conversations of one request
MAX_PINNED = 50
TOO_MANY_CHANGED = gettext_lazy("Select up to %(count)d chats at a time. Nothing was changed.")
TOO_MANY_PINNED = gettext_lazy("You can pin up to %(count)d chats. Unpin one first.")


def default_assistant(user: User | None = None, project: Project | None = None) -> Assistant | None:
    """Return the assistant of new conversations, `assistants.default`; None without one.

    In a project it is the project's, if that is offered to the user; its annotation `preferred_model_id` is then
    the key of the project's model.
    """
    chosen: Assistant | None = None
    if user is not None and project is not None and project.assistant_id is not None:
        chosen = assistants.offered(user).filter(pk=project.assistant_id).first()
    chosen = chosen or assistants.default(user)
    if chosen is not None and project is not None and project.model_id is not None:
        chosen.preferred_model_id = project.model_id  # type: ignore[attr-defined] # an annotation
    return chosen


def put_first(chosen: Assistant) -> bool:
    """Put one of staff's assistants before all others; return whether it is now the one of new conversations."""
    ordered = [chosen, *Assistant.objects.filter(personal=False).exclude(pk=chosen.pk)]
    for position, assistant in enumerate(ordered):
        assistant.position = position
    Assistant.objects.bulk_update(ordered, ["position"])
    return default_assistant() == chosen


def first_title(text: str) -> str:
    """Return the title of a conversation that begins with a text: its first line without marks, cut at a word.

    A long word is cut within it: an address, or a line of Chinese, has no spaces.
    """
    first = text.splitlines()[0][:LONGEST_LINE]
    line = plain(first) or " ".join(first.split())
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
    conversation.title, conversation.titled_by = title, Conversation.TitledBy.PERSON
    conversation.save(update_fields=["title", "titled_by"])
    announce_conversation(conversation, active=bool(active_runs(conversation)))
    return conversation


# The column of a conversation that an action sets to the present time, or empties.
ACTIONS = {
    "pin": ("pinned_at", True),
    "unpin": ("pinned_at", False),
    "archive": ("archived_at", True),
    "unarchive": ("archived_at", False),
    "delete": ("deleted_at", True),
}


def change(
    *, user: User, conversation_ids: Sequence[UUID], action: str
) -> tuple[list[Conversation], datetime]:
    """Apply one of ACTIONS to conversations; return them, and the time by which `undo` finds them.

    recovery/retention.py purges deleted conversations after some days; `runs.delete` stops their replies
    first. Raises ChatError `not_found` if the user has none of them, or `too_many`.
    """
    if len(conversation_ids) > MAX_CHANGED:
        raise ChatError("too_many", str(TOO_MANY_CHANGED % {"count": MAX_CHANGED}))
    found = access.conversations(user, conversation_ids)
    column, is_set = ACTIONS[action]
    now = timezone.now()
    rows = Conversation.objects.filter(owner=user)
    if action == "pin":
        pinned = rows.not_deleted().filter(pinned_at__isnull=False)
        if pinned.exclude(pk__in=conversation_ids).count() + len(found) > MAX_PINNED:
            raise ChatError("too_many", str(TOO_MANY_PINNED % {"count": MAX_PINNED}))
    rows.filter(pk__in=[each.pk for each in found]).update(**{column: now if is_set else None})
    for conversation in found:
        setattr(conversation, column, now if is_set else None)
    announce_all(found)
    return found, now


def undo(*, user: User, action: str, at: datetime) -> int:
    """Undo a `change` ("archive" or "delete") made at a time; return the number of conversations."""
    column, _ = ACTIONS[action]
    found = list(Conversation.objects.filter(owner=user, **{column: at})[:MAX_CHANGED])
    undone = Conversation.objects.filter(pk__in=[each.pk for each in found], **{column: at})
    count = undone.update(**{column: None})
    for conversation in found:
        setattr(conversation, column, None)
    announce_all(found, restored=action == "delete")
    return count


def mark_read(*, user: User, conversation_id: UUID) -> None:
    """Record that the user has seen the newest reply; raises ChatError `not_found` or `not_allowed`."""
    conversation = access.conversation(user, conversation_id, write=True)
    if not Conversation.objects.filter(pk=conversation.pk, unread=True).update(unread=False):
        return
    conversation.unread = False
    announce_all([conversation])


def announce_all(conversations: list[Conversation], *, restored: bool = False) -> None:
    """Publish conversations of one user to the user's pages; one query."""
    runs = Run.objects.active().filter(conversation__in=[each.pk for each in conversations])
    active = set(runs.values_list("conversation", flat=True))
    for conversation in conversations:
        announce_conversation(conversation, active=conversation.pk in active, restored=restored)


def active_runs(conversation: Conversation) -> list[Run]:
    """Return the runs that generate replies in the conversation: several only for a comparison."""
    return list(conversation.runs.active().select_related("message").order_by("lane"))
