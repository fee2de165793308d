"""Access control: the only entry point to conversations, messages, runs and attachments.

Pages, sockets and programs open them here. Access is denied unless a rule below grants it, and an
object that the user may not read is reported as not found, so that ids reveal nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from msgspec import UNSET, UnsetType

from chat.errors import ChatError
from chat.models import (
    Assistant,
    Attachment,
    ChatExport,
    ChatImport,
    Conversation,
    LanguageModel,
    Message,
    Project,
    Prompt,
    Provider,
    Run,
)
from chatproject.lib.db import prepared

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser

    from accounts.models import User


T = TypeVar("T", ChatImport, ChatExport)


class Access(enum.IntEnum):
    NONE = 0
    READ = 1
    WRITE = 2


# In plain SQL, as each message needs it: see lib.db.prepared.
LOCK = f"""
SELECT {prepared.columns(Conversation, "conversation")}, {prepared.columns(Assistant, "assistant")},
  {prepared.columns(LanguageModel, "model")}, {prepared.columns(Provider, "provider")},
  {prepared.columns(Project, "project")}
FROM chat_conversation AS conversation
JOIN chat_assistant AS assistant ON assistant.id = conversation.assistant_id
LEFT JOIN chat_languagemodel AS model ON model.id = COALESCE(
  %(model)s, CASE WHEN NOT %(is_own)s THEN conversation.model_id END, assistant.model_id)
LEFT JOIN chat_provider AS provider ON provider.id = {Provider.OF_MODEL}
LEFT JOIN chat_project AS project ON project.id = conversation.project_id
WHERE conversation.id = %(conversation)s FOR NO KEY UPDATE OF conversation
"""  # noqa: S608 # of names alone

# As each page needs it.
READ = f"""
SELECT {prepared.columns(Conversation, "conversation")}, {prepared.columns(Assistant, "assistant")},
  {prepared.columns(LanguageModel, "model")}, {prepared.columns(Project, "project")}
