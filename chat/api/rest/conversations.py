"""Conversations and their messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from django.http import HttpResponse
from msgspec import UNSET
from ninja import Router
from ninja.responses import Status
from pydantic import Field

from accounts.api_keys import KeyRefused
from accounts.models import Scope, User
from chat import access
from chat.api.rest import idempotency
from chat.api.rest.auth import ApiRequest, needs
from chat.api.rest.errors import Problem
from chat.api.rest.schemas import (
    ConversationChange,
    ConversationCreate,
    ConversationOut,
    ConversationWithMessages,
    Cursor,
    Limit,
    MessageOut,
    Page,
    responses,
)
from chat.conversations import lifecycle, listing, sharing, transcript
from chat.conversations.offers import Choice
from chat.documents import binding
from chat.documents.models import Document
from chat.errors import ChatError
from chat.models import Conversation, Message, MessagePart
from chat.runs import start
from chat.runs.delete import delete

router = Router(tags=["conversations"])


@router.get(
    "/conversations", auth=needs(Scope.READ), response=responses({200: Page[ConversationOut]})
)
def list_conversations(
    request: ApiRequest,
    archived: bool = False,
    project: UUID | None = None,
    cursor: Cursor = "",
    limit: Limit = 50,
) -> dict[str, Any]:
    """List conversations, the newest first; pinned ones come before them, beyond `limit`, on the first page.

    With `archived` the archived ones alone, with `project` those of a project. Temporary ones are in no list.
    """
    user = request.auth.user
    if project is not None and archived:
        fields = [{"field": "archived", "message": "Not together with project."}]
        raise Problem("invalid_request", fields=fields)
    # A client that did not escape the plus sign of its time zone sends a space.
    cursor = cursor.replace(" ", "+")
    owned = access.project(user, project) if project is not None else None
    try:
        if owned is not None:
            page = listing.in_project(owned, cursor, limit)
        elif archived:
            page = listing.archive(user, cursor, limit)
        else:
            page = listing.page(user, cursor, limit)
    except ChatError as error:
        raise Problem("invalid_cursor") from error
    items = [described(user, one) for day in page.days for one in day.conversations]
    return {"items": items, "next": page.next or None}


@router.post(
    "/conversations",
    auth=needs(Scope.WRITE),
    response=responses({200: ConversationOut, 201: ConversationOut}, 409, 413),
    openapi_extra=idempotency.DESCRIBED,
)
def create_conversation(
    request: ApiRequest,
    sent: ConversationCreate,
) -> Status[dict[str, Any]]:
    """Create a conversation without messages. A repetition with the same `Idempotency-Key` returns it with 200."""
    user = request.auth.user
    choice = Choice(
        model_id=UNSET if sent.model is None else sent.model,
        assistant_id=sent.assistant,
        project_id=sent.project,
    )
    key = request.auth.key
    if sent.documents and key is not None and Scope.DOCUMENTS not in key.scopes:
        raise KeyRefused("missing_scope", Scope.DOCUMENTS.value)
    with idempotency.once(request, "conversation", sent) as client_id:
        for one in sent.documents:
            access.owned(user, Document, one)
        created, is_new = start.begin(
            user=user,
            client_id=client_id,
            choice=choice,
            title=_title(sent.title) if sent.title is not None else "",
        )
        if sent.documents:
            binding.bind(user=user, conversation_id=created.pk, document_ids=sent.documents)
    return Status(201 if is_new else 200, described(user, created))


@router.get(
    "/conversations/{uuid:conversation_id}",
    auth=needs(Scope.READ),
    response=responses({200: ConversationWithMessages}),
)
def read_conversation(request: ApiRequest, conversation_id: UUID) -> dict[str, Any]:
    """Return a conversation with the last 100 messages of its path, the oldest first."""
    found = access.conversation(request.auth.user, conversation_id)
    shown = transcript.excerpt(found)
    is_own = found.owner_id == request.auth.user.pk
    found.active = bool(shown.runs)  # type: ignore[attr-defined] # as the annotation of lists
    return described(request.auth.user, found) | {
        "messages": [described_message(message, is_own=is_own) for message in shown.messages],
        "earlier": str(shown.messages[0].pk) if shown.earlier else None,
    }


@router.patch(
    "/conversations/{uuid:conversation_id}",
    auth=needs(Scope.WRITE),
    response=responses({200: ConversationOut}, 413),
)
def change_conversation(
    request: ApiRequest, conversation_id: UUID, sent: ConversationChange
) -> dict[str, Any]:
    """Rename, pin or archive a conversation, or undo that."""
    user = request.auth.user
    found = access.conversation(user, conversation_id, write=True)
    title = _title(sent.title) if sent.title is not None else None
    if sent.pinned is not None and sent.pinned != (found.pinned_at is not None):
        action = "pin" if sent.pinned else "unpin"
        lifecycle.change(user=user, conversation_ids=[conversation_id], action=action)
    if sent.archived is not None and sent.archived != (found.archived_at is not None):
        action = "archive" if sent.archived else "unarchive"
        lifecycle.change(user=user, conversation_ids=[conversation_id], action=action)
    if title is not None:
        lifecycle.rename(user=user, conversation_id=conversation_id, title=title)
    return described(user, access.conversation(user, conversation_id))


def _title(sent: str) -> str:
    """Return a title in one line, as pages store it. Raises Problem for an empty one."""
    title = " ".join(sent.split())
    if not title:
        fields = [{"field": "title", "message": "The title is empty."}]
        raise Problem("invalid_request", fields=fields)
    return title


@router.delete(
    "/conversations/{uuid:conversation_id}",
    auth=needs(Scope.WRITE),
    response=responses({204: None}),
)
def delete_conversation(request: ApiRequest, conversation_id: UUID) -> HttpResponse:
    """Stop the replies of a conversation and delete it; it is purged some days later."""
    access.conversation(request.auth.user, conversation_id, write=True)
    delete(user=request.auth.user, conversation_ids=[conversation_id])
    return HttpResponse(status=204)


@router.get(
    "/conversations/{uuid:conversation_id}/messages",
    auth=needs(Scope.READ),
    response=responses({200: Page[MessageOut]}),
)
def list_messages(
    request: ApiRequest,
    conversation_id: UUID,
    of: Annotated[
        Literal["path", "tree"],
        Field(description="The path to the conversation's leaf, or all messages of the tree."),
    ] = "path",
    cursor: Cursor = "",
    limit: Limit = 100,
) -> dict[str, Any]:
    """List messages, the oldest first in each page.

    Of the path the first page has the last messages, and the next page those before; all replies of a comparison
    at its end count as one. Of the tree, whose messages name their `parent`, the first page has the oldest ones.
    """
    user = request.auth.user
    # A reader by share sees the path alone.
    found = access.conversation(user, conversation_id, write=of == "tree")
    is_own = found.owner_id == user.pk
    after = _message_cursor(found, cursor, is_own=is_own)
    if of == "path":
        shown = transcript.excerpt(found, before=cursor, length=limit)
        items = [described_message(message, is_own=is_own) for message in shown.messages]
        return {"items": items, "next": items[0]["id"] if shown.earlier and items else None}
    rows = Message.objects.filter(conversation=found).order_by("id")
    if after is not None:
        rows = rows.filter(pk__gt=after)
    messages = list(rows.select_related("run").prefetch_related("parts")[: limit + 1])
    items = [described_message(message, is_own=is_own) for message in messages[:limit]]
    return {"items": items, "next": items[-1]["id"] if len(messages) > limit else None}


def _message_cursor(conversation: Conversation, cursor: str, *, is_own: bool) -> UUID | None:
    if not cursor:
        return None
    try:
        after = UUID(cursor)
    except ValueError as error:
        raise Problem("invalid_cursor") from error
    if not Message.objects.filter(pk=after, conversation=conversation).exists():
        raise Problem("invalid_cursor")
    if not is_own and not sharing.shows(conversation, after):
        raise Problem("invalid_cursor")
    return after


def described(user: User, conversation: Conversation) -> dict[str, Any]:
    """Return a conversation as answers have it; a reader by share sees nothing of its owner's order and choices."""
    is_own = conversation.owner_id == user.pk
    return {
        "id": conversation.pk,
        "title": conversation.name,
        "assistant": conversation.assistant_id if is_own else None,
        "model": conversation.model_id if is_own else None,
        "project": conversation.project_id if is_own else None,
        "temporary": conversation.temporary,
        "pinned": is_own and conversation.pinned_at is not None,
        "archived": is_own and conversation.archived_at is not None,
        "active": getattr(conversation, "active", None),
        "leaf": conversation.leaf_id,
        "created_at": conversation.created_at,
        "updated_at": conversation.updated_at,
    }


def described_message(message: Message, *, is_own: bool) -> dict[str, Any]:
    """Return a message, whose run and parts were read, as answers have it.

    A reader by share gets no reasoning: it may quote instructions.
    """
    run = getattr(message, "run", None)
    reasoning = [
        part.data["text"]
        for part in message.ordered_parts
        if part.kind == MessagePart.Kind.REASONING and is_own
    ]
    return {
        "id": str(message.pk),
        "parent": message.parent_id,
        "role": message.role,
        "status": message.status,
        "text": message.text,
        "reasoning": "\n\n".join(reasoning),
        "parts": [
            {"kind": part.kind, "data": part.data}
            for part in message.ordered_parts
            if part.kind in MessagePart.FOR_OWNER and is_own
        ],
        "attachments": [
            {"id": one.get("id"), "name": one["name"], "kind": one["kind"]} for one in message.files
        ],
        "run": run.pk if run is not None else None,
        "created_at": message.created_at,
    }
