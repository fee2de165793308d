"""Access control: `decide` is the only rule, and the functions here are the only way to owned objects.

Pages, sockets and programs open them here. Access is denied unless `decide` grants it, and an
object that the user may not read is reported as not found, so that ids reveal nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from django.conf import settings
from django.db.models import Model
from msgspec import UNSET, UnsetType

from chat.errors import ChatError
from chat.models import (
    Assistant,
    Attachment,
    ChatExport,
    ChatImport,
    Conversation,
    ConversationShare,
    LanguageModel,
    Message,
    Project,
    Prompt,
    Provider,
    PublicLink,
    Run,
    UserNote,
    Webhook,
    WebhookDelivery,
)
from chatproject.lib.db import prepared

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser

    from accounts.models import User


T = TypeVar("T", ChatImport, ChatExport, ConversationShare, PublicLink)


# A row of an app above this one, such as a document: with `owner_id`, and perhaps `deleted_at`.
OfApp = TypeVar("OfApp", bound=Model)

OfConversation = Message | Run
Owned = (
    Assistant
    | Attachment
    | ChatExport
    | ChatImport
    | Conversation
    | ConversationShare
    | OfConversation
    | Project
    | Prompt
    | PublicLink
    | UserNote
    | Webhook
    | WebhookDelivery
)


class Access(enum.IntEnum):
    NONE = 0
    READ = 1
    WRITE = 2


READ_TEXTS = "chat.view_message"  # staff's permission to read conversations in the admin


def decide(user: User | AnonymousUser, found: Owned | Model, *, in_admin: bool = False) -> Access:
    """Return the access of a user to an object: the one rule for pages, sockets, programs, files and the admin.

    An owner has WRITE. A user with whom a conversation is shared has READ of it, of its messages and runs, and of the files
    of the branch that it shows. A deleted object has no reader, nor has one of an inactive owner, except
    the owner's own. Without a query for the owner of anything but an attachment.

    `in_admin` decides on the content of an object for the admin, where ownership does not count: see `_in_admin`.
    """
    if not (user.is_authenticated and user.is_active):
        return Access.NONE
    if in_admin:
        return _in_admin(user, found)
    if isinstance(found, OfConversation):
        found = found.conversation
    if isinstance(found, WebhookDelivery):
        found = found.webhook
    if isinstance(found, Conversation):
        if found.deleted_at is not None:
            return Access.NONE
        if found.owner_id == user.pk:
            return Access.WRITE
        return Access.READ if _is_shared(user, found) else Access.NONE
    if isinstance(found, Attachment):
        return _to_attachment(user, found)
    if isinstance(found, UserNote):
        return Access.WRITE if found.user_id == user.pk else Access.NONE
    owner_id: int | None = getattr(found, "owner_id", None)
    if owner_id is None or owner_id != user.pk:
        return Access.NONE
    return Access.NONE if getattr(found, "deleted_at", None) is not None else Access.WRITE


def _in_admin(user: User, found: Owned | Model) -> Access:
    """Decide on the content of an object for a member of staff; that its row exists is the admin's own permission.

    The permission READ_TEXTS gives READ of any conversation, its messages and runs, also of a deleted one until
    it is purged; each reading is logged. The same holds for rows with `has_texts`, such as documents. Assistants that are shared or the staff's, and the staff's prompts, are
    no secret. Files, projects, private assistants and prompts, links and transfers have no reader.
    """
    if not user.is_staff:
        return Access.NONE
    if isinstance(found, Conversation | OfConversation) or getattr(found, "has_texts", False):
        return Access.READ if reads_texts(user) else Access.NONE
    if isinstance(found, Assistant):
        return Access.NONE if found.is_private else Access.READ
    return Access.READ if isinstance(found, Prompt) and found.owner_id is None else Access.NONE


def reads_texts(user: User | AnonymousUser) -> bool:
    """Return whether a member of staff may read the texts of all users' conversations in the admin."""
    return user.has_perm(READ_TEXTS)


def _is_shared(user: User, conversation: Conversation) -> bool:
    if not settings.SHARE_WITH_USERS or conversation.temporary:
        return False
    shares = ConversationShare.objects.filter(conversation=conversation, user=user)
    return shares.filter(owner__is_active=True).exists()


def _to_attachment(user: User, found: Attachment) -> Access:
    """Decide on a file: of a message of the user's own or of a shared one, or the user's own in no message yet."""
    links = found.links.filter(message__conversation__deleted_at=None)
    if links.filter(message__conversation__owner=user.pk).exists():
        return Access.WRITE
    if found.owner_id == user.pk and not found.links.exists():
        return Access.WRITE
    if settings.SHARE_WITH_USERS:
        shared = Conversation.objects.not_deleted().filter(
            pk__in=links.values("message__conversation"), shares__user=user.pk
        )
        if any(
            _is_shared(user, one) and is_on_path(found, one.leaf_id) for one in shared.distinct()
        ):
            return Access.READ
    return Access.NONE


LONGEST_PATH = 100_000  # messages of a walk, which ends even if rows were damaged into a circle

