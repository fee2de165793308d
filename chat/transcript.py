"""The messages of a conversation as its page shows them: the end of the path, or a part before it."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django.db.models import prefetch_related_objects

from chat import context, conversations
from chat.models import Conversation, Message, Run

MESSAGES_SHOWN = 100  # on one page


@dataclass(frozen=True, slots=True)
class Part:
    """Messages in a row, oldest first: of a conversation's end, or (`is_past`) from before it.

    `earlier` is the message before which there are more; None at the beginning. `active_run` makes
    the last message. Each reply has its `run` and parts at hand.
    """

    messages: list[Message]
    earlier: UUID | None
    is_past: bool
    active_run: Run | None


def part(conversation: Conversation, before: str = "") -> Part:
    """The last MESSAGES_SHOWN messages, or those before the message with the id `before`.

    An id that is none of the conversation's counts as none. While a reply is made in the place of
    another one (regenerate, edit), the conversation ends with it. Four queries whatever the length,
    and one for `before`.
    """
    run = conversations.active_run(conversation)
    last = run.message_id if run else conversation.leaf_id
    past = _message(conversation, before)
    end = past.parent_id if past else last
    ids = context.path(end, MESSAGES_SHOWN + 1) if end else []
    shown = ids[:MESSAGES_SHOWN]
    found = Message.objects.select_related("run").in_bulk(shown)
    messages = [found[id] for id in reversed(shown)]
    replies = [message for message in messages if message.role == Message.Role.ASSISTANT]
    prefetch_related_objects(replies, "parts")
    return Part(
        messages=messages,
        earlier=shown[-1] if len(ids) > len(shown) else None,
        is_past=past is not None,
        active_run=None if past else run,
    )


def own_message(conversation: Conversation, id: str) -> Message | None:
    """A message of the conversation that its user wrote, by an id as it came in an address."""
    found = _message(conversation, id)
    return found if found and found.role == Message.Role.USER else None


def _message(conversation: Conversation, id: str) -> Message | None:
    try:
        return conversation.messages.filter(pk=UUID(id)).first() if id else None
    except ValueError:
        return None
