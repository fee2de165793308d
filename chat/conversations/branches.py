"""Branches of a conversation: the siblings of messages, the branch that its page shows, and copies.

Nothing is ever removed: another branch is shown by moving the conversation's leaf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import Model
from django.utils import timezone
from django.utils.translation import gettext as _

from chat import access, protocol
from chat.attachments import uploads
from chat.conversations import assistants
from chat.conversations.path import path_to_root, sibling_ids
from chat.errors import ChatError
from chat.models import (
    Assistant,
    Attachment,
    Conversation,
    Message,
    MessageAttachment,
    MessagePart,
    Run,
    Siblings,
    new_id,
)
from chat.streaming import user_channel
from chatproject.lib.db import prepared

if TYPE_CHECKING:
    from accounts.models import User

LONGEST_PATH = 100_000  # messages of a walk, which ends even if rows were damaged into a circle

# Nothing is younger than its ancestors, so the newest message below another one is a leaf. A reply that
# failed to replace an older one is not it, unless it was continued or is `message` itself.
NEWEST_LEAF = """
WITH RECURSIVE below AS (
  SELECT %(message)s::uuid AS id
  UNION ALL
  SELECT m.id FROM chat_message m JOIN below ON m.parent_id = below.id
)
SELECT m.id FROM below JOIN chat_message m ON m.id = below.id
WHERE m.id = %(message)s OR NOT (
  m.role = 'assistant' AND (m.status = 'failed' OR m.text = '')
  AND NOT EXISTS (SELECT FROM chat_message child WHERE child.parent_id = m.id)
  AND EXISTS (
    SELECT FROM chat_message older WHERE older.parent_id = m.parent_id AND older.id < m.id
    AND older.status IN ('done', 'stopped') AND older.text <> ''
  )
)
ORDER BY m.id DESC LIMIT 1
"""

SIBLINGS = f"SELECT m.id, {sibling_ids('m')} FROM chat_message m WHERE m.id = ANY(%s)"  # noqa: S608 # of names alone


def select(*, user: User, message_id: UUID) -> protocol.BranchSelected:
    """Show the branch of a message: set its conversation's leaf to the newest leaf below the message.

    A reply that is being generated goes on, and no longer moves the leaf when it is finished. Returns
    the event, which is published to the user's pages. Raises ChatError `not_found` or `not_allowed`.
    """
    message = access.message(user, message_id, write=True)
    conversation = message.conversation
    with transaction.atomic():
        # Before the conversation, as the end of a run locks them.
        Run.objects.active().filter(conversation=conversation, moves_leaf=True).update(
            moves_leaf=False
        )
        leaf = newest_leaf(message_id)
        changes: dict[str, Any] = {"leaf": leaf, "compared": None}
        if conversation.compared and message.parent_id == conversation.compared:
            # The model of the chosen reply goes on.
            changes["model"] = Run.objects.values_list("model", flat=True).get(message=message)
        Conversation.objects.filter(pk=conversation.pk).update(**changes)
    event = protocol.BranchSelected(conversation=conversation.pk, message=message_id, leaf=leaf)
    user_channel.announce_branch(conversation.owner_id, event)
    return event


def newest_leaf(message_id: UUID) -> UUID:
    """Return the newest leaf below a message, or the message itself if it is a leaf."""
    [[leaf]] = prepared.all(NEWEST_LEAF, {"message": message_id})
    found: UUID = leaf
    return found


def read_siblings(messages: Sequence[Message]) -> None:
    """Set `siblings` of messages, by one query."""
    found = dict(prepared.all(SIBLINGS, [[message.pk for message in messages]]))
    for message in messages:
        message.siblings = Siblings.of(message.pk, found.get(message.pk))


# The ancestor of a leaf that lies so many messages below another ancestor, or the leaf if it is nearer.
BELOW = f"""
{path_to_root("%(leaf)s", "%(max)s")}
SELECT id FROM path
WHERE depth = (SELECT GREATEST(0, depth - %(below)s) FROM path WHERE id = %(message)s)
"""  # noqa: S608 # of names alone


def end_below(leaf: UUID | None, message_id: UUID, below: int) -> UUID | None:
    """Return the ancestor of a leaf that is `below` messages below the ancestor `message_id`.

    The leaf itself if it is nearer; None if `message_id` is no ancestor of it.
    """
    values = {"leaf": leaf, "message": message_id, "below": below, "max": LONGEST_PATH}
    rows = prepared.all(BELOW, values) if leaf is not None else []
    return rows[0][0] if rows else None


COPY_MAX_MESSAGES = 2_000

# One message more than may be copied, from the last one to the root.
COPIED = f"""
{path_to_root("%(message)s", COPY_MAX_MESSAGES + 1, "status")}
SELECT id, status FROM path ORDER BY depth
"""  # noqa: S608 # of names alone


def _others(model: type[Model], *own: str) -> list[str]:
    """Return the columns of a table that a copy takes over: all but its `own`."""
    return [str(one.column) for one in model._meta.concrete_fields if one.column not in own]


# The model of a reply and its end, which belong to its run; a copy has none.
ORIGINS = """
, origins AS (
  INSERT INTO chat_messagepart (message_id, position, kind, data)
  SELECT copied.new,
    (SELECT COALESCE(MAX(position), -1) + 1 FROM chat_messagepart part WHERE part.message_id = copied.old), 'origin',
    jsonb_build_object(
      'model', COALESCE(run.model_snapshot #>> '{answered_by,name}', run.model_snapshot ->> 'name', ''),
      'finish_reason', run.finish_reason
    )
  FROM copied JOIN chat_run run ON run.message_id = copied.old
)"""


def _copying(
    of_another: Mapping[str, str], *, parts_copied: str = "true", origins: str = ""
) -> str:
    messages = _others(Message, "id", "conversation_id", "parent_id")
    parts = _others(MessagePart, "id", "message_id")
    copied = [of_another.get(f"m.{name}", f"m.{name}") for name in messages]
    copied_parts = [of_another.get(f"part.{name}", f"part.{name}") for name in parts]
    return f"""
WITH copied AS (
  SELECT * FROM unnest(%(old)s::uuid[], %(new)s::uuid[], %(parents)s::uuid[]) AS one(old, new, parent)
), messages AS (
  INSERT INTO chat_message (id, conversation_id, parent_id, {", ".join(messages)})
  SELECT copied.new, %(conversation)s, copied.parent, {", ".join(copied)}
  FROM copied JOIN chat_message m ON m.id = copied.old
), links AS (
  INSERT INTO chat_messageattachment (id, message_id, attachment_id)
  SELECT gen_random_uuid(), copied.new, link.attachment_id
  FROM copied JOIN chat_messageattachment link ON link.message_id = copied.old
){origins}
INSERT INTO chat_messagepart (message_id, {", ".join(parts)})
SELECT copied.new, {", ".join(copied_parts)}
FROM copied JOIN chat_messagepart part ON part.message_id = copied.old WHERE {parts_copied}
"""  # noqa: S608 # of names alone


# Readers see neither what tools were asked and answered, nor passages of documents.
OF_ANOTHER = {
    "m.attached": "CASE WHEN m.role = 'assistant' THEN NULL ELSE m.attached END",
    "part.data": """CASE part.kind
  WHEN 'tool' THEN part.data - '{arguments,result,memory}'::text[]
  WHEN 'citation' THEN part.data - '{document,first,last,start,end,excerpt}'::text[]
  ELSE part.data END""",
}

COPY = _copying({}, origins=ORIGINS)
# Without reasoning, which may quote instructions, and without models.
COPY_OF_ANOTHER = _copying(OF_ANOTHER, parts_copied="part.kind NOT IN ('reasoning', 'origin')")


def fork(*, user: User, message_id: UUID, client_id: str) -> Conversation:
    """Copy the path from the root to a message into a new conversation of the user; return that.

    Texts, rendered HTML, parts, links to attachments and the names of models are copied; runs and their cost belong to
    the original. Idempotent by `client_id`. Raises ChatError: `not_found`, `run_active` for a reply that is being generated,
    `limit_reached` for more than COPY_MAX_MESSAGES messages.
    """
    message = access.message(user, message_id, write=True)
    return copy(user, message.conversation, message_id, client_id)


def copy(
    user: User, original: Conversation, message_id: UUID, client_id: str, *, title: str = ""
) -> Conversation:
    """`fork` for a path that the user may read, which may be another user's.

    Of another user's conversation only what a reader sees is copied: no instructions, and neither an assistant
    nor a model that is not offered to the user. `title` is the one that the reader sees, if that is another than the
    present one. Its files become the user's own. Raises ChatError also `storage_full`.
    """
    mine = Conversation.objects.not_deleted().filter(owner=user, client_id=client_id)
    found: Conversation | None = mine.first()
    if found is not None:
        return found
    rows = prepared.all(COPIED, {"message": message_id})
    if len(rows) > COPY_MAX_MESSAGES:
        raise ChatError(
            "limit_reached",
            _("A copy may have %(most)s messages at most. Copy the chat from an earlier message.")
            % {"most": f"{COPY_MAX_MESSAGES:,}"},
        )
    if any(status == Message.Status.PENDING for _id, status in rows):
        raise ChatError("run_active")
    old = [id for id, _status in reversed(rows)]
    new = sorted(new_id() for _id in old)  # by age, as along the path
    ending, longest = _("(copy)"), Conversation._meta.get_field("title").max_length or 100
    is_own = original.owner_id == user.pk
    kept: dict[str, Any]
    if is_own:
        names = ("assistant_id", "model_id", "temperature", "reasoning_effort", "system_prompt")
        kept = {name: getattr(original, name) for name in (*names, "temporary")}
    else:
        kept = {"assistant": _assistant_for(user, original)}
    copy = Conversation(
        owner=user,
        **kept,
        title=f"{(title or original.name)[: longest - len(ending) - 1].rstrip()} {ending}",
        titled_by=Conversation.TitledBy.PERSON,  # no model names it anew
        leaf_id=new[-1],
        client_id=client_id,
        updated_at=timezone.now(),
    )
    values = {"conversation": copy.pk, "old": old, "new": new, "parents": [None, *new[:-1]]}
    try:
        with transaction.atomic():  # references are checked at the COMMIT
            copy.save(force_insert=True)
            prepared.change(COPY if is_own else COPY_OF_ANOTHER, values)
            if not is_own:
                _own_files(user, new)
    except IntegrityError:
        # The same request came twice at once.
        if (found := mine.first()) is None:
            raise
        return found
    user_channel.announce_conversation(copy)
    return copy


def _assistant_for(user: User, original: Conversation) -> Assistant:
    """Return the assistant of another user's conversation if it is offered to the user, else the default one.

    Raises ChatError `model_unavailable` where there is none.
    """
    same = assistants.offered(user).filter(pk=original.assistant_id).first()
    found: Assistant | None = same or assistants.default(user)
    if found is None:
        raise ChatError("model_unavailable")
    return found


def _own_files(user: User, messages: Sequence[UUID]) -> None:
    """Make files of copied messages the user's own: rows and contents, counted like uploads.

    Raises ChatError `storage_full`.
    """
    links = MessageAttachment.objects.select_related("attachment", "message").filter(
        message__in=messages
    )
    made: dict[UUID, Attachment] = {}
    for link in links:
        old = link.attachment
        if old.pk not in made:
            made[old.pk] = uploads.copy(user, old)
        link.attachment = made[old.pk]
        link.save(update_fields=["attachment"])
        for one in link.message.attached or ():
            if one["id"] == str(old.pk):
                one["id"] = str(made[old.pk].pk)
        link.message.save(update_fields=["attached"])
