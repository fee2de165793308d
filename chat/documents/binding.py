"""The documents that a conversation is bound to: its own and those of its project.

`Conversation.has_own_documents` and `Project.has_documents` are kept here, so that the hot path of a message
without documents needs no query for them; they may be set where the last document was deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from chat import access
from chat.conversations import lifecycle
from chat.documents.models import ConversationDocument, Document
from chat.documents.retrieval import indexing, jobs
from chat.errors import ChatError
from chat.models import Conversation, Project
from chat.streaming import user_channel

if TYPE_CHECKING:
    from accounts.models import User

MOST = 20  # documents of one conversation
TITLE_CHARACTERS = 100


def of_conversation(conversation: Conversation) -> list[Document]:
    """Return the documents that a conversation is bound to, in the order of their uploads; without a query if none."""
    if not conversation.has_documents:
        return []
    mine = Q(conversation_links__conversation=conversation)
    if conversation.project_id is not None:
        mine |= Q(project=conversation.project_id)
    # Of its owner alone: a row that another's conversation was bound to would be no permission.
    found = Document.objects.filter(mine, owner=conversation.owner_id).order_by("pk").distinct()
    return list(found)


def bind(*, user: User, conversation_id: UUID, document_ids: Sequence[UUID]) -> list[Document]:
    """Bind a conversation to documents of its owner besides those it has; return the new ones.

    Raises ChatError `not_found`, `not_allowed`, `too_many`.
    """
    with transaction.atomic():
        conversation = access.conversation(user, conversation_id, write=True, lock=True)
        found = [access.owned(user, Document, id) for id in dict.fromkeys(document_ids)]
        links = ConversationDocument.objects.filter(conversation=conversation)
        known = set(links.values_list("document", flat=True))
        new = [one for one in found if one.pk not in known]
        if len(known) + len(new) > MOST:
            raise too_many()
        ConversationDocument.objects.bulk_create(
            [ConversationDocument(conversation=conversation, document=one) for one in new],
            ignore_conflicts=True,
        )
        if new and not conversation.has_own_documents:
            Conversation.objects.filter(pk=conversation.pk).update(has_own_documents=True)
        transaction.on_commit(partial(_index, [one.pk for one in new]))
    return new


def _index(document_ids: list[UUID]) -> None:
    """Have documents indexed that were not yet, so that the first question finds them so."""
    jobs.enqueue(indexing.request(document_ids))


def index_if_bound(document: Document) -> None:
    """Have a document indexed that was bound before it was read."""
    if document.project_id is not None or document.conversation_links.exists():
        _index([document.pk])


def unbind(*, user: User, conversation_id: UUID, document_id: UUID) -> None:
    """Remove the binding of a conversation to a document; one that is not bound stays so."""
    with transaction.atomic():
        conversation = access.conversation(user, conversation_id, write=True, lock=True)
        links = ConversationDocument.objects.filter(conversation=conversation)
        links.filter(document=document_id).delete()
        refresh([conversation.pk])


def choose(*, user: User, conversation_id: UUID, document_ids: Sequence[UUID]) -> None:
    """Bind a conversation to these documents of its owner, and to no others of its own; raises like `bind`."""
    with transaction.atomic():
        conversation = access.conversation(user, conversation_id, write=True, lock=True)
        links = ConversationDocument.objects.filter(conversation=conversation)
        links.exclude(document__in=document_ids).delete()
        bind(user=user, conversation_id=conversation_id, document_ids=document_ids)
        refresh([conversation.pk])


def begin(
    *, user: User, document_ids: Sequence[UUID], project: Project | None = None
) -> Conversation:
    """Return a new conversation of the user that is bound to documents; of one, the last without a message, if any.

    It is in `project`, else in that of its only document. Raises ChatError `not_found`, `too_many`,
    `model_unavailable`.
    """
    if len(document_ids) > MOST:
        raise too_many()
    with transaction.atomic():
        ids = sorted({*document_ids})  # in one order, as their rows are locked
        documents = [access.owned(user, Document, id, lock=True) for id in ids]
        if len(documents) == 1:
            mine = Conversation.objects.not_deleted().filter(owner=user, leaf=None)
            known: Conversation | None = mine.filter(document_links__document=documents[0]).first()
            if known is not None and project is None:
                return known
            project = project or documents[0].project
        assistant = lifecycle.default_assistant(user, project)
        if assistant is None:
            raise ChatError("model_unavailable")
        conversation = Conversation.objects.create(
            owner=user,
            assistant=assistant,
            project=project,
            title=", ".join(one.name for one in documents)[:TITLE_CHARACTERS],
            updated_at=timezone.now(),
            has_own_documents=True,
        )
        ConversationDocument.objects.bulk_create(
            ConversationDocument(conversation=conversation, document=one) for one in documents
        )
        transaction.on_commit(partial(_index, ids))
    user_channel.announce_conversation(conversation)
    return conversation


def too_many() -> ChatError:
    """Return the refusal of more than MOST documents."""
    return ChatError(
        "too_many", _("A chat may have %(most)d documents. Remove some of them.") % {"most": MOST}
    )


def choose_of_project(*, user: User, project_id: UUID, document_ids: Sequence[UUID]) -> None:
    """Put these documents of the user into a project, and take all others out of it; raises ChatError `not_found`."""
    with transaction.atomic():
        project = access.project(user, project_id, lock=True)
        mine = Document.objects.filter(owner=user)
        mine.filter(project=project).exclude(pk__in=document_ids).update(project=None)
        moved = mine.filter(pk__in=document_ids).exclude(project=project)
        before = set(moved.exclude(project=None).values_list("project", flat=True))
        moved.update(project=project)
        for one in (project, *Project.objects.filter(pk__in=before)):
            mark_project(one)


def set_project(document: Document, project: Project | None) -> None:
    """Put a document into a project of its owner, or into none; the project is locked by the caller's choice."""
    before = document.project
    with transaction.atomic():
        Document.objects.filter(pk=document.pk).update(project=project)
        document.project = project
        for one in (before, project):
            if one is not None:
                mark_project(one)


def mark_project(project: Project) -> None:
    """Set `has_documents` of a project by its documents."""
    has = Document.objects.filter(project=project.pk).exists()
    Project.objects.filter(pk=project.pk).update(has_documents=has)


def refresh(conversation_ids: Iterable[UUID]) -> None:
    """Set `has_own_documents` of conversations by their bindings to documents that are not deleted."""
    ids = list(conversation_ids)
    linked = ConversationDocument.objects.filter(conversation__in=ids, document__deleted_at=None)
    bound = set(linked.values_list("conversation", flat=True))
    Conversation.objects.filter(pk__in=bound).update(has_own_documents=True)
    Conversation.objects.filter(pk__in=set(ids) - bound).update(has_own_documents=False)
