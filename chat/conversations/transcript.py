"""The messages that a conversation's page shows: the end of the path, an earlier part, or another branch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db.models import Q

from chat.conversations import branches
from chat.conversations.path import path_to_root, sibling_ids
from chat.models import Conversation, Message, MessagePart, Run, Siblings
from chatproject.lib.db import prepared

MESSAGES_SHOWN = 100  # on one page

RUN = Message._meta.get_field("run")

# The last message: `end`, else the reply that the leaf will move to, else the conversation's leaf.
LAST_SHOWN = """COALESCE(
    %(end)s,
    (SELECT message_id FROM chat_run
     WHERE conversation_id = %(conversation)s AND status IN ('queued', 'running') AND moves_leaf
     LIMIT 1),
    (SELECT leaf_id FROM chat_conversation WHERE id = %(conversation)s)
)"""

PARTS = """
  (SELECT json_agg(json_build_array(position, kind, data) ORDER BY position)
   FROM chat_messagepart WHERE message_id = m.id)"""

RATING = """
  (SELECT rating FROM chat_messagefeedback WHERE message_id = m.id AND user_id = %(reader)s)"""

# One statement, so that a run and its message are read from the same snapshot.
PATH = f"""
{path_to_root(LAST_SHOWN, "%(max)s")}
SELECT {prepared.columns(Message, "m")}, {prepared.columns(Run, "run")}, {PARTS}, {RATING},
  {sibling_ids("m")},
  (SELECT array_agg(id ORDER BY id) FROM chat_run
   WHERE conversation_id = %(conversation)s AND status IN ('queued', 'running'))
FROM path JOIN chat_message m ON m.id = path.id LEFT JOIN chat_run run ON run.message_id = m.id
ORDER BY path.depth
"""  # noqa: S608 # of names alone


COMPARED = f"""
SELECT {prepared.columns(Message, "m")}, {prepared.columns(Run, "run")}, {PARTS}, {RATING}
FROM chat_message m JOIN chat_run run ON run.message_id = m.id
WHERE m.parent_id = %(parent)s ORDER BY run.lane
"""  # noqa: S608 # of names alone


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Successive messages, oldest first: the end of a conversation, or (`is_past`) another part.

    `earlier` is the message before which there are more; None at the beginning. `active_run`
    generates the last message, `runs` are the ids of all active runs of the conversation, also in
    branches that are not shown. `branch` is a message of the shown branch, if that is not the
    conversation's. The `run`, parts and siblings of each message are already read.
    """

    messages: list[Message]
    earlier: UUID | None
    is_past: bool
    active_run: Run | None
    runs: list[UUID] = field(default_factory=list)
    branch: UUID | None = None


def excerpt(
    conversation: Conversation, before: str = "", message: str = "", *, length: int = 0
) -> Excerpt:
    """Return the last `length` or MESSAGES_SHOWN messages, or as many before the message with the id `before`.

    With `message`, the id of a message that these do not have, the part around it is returned, in
    whatever branch it is. An id of no message of the conversation is ignored. While a reply is
    generated that replaces another one (regenerate), the conversation ends with it. One query
    whatever the length, and one more for a reply that failed to replace another; `before` and
    `message` need others.
    """
    past = _message(conversation, before)
    if past is not None:
        # Nothing precedes the first message.
        return (
            _part(conversation, past.parent_id, length=length)
            if past.parent_id
            else Excerpt([], None, True, None)
        )
    shown = _part(conversation, length=length)
    linked = _message(conversation, message)
    if linked is None or linked in shown.messages:
        if conversation.compared and shown.messages:
            _add_compared(conversation, shown)
        else:
            _add_failed_siblings(conversation, shown)
        return shown
    end = branches.end_below(conversation.leaf_id, linked.pk, MESSAGES_SHOWN // 2)
    if end is not None:
        return _part(conversation, end)
    leaf = branches.newest_leaf(linked.pk)
    end = branches.end_below(leaf, linked.pk, MESSAGES_SHOWN // 2)
    return _part(conversation, end, branch=linked.pk)


def _part(
    conversation: Conversation,
    end: UUID | None = None,
    *,
    branch: UUID | None = None,
    length: int = 0,
) -> Excerpt:
    length = length or MESSAGES_SHOWN
    found, runs = _newest_first(conversation, end, length + 1)
    messages = found[:length]
    messages.reverse()
    run = getattr(messages[-1], "run", None) if messages and not end else None
    return Excerpt(
        messages=messages,
        earlier=messages[0].pk if len(found) > len(messages) else None,
        is_past=end is not None,
        active_run=run if run and not run.has_ended else None,
        runs=runs,
        branch=branch,
    )


def _newest_first(
    conversation: Conversation, end: UUID | None, most: int
) -> tuple[list[Message], list[UUID]]:
    """Return at most so many messages, and the active runs."""
    values = {
        "conversation": conversation.pk,
        "end": end,
        "max": most,
        "reader": conversation.owner_id,
    }
    messages: list[Message] = []
    active: list[UUID] = []
    for message, run, parts, rating, siblings, runs in prepared.each(PATH, values, Message, Run):
        active = runs or []
        message.siblings = Siblings.of(message.pk, siblings)
        messages.append(_with_parts(message, run, parts, rating))
    return messages, active


def _with_parts(
    message: Message, run: Run | None, parts: list[list[Any]] | None, rating: str | None
) -> Message:
    message.rating = rating or ""
    message.ordered_parts = [
        MessagePart(message=message, position=position, kind=kind, data=data)
        for position, kind, data in parts or ()
    ]
    if run:
        run.message = message  # sets `message.run` as well
    else:
        RUN.set_cached_value(message, None)  # or the template would query it
    return message


def _add_compared(conversation: Conversation, shown: Excerpt) -> None:
    """Show all replies of a comparison in place of the last message, which is one of them."""
    if shown.messages[-1].parent_id != conversation.compared:
        return
    values = {"parent": conversation.compared, "reader": conversation.owner_id}
    replies = [_with_parts(*row) for row in prepared.each(COMPARED, values, Message, Run)]
    ids = sorted(reply.pk for reply in replies)
    for reply in replies:
        reply.siblings, reply.is_compared = Siblings.of(reply.pk, ids), True
    shown.messages[-1:] = replies


def _add_failed_siblings(conversation: Conversation, shown: Excerpt) -> None:
    """Set `failed_sibling` of replies whose last try to replace them failed, or was stopped without a text.

    Only while it is newer than the end of the conversation.
    """
    leaf = conversation.leaf_id
    replaced = {
        one.siblings.newest: one
        for one in shown.messages
        if leaf
        and one.siblings
        and one.role == Message.Role.ASSISTANT
        and one.siblings.newest > leaf
    }
    if not replaced:
        return
    failed = Q(status=Message.Status.FAILED) | Q(status__in=["stopped", "done"], text="")
    for message in Message.objects.filter(failed, pk__in=replaced).select_related("run"):
        replaced[message.pk].failed_sibling = message


def own_message(conversation: Conversation, id: str) -> Message | None:
    """Return the user's own message with this id, unchecked text from a URL; None without one."""
    found = _message(conversation, id)
    return found if found and found.role == Message.Role.USER else None


def _message(conversation: Conversation, id: str) -> Message | None:
    try:
        return conversation.messages.filter(pk=UUID(id)).first() if id else None
    except ValueError:
        return None
