"""The messages that a conversation's page shows: the end of the path, or an earlier part."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from chat.conversations.path import path_to_root
from chat.models import Conversation, Message, MessagePart, Run
from chatproject.lib.db import prepared

MESSAGES_SHOWN = 100  # on one page

RUN = Message._meta.get_field("run")

# The last message: `end`, else the reply of the active run, else the conversation's leaf.
LAST_SHOWN = """COALESCE(
    %(end)s,
    (SELECT message_id FROM chat_run
     WHERE conversation_id = %(conversation)s AND status IN ('queued', 'running')),
    (SELECT leaf_id FROM chat_conversation WHERE id = %(conversation)s)
)"""

# One statement, so that a run and its message are read from the same snapshot.
PATH = f"""
{path_to_root(LAST_SHOWN, "%(max)s")}
SELECT {prepared.columns(Message, "m")}, {prepared.columns(Run, "run")},
  (SELECT json_agg(json_build_array(position, kind, data) ORDER BY position)
   FROM chat_messagepart WHERE message_id = m.id)
FROM path JOIN chat_message m ON m.id = path.id LEFT JOIN chat_run run ON run.message_id = m.id
ORDER BY path.depth
"""  # noqa: S608 # of names alone


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Successive messages, oldest first: the end of a conversation, or (`is_past`) an earlier part.

    `earlier` is the message before which there are more; None at the beginning. `active_run`
    generates the last message. The `run` and parts of each reply are already read.
    """

    messages: list[Message]
    earlier: UUID | None
    is_past: bool
    active_run: Run | None


def excerpt(conversation: Conversation, before: str = "") -> Excerpt:
    """Return the last MESSAGES_SHOWN messages, or as many before the message with the id `before`.

    An id of no message of the conversation is ignored. While a reply is generated that replaces
    another one (regenerate, edit), the conversation ends with it. One query whatever the length,
    and one for `before`.
    """
    past = _message(conversation, before)
    found = _newest_first(conversation, past)
    messages = found[:MESSAGES_SHOWN]
    messages.reverse()
    run = getattr(messages[-1], "run", None) if messages and not past else None
    return Excerpt(
        messages=messages,
        earlier=messages[0].pk if len(found) > len(messages) else None,
        is_past=past is not None,
        active_run=run if run and not run.has_ended else None,
    )


def _newest_first(conversation: Conversation, past: Message | None) -> list[Message]:
    """Return one message more than a page shows, if there are so many."""
    end = past.parent_id if past else None
    if past and not end:
        return []  # nothing precedes the first message
    values = {"conversation": conversation.pk, "end": end, "max": MESSAGES_SHOWN + 1}
    messages: list[Message] = []
    for message, run, parts in prepared.each(PATH, values, Message, Run):
        message.ordered_parts = [
            MessagePart(message=message, position=position, kind=kind, data=data)
            for position, kind, data in parts or ()
        ]
        if run:
            run.message = message  # sets `message.run` as well
        else:
            RUN.set_cached_value(message, None)  # or the template would query it
        messages.append(message)
    return messages


def own_message(conversation: Conversation, id: str) -> Message | None:
    """Return the user's own message with this id, unchecked text from a URL; None without one."""
    found = _message(conversation, id)
    return found if found and found.role == Message.Role.USER else None


def _message(conversation: Conversation, id: str) -> Message | None:
    try:
        return conversation.messages.filter(pk=UUID(id)).first() if id else None
    except ValueError:
        return None