ON_PATH = f"""
WITH RECURSIVE path AS (
  SELECT id, parent_id, 0 AS depth FROM chat_message WHERE id = %(last)s
  UNION ALL
  SELECT m.id, m.parent_id, path.depth + 1
  FROM chat_message m JOIN path ON m.id = path.parent_id WHERE path.depth < {LONGEST_PATH}
)
SELECT 1 FROM path JOIN chat_messageattachment link ON link.message_id = path.id
WHERE link.attachment_id = %(attachment)s LIMIT 1
"""  # noqa: S608 # of a number alone


def is_on_path(attachment: Attachment, last: UUID | None) -> bool:
    """Return whether a message on the path from the root to the message `last` has the attachment."""
    return bool(prepared.all(ON_PATH, {"last": last, "attachment": attachment.pk}))


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
    mine = Conversation.objects.not_deleted().filter(pk__in=conversation_ids, owner=user.pk)
    found = [one for one in mine if decide(user, one) is Access.WRITE]
    if not found:
        raise ChatError("not_found")
    return found


def project(user: User | AnonymousUser, project_id: UUID, *, lock: bool = False) -> Project:
    """Return a project of the user; raises ChatError `not_found`.

    `lock` locks its row until the COMMIT: a project is not deleted while a conversation moves into it. Lock a
    project before its conversations.
    """
    found = Project.objects.not_deleted().filter(pk=project_id, owner=user.pk)
    if lock:
        found = found.select_for_update(no_key=True)
    project: Project | None = found.first()
    if project is None or decide(user, project) is not Access.WRITE:
        raise ChatError("not_found")
    project.owner = user  # type: ignore[assignment] # a signed-in one
    return project


def prompt(user: User | AnonymousUser, prompt_id: UUID) -> Prompt:
    """Return a prompt of the user's own; raises ChatError `not_found`."""
    found: Prompt | None = Prompt.objects.filter(pk=prompt_id).first()
    if found is None or decide(user, found) is not Access.WRITE:
        raise ChatError("not_found")
    return found


def note(user: User | AnonymousUser, note_id: UUID) -> UserNote:
    """Return a note about the user; raises ChatError `not_found`."""
    found: UserNote | None = UserNote.objects.filter(pk=note_id).first()
    if found is None or decide(user, found) is not Access.WRITE:
        raise ChatError("not_found")
    return found


def webhook(user: User | AnonymousUser, webhook_id: UUID) -> Webhook:
    """Return a webhook of the user's own; raises ChatError `not_found`."""
    found = Webhook.objects.filter(pk=webhook_id).first()
    if found is None or decide(user, found) is not Access.WRITE:
        raise ChatError("not_found")
    return found


def webhook_delivery(user: User | AnonymousUser, delivery_id: UUID) -> WebhookDelivery:
    """Return a message to a webhook of the user's own, with the webhook; raises ChatError `not_found`."""
    found = WebhookDelivery.objects.select_related("webhook").filter(pk=delivery_id).first()
    if found is None or decide(user, found) is not Access.WRITE:
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
    found: Assistant | None = rows.filter(pk=assistant_id, owner=user).first()
    if found is None or decide(user, found) is not Access.WRITE:
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


def own(user: User | AnonymousUser, kind: type[T], id: UUID) -> T:
    """Return the user's own import, export, share or public link; raises ChatError `not_found`."""
    found = kind.objects.filter(pk=id).first()
    if found is None or decide(user, found) is not Access.WRITE:
        raise ChatError("not_found")
    return found


def owned(user: User | AnonymousUser, kind: type[OfApp], id: UUID, *, lock: bool = False) -> OfApp:
    """Return the user's own row of a table of an app above this one, such as a document; `lock` locks it.

    Raises ChatError `not_found`.
    """
    rows = kind._default_manager.filter(pk=id, owner=user.pk)
    if lock:
        rows = rows.select_for_update(no_key=True)
    found: OfApp | None = rows.first()
    if found is None or decide(user, found) is not Access.WRITE:
        raise ChatError("not_found")
    return found


def attachment(user: User | AnonymousUser, attachment_id: UUID) -> Attachment:
    """Return an attachment that the user may read; raises ChatError `not_found`."""
    found = Attachment.objects.filter(pk=attachment_id).first()
    if found is None or decide(user, found) is Access.NONE:
        raise ChatError("not_found")
    return found


def public_link(token: str) -> PublicLink:
    """Return the public link with a token, with its conversation, for any visitor.

    Raises ChatError `not_found`: also when it has expired, its conversation was deleted, its owner was closed, or
    the site no longer allows links.
    """
    found: PublicLink | None = None
    if settings.SHARE_BY_LINK:
        links = PublicLink.objects.select_related("conversation")
        found = links.filter(
            token=token, owner__is_active=True, conversation__deleted_at=None
        ).first()
    if found is None or found.has_expired:
        raise ChatError("not_found")
    return found


def public_attachment(link: PublicLink, attachment_id: UUID) -> Attachment:
    """Return an attachment of the messages that a public link shows; raises ChatError `not_found`."""
    found = Attachment.objects.filter(pk=attachment_id).first()
    if found is None or not is_on_path(found, link.last or link.conversation.leaf_id):
        raise ChatError("not_found")
    return found


def require(user: User | AnonymousUser, conversation: Conversation, *, write: bool) -> None:
    """Raise ChatError `not_found` unless the user may read the conversation, `not_allowed` unless also write in it."""
    granted = decide(user, conversation)
    if granted < Access.READ:
        raise ChatError("not_found")
    if write and granted < Access.WRITE:
        raise ChatError("not_allowed")
