"""The messages of a conversation as its page shows them: the end of the path, or a part before it."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from chat.models import Conversation, Message, MessagePart, Run
from chatproject.lib import rows

MESSAGES_SHOWN = 100  # on one page

RUN = Message._meta.get_field("run")

# Walks from a message up to the root, the newest first: from `end`, else from the reply that is
# being made, else from the conversation's leaf. One statement, so that what the page says of a run
# and of its message is of one moment.
PATH = f"""
WITH RECURSIVE path AS (
    SELECT id, parent_id, 0 AS depth FROM chat_message WHERE id = COALESCE(
        %(end)s,
        (SELECT message_id FROM chat_run
         WHERE conversation_id = %(conversation)s AND status IN ('queued', 'running')),
        (SELECT leaf_id FROM chat_conversation WHERE id = %(conversation)s)
    )
    UNION ALL
    SELECT m.id, m.parent_id, path.depth + 1
    FROM chat_message m JOIN path ON m.id = path.parent_id
    WHERE path.depth + 1 < %(most)s
)
SELECT {rows.columns(Message, "m")}, {rows.columns(Run, "run")},
  (SELECT json_agg(json_build_array(position, kind, data) ORDER BY position)
   FROM chat_messagepart WHERE message_id = m.id)
FROM path JOIN chat_message m ON m.id = path.id LEFT JOIN chat_run run ON run.message_id = m.id
ORDER BY path.depth
"""  # noqa: S608 # of names alone


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
    another one (regenerate, edit), the conversation ends with it. One query whatever the length,
    and one for `before`.
    """
    past = _message(conversation, before)
    found = _path(conversation, past)
    messages = found[:MESSAGES_SHOWN]
    messages.reverse()
    run = getattr(messages[-1], "run", None) if messages and not past else None
    return Part(
        messages=messages,
        earlier=messages[0].pk if len(found) > len(messages) else None,
        is_past=past is not None,
        active_run=run if run and not run.has_ended else None,
    )


def _path(conversation: Conversation, past: Message | None) -> list[Message]:
    """One more than a page shows, if there are so many; newest first."""
    if past and not past.parent_id:
        return []  # nothing precedes the first message
    values = {
        "conversation": conversation.pk,
        "end": past and past.parent_id,
        "most": MESSAGES_SHOWN + 1,
    }
    messages: list[Message] = []
    for message, run, parts in rows.each(PATH, values, Message, Run):
        message.ordered_parts = [
            MessagePart(message=message, position=position, kind=kind, data=data)
            for position, kind, data in parts or ()
        ]
        if run:
            run.message = message  # and `message.run` is it
        else:
            RUN.set_cached_value(message, None)  # or the template would ask for it
        messages.append(message)
    return messages


def own_message(conversation: Conversation, id: str) -> Message | None:
    """A message of the conversation that its user wrote, by an id as it came in an address."""
    found = _message(conversation, id)
    return found if found and found.role == Message.Role.USER else None


def _message(conversation: Conversation, id: str) -> Message | None:
    try:
        return conversation.messages.filter(pk=UUID(id)).first() if id else None
    except ValueError:
        return None
