"""The only door to a conversation and what belongs to it.

Pages, sockets and programs ask here. Access is denied unless a rule below grants it, and what one
may not see is reported as not there, so that ids tell nothing.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING
from uuid import UUID

from chat.errors import ChatError
from chat.models import Assistant, Conversation, LanguageModel, Message, Run
from chatproject.lib.db import prepared

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser

    from accounts.models import User


class Access(enum.IntEnum):
    NONE = 0
    READ = 1
    WRITE = 2


def level(user: User | AnonymousUser, conversation: Conversation) -> Access:
    """What a user may do with a conversation. A deleted one is there for nobody."""
    if not user.is_authenticated or not user.is_active or conversation.deleted_at is not None:
        return Access.NONE
    if conversation.owner_id == user.pk:
        return Access.WRITE
    return Access.NONE


def conversation(
    user: User | AnonymousUser, conversation_id: UUID, *, write: bool = False, lock: bool = False
) -> Conversation:
    """The conversation, if the user may read it (or write in it).

    `lock` locks its row until the COMMIT; then its assistant and model come with it. Raises
    ChatError `not_found`, or `not_allowed` when it may be read but not written.
    """
    found: Conversation | None = (
        _locked(conversation_id)
        if lock
        else Conversation.objects.filter(pk=conversation_id).first()
    )
    if found is None:
        raise ChatError("not_found")
    _require(user, found, write=write)
    return found


# In plain SQL, since each message asks it: see lib.db.prepared.
LOCK = f"""
SELECT {prepared.columns(Conversation, "conversation")}, {prepared.columns(Assistant, "assistant")},
  {prepared.columns(LanguageModel, "model")}
FROM chat_conversation AS conversation
JOIN chat_assistant AS assistant ON assistant.id = conversation.assistant_id
JOIN chat_languagemodel AS model ON model.id = assistant.model_id
WHERE conversation.id = %s FOR NO KEY UPDATE OF conversation
"""  # noqa: S608 # of names alone


def _locked(conversation_id: UUID) -> Conversation | None:
    row = prepared.first(LOCK, [conversation_id], Conversation, Assistant, LanguageModel)
    if row is None:
        return None
    found: Conversation
    found, found.assistant, found.assistant.model = row
    return found


def message(user: User | AnonymousUser, message_id: UUID, *, write: bool = False) -> Message:
    """A message of a conversation that the user may read or write; raises like `conversation`."""
    found = Message.objects.select_related("conversation").filter(pk=message_id).first()
    if found is None:
        raise ChatError("not_found")
    _require(user, found.conversation, write=write)
    return found


def run(user: User | AnonymousUser, run_id: UUID, *, write: bool = False) -> Run:
    """A run of a conversation that the user may read or write; raises like `conversation`."""
    found: Run | None = (
        Run.objects.select_related("conversation", "message").filter(pk=run_id).first()
    )
    if found is None:
        raise ChatError("not_found")
    _require(user, found.conversation, write=write)
    return found


def _require(user: User | AnonymousUser, conversation: Conversation, *, write: bool) -> None:
    granted = level(user, conversation)
    if granted < Access.READ:
        raise ChatError("not_found")
    if write and granted < Access.WRITE:
        raise ChatError("not_allowed")