FROM chat_conversation AS conversation
JOIN chat_assistant AS assistant ON assistant.id = conversation.assistant_id
JOIN chat_languagemodel AS model ON model.id = COALESCE(conversation.model_id, assistant.model_id)
LEFT JOIN chat_project AS project ON project.id = conversation.project_id
WHERE conversation.id = %(conversation)s
"""  # noqa: S608 # of names alone


def conversation(
    user: User | AnonymousUser,
    conversation_id: UUID,
    *,
    write: bool = False,
    lock: bool = False,
    model_id: int | UnsetType | None = UNSET,
) -> Conversation:
    """Return the conversation, if the user may read it (or write in it), with its assistant, model and project.

    `lock` locks its row until the COMMIT, and reads the provider with it. With
    `model_id` it has that model instead of the stored one (None: the assistant's), if there is one
    with this id; whether the user may use it is not decided here. Raises ChatError `not_found`, or
    `not_allowed` when it may be read but not written.
    """
    found: Conversation | None
    if not lock:
        found = _read(conversation_id)
    else:
        found = _locked(conversation_id, model_id)
    if found is None:
        raise ChatError("not_found")
    require(user, found, write=write)
    return found


def conversations(
    user: User | AnonymousUser, conversation_ids: Iterable[UUID]
) -> list[Conversation]:
    """Return those of the conversations that the user may write in; raises ChatError `not_found` if there are none."""
    found = Conversation.objects.not_deleted().filter(pk__in=conversation_ids, owner=user.pk)
    if not (user.is_authenticated and user.is_active and found):
        raise ChatError("not_found")
    return list(found)


def project(user: User | AnonymousUser, project_id: UUID, *, lock: bool = False) -> Project:
    """Return a project of the user; raises ChatError `not_found`.

    `lock` locks its row until the COMMIT: a project is not deleted while a conversation moves into it. Lock a
    project before its conversations.
    """
    found = Project.objects.not_deleted().filter(pk=project_id, owner=user.pk)
    if lock:
        found = found.select_for_update(no_key=True)
    project: Project | None = found.first() if user.is_authenticated and user.is_active else None
    if project is None:
        raise ChatError("not_found")
    project.owner = user  # type: ignore[assignment] # a signed-in one
    return project


def prompt(user: User | AnonymousUser, prompt_id: UUID) -> Prompt:
    """Return a prompt of the user's own; raises ChatError `not_found`."""
    found: Prompt | None = Prompt.objects.filter(pk=prompt_id, owner=user.pk).first()
    if found is None or not (user.is_authenticated and user.is_active):
        raise ChatError("not_found")
    return found


def _read(id: UUID) -> Conversation | None:
    row = prepared.first(
        READ, {"conversation": id}, Conversation, Assistant, LanguageModel, Project
    )
    if row is None:
        return None
    found: Conversation
    found, found.assistant, model, found.project = row
    if found.model_id is not None:
        found.model = model
    else:
        found.assistant.model = model
    return found


def _locked(id: UUID, model_id: int | UnsetType | None) -> Conversation | None:
    values = {
        "conversation": id,
        "model": model_id if isinstance(model_id, int) else None,
        "is_own": model_id is None,
    }
    row = prepared.first(LOCK, values, Conversation, Assistant, LanguageModel, Provider, Project)
    if row is None:
        return None
    found: Conversation
    found, found.assistant, model, provider, found.project = row
    if model is None:
        return found
    model.provider = provider
    if model.pk == found.assistant.model_id:
        found.model, found.assistant.model = None, model
    else:
        found.model = model
    return found


def message(user: User | AnonymousUser, message_id: UUID, *, write: bool = False) -> Message:
    """Return a message whose conversation the user may read or write; raises like `conversation`."""
    found = Message.objects.select_related("conversation").filter(pk=message_id).first()
    if found is None:
        raise ChatError("not_found")
    require(user, found.conversation, write=write)
    return found


def assistant(user: User, assistant_id: int, *, lock: bool = False) -> Assistant:
    """Return a user's own assistant, to be changed or deleted. Raises ChatError `not_found`.

    chat.conversations.assistants decides which ones new conversations may have.
    """
    rows = Assistant.objects.select_related("model__provider")
    if lock:
        rows = rows.select_for_update(no_key=True, of=("self",))
    found: Assistant | None = rows.filter(pk=assistant_id, owner=user, deleted_at=None).first()
    if found is None or not user.is_active:
        raise ChatError("not_found")
    return found


def run(user: User | AnonymousUser, run_id: UUID, *, write: bool = False) -> Run:
    """Return a run whose conversation the user may read or write; raises like `conversation`."""
    found: Run | None = (
        Run.objects.select_related("conversation", "message").filter(pk=run_id).first()
    )
    if found is None:
        raise ChatError("not_found")
    require(user, found.conversation, write=write)
    return found


def transfer(user: User | AnonymousUser, kind: type[T], id: UUID) -> T:
    """Return the user's own import or export; raises ChatError `not_found`."""
    found = kind.objects.filter(pk=id, owner=user.pk).first() if user.is_active else None
    if found is None:
        raise ChatError("not_found")
    return found


def attachment(user: User | AnonymousUser, attachment_id: UUID) -> Attachment:
    """Return an attachment in a conversation that the user may read, or the user's own in no message yet.

    Raises ChatError `not_found`.
    """
    found = Attachment.objects.filter(pk=attachment_id).first()
    if found is None or not (user.is_authenticated and user.is_active):
        raise ChatError("not_found")
    shown_in = Conversation.objects.not_deleted().filter(
        messages__attachment_links__attachment=found
    )
    if shown_in.filter(owner=user.pk).exists():
        return found
    if found.owner_id == user.pk and not found.links.exists():
        return found
    raise ChatError("not_found")


def require(user: User | AnonymousUser, conversation: Conversation, *, write: bool) -> None:
    """Raise ChatError unless the user may read the conversation (or write in it).

    A deleted conversation is found by no user.
    """
    is_usable = user.is_authenticated and user.is_active and conversation.deleted_at is None
    granted = Access.WRITE if is_usable and conversation.owner_id == user.pk else Access.NONE
    if granted < Access.READ:
        raise ChatError("not_found")
    if write and granted < Access.WRITE:
        raise ChatError("not_allowed")
