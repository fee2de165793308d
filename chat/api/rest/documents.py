"""Documents: upload, state, content, tables and deletion; and the documents that a conversation is bound to."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from django.conf import settings
from django.http import HttpResponse
from ninja import File, Form, Router, Schema
from ninja.files import UploadedFile
from ninja.responses import Status
from pydantic import Field

from accounts.models import Scope
from billing.metering import plan_limits
from chat import access
from chat.api.rest import paging
from chat.api.rest.auth import ApiRequest, needs
from chat.api.rest.errors import Problem
from chat.api.rest.schemas import Body, Cursor, Limit, Page, Text, responses
from chat.documents import binding, lifecycle, queries, reasons, tracking, uploads
from chat.documents.datasets import store
from chat.documents.datasets.errors import QueryRefused
from chat.documents.datasets.names import quoted
from chat.documents.models import Block, Dataset, Document
from chat.errors import ChatError
from chatproject.lib import rate_limits

router = Router(tags=["documents"])

LIMIT = "documents"  # as pages have it
MOST_POSITION = 2**31 - 1


class DocumentProblem(Schema):
    """The reason for which a document could not be read."""

    code: str
    message: str


class DocumentOut(Schema):
    """A document. Its content can be read, and asked about, when `status` is ready."""

    id: UUID
    name: str
    format: Literal["whatsapp", "telegram", "text", "markdown", "csv", "xlsx", "pdf", "docx"]
    kind: Literal["chat", "text", "table"]
    size: int = Field(description="Bytes of the file.")
    status: Literal["uploaded", "parsing", "ready", "failed"]
    percent: int = Field(description="Of reading it; 0 to 100.")
    error: DocumentProblem | None
    index: Literal["none", "queued", "indexing", "ready", "failed"] = Field(
        description="Whether questions find its passages; none until it is first bound or asked about."
    )
    project: UUID | None
    language: str = Field(description="Of its text; empty if it is not known.")
    details: dict[str, Any] = Field(
        description="Counts, and notes on what was left out or guessed; `chats` of an export to choose one of."
    )
    created_at: datetime
    parsed_at: datetime | None


class ChatStatisticsOut(Schema):
    """The figures of a chat, which are null until it is ready: `totals`, `people`, `per_day`, `words` and others."""

    document: UUID
    statistics: dict[str, Any] | None


class BlockOut(Schema):
    """A part of a document in its order: a message of a chat, or a heading, paragraph or table of a text.

    `sent_at` is the time that the export shows, of no time zone.
    """

    position: int
    kind: Literal["message", "system", "media", "deleted", "poll", "heading", "paragraph", "table"]
    sender: str
    sent_at: datetime | None
    page: int | None
    headings: list[str]
    text: str


class ColumnOut(Schema):
    """A column of a table."""

    name: str
    type: str


class TableOut(Schema):
    """A table of a document. `name` is its name in queries and addresses, `preview` has its first rows."""

    name: str
    title: str
    rows: int
    columns: list[ColumnOut]
    preview: list[list[Any]]


class DocumentRetry(Body):
    """Another try at reading a document; `chat` is the id of one of its `details.chats`."""

    chat: Annotated[Text, Field(max_length=100)] = ""


@router.get("/documents", auth=needs(Scope.DOCUMENTS), response=responses({200: Page[DocumentOut]}))
def list_documents(request: ApiRequest, cursor: Cursor = "", limit: Limit = 50) -> dict[str, Any]:
    """List the documents of the user, the newest first."""
    page = queries.page(request.auth.user, str(_cursor(cursor) or ""), limit)
    items = [described(one) for one in page.documents]
    return {"items": items, "next": None if page.next is None else str(page.next)}


def _cursor(sent: str) -> UUID | None:
    try:
        return UUID(sent) if sent else None
    except ValueError as error:
        raise Problem("invalid_cursor") from error


@router.post(
    "/documents",
    auth=needs(Scope.DOCUMENTS),
    response=responses({200: DocumentOut, 201: DocumentOut}, 413, 415),
)
def upload_document(
    request: ApiRequest,
    file: File[UploadedFile],
    project: Form[UUID | None] = None,
) -> Status[dict[str, Any]]:
    """Upload a document as `multipart/form-data`; a job reads it then: ask for its `status`.

    A file that the user has uploaded before is found again: the answer is 200 then, and the document goes into
    `project`.
    """
    user = request.auth.user
    rate_limits.hit(LIMIT, user.pk, limit=plan_limits.limit_of(LIMIT, user.plan_id))
    added = uploads.add(
        user=user,
        name=file.name or "",
        size=file.size or 0,
        chunks=file.chunks(),
        project=None if project is None else access.project(user, project),
    )
    return Status(201 if added.is_new else 200, described(added.document))


@router.get(
    "/documents/{uuid:document_id}",
    auth=needs(Scope.DOCUMENTS),
    response=responses({200: DocumentOut}),
)
def read_document(request: ApiRequest, document_id: UUID) -> dict[str, Any]:
    """Return a document with its state."""
    return described(access.owned(request.auth.user, Document, document_id))


@router.delete(
    "/documents/{uuid:document_id}",
    auth=needs(Scope.DOCUMENTS),
    response=responses({204: None}),
)
def delete_document(request: ApiRequest, document_id: UUID) -> HttpResponse:
    """Delete a document; it is purged with its file some days later."""
    lifecycle.delete(user=request.auth.user, document_id=document_id)
    return HttpResponse(status=204)


@router.post(
    "/documents/{uuid:document_id}/retry",
    auth=needs(Scope.DOCUMENTS),
    response=responses({200: DocumentOut}),
)
def retry_document(request: ApiRequest, document_id: UUID, sent: DocumentRetry) -> dict[str, Any]:
    """Read a document again that has failed, or one chat of an export with several."""
    user = request.auth.user
    rate_limits.hit(LIMIT, user.pk, limit=plan_limits.limit_of(LIMIT, user.plan_id))
    found = access.owned(user, Document, document_id)
    if sent.chat:
        found = lifecycle.choose_chat(user=user, document_id=document_id, chat=sent.chat)
    else:
        tracking.retry(found)
    return described(found)


@router.get(
    "/documents/{uuid:document_id}/statistics",
    auth=needs(Scope.DOCUMENTS),
    response=responses({200: ChatStatisticsOut}),
)
def read_statistics(request: ApiRequest, document_id: UUID) -> dict[str, Any]:
    """Return the statistics of a chat, with the names of its people."""
    found = access.owned(request.auth.user, Document, document_id)
    if found.kind != Document.Kind.CHAT:
        raise Problem("not_found", status=404, message="Only chats have statistics.")
    return {"document": found.pk, "statistics": found.statistics}


@router.get(
    "/documents/{uuid:document_id}/blocks",
    auth=needs(Scope.DOCUMENTS),
    response=responses({200: Page[BlockOut]}),
)
def list_blocks(
    request: ApiRequest, document_id: UUID, cursor: Cursor = "", limit: Limit = 50
) -> dict[str, Any]:
    """List the content of a chat or a text in its order.

    A `cursor` is the position of a block: a citation's `first` begins at its passage.
    """
    found = access.owned(request.auth.user, Document, document_id)
    start = paging.number(cursor) or 0
    if start > MOST_POSITION:
        raise Problem("invalid_cursor")
    page = queries.blocks(found, start, limit)
    items = [_block(one) for one in page.blocks]
    return {"items": items, "next": None if page.after is None else str(page.after)}


@router.get(
    "/documents/{uuid:document_id}/tables",
    auth=needs(Scope.DOCUMENTS),
    response=responses({200: Page[TableOut]}),
)
def list_tables(
    request: ApiRequest, document_id: UUID, cursor: Cursor = "", limit: Limit = 50
) -> dict[str, Any]:
    """List the tables of a CSV or Excel document, with their columns and first rows."""
    found = access.owned(request.auth.user, Document, document_id)
    dataset = Dataset.objects.filter(document=found).first()
    items = [] if dataset is None else [_table(one) for one in dataset.tables]
    return paging.page(items, cursor, limit)


@router.get(
    "/documents/{uuid:document_id}/tables/{str:name}/csv",
    auth=needs(Scope.DOCUMENTS),
    response=responses({}, 409),
    openapi_extra={
        "responses": {
            200: {
                "description": "Rows of the table. The header X-Next-Row is the number of the next row, if there is one.",
                "content": {"text/csv": {"schema": {"type": "string"}}},
            }
        }
    },
)
def read_table(
    request: ApiRequest,
    document_id: UUID,
    name: str,
    first: Annotated[int, Field(ge=0, le=10**9, description="Rows to leave out.")] = 0,
) -> HttpResponse:
    """Return rows of a table as CSV, as many as one result may have."""
    found = access.owned(request.auth.user, Document, document_id)
    tables = [one for one in store.tables_of([found.pk]) if one.name == name]
    if not tables:
        raise ChatError("not_found")
    most = settings.TABLE_QUERY_ROWS
    sql = f"SELECT * FROM {quoted(name)} LIMIT {most} OFFSET {first}"  # noqa: S608 # a quoted name, numbers
    try:
        result = store.query(tables, sql, csv=True, preview=0)
    except QueryRefused as error:
        raise Problem("not_allowed", status=409, message=str(error)) from error
    answer = HttpResponse(result.csv, content_type="text/csv; charset=utf-8")
    end = first + result.total
    if result.total and end < tables[0].shape["rows"]:
        answer["X-Next-Row"] = str(end)
    return answer


# --- Of conversations -------------------------------------------------------------------------


@router.get(
    "/conversations/{uuid:conversation_id}/documents",
    auth=needs(Scope.DOCUMENTS),
    response=responses({200: Page[DocumentOut]}),
)
def list_bound_documents(
    request: ApiRequest, conversation_id: UUID, cursor: Cursor = "", limit: Limit = 50
) -> dict[str, Any]:
    """List the documents that a conversation is bound to: its own and those of its project."""
    found = access.conversation(request.auth.user, conversation_id, write=True)
    items = [described(one) for one in binding.of_conversation(found)]
    return paging.page(items, cursor, limit)


@router.put(
    "/conversations/{uuid:conversation_id}/documents/{uuid:document_id}",
    auth=needs(Scope.DOCUMENTS),
    response=responses({200: DocumentOut}),
)
def bind_document(request: ApiRequest, conversation_id: UUID, document_id: UUID) -> dict[str, Any]:
    """Bind a conversation to a document: its questions are answered from it."""
    user = request.auth.user
    binding.bind(user=user, conversation_id=conversation_id, document_ids=[document_id])
    return described(access.owned(user, Document, document_id))


@router.delete(
    "/conversations/{uuid:conversation_id}/documents/{uuid:document_id}",
    auth=needs(Scope.DOCUMENTS),
    response=responses({204: None}),
)
def unbind_document(request: ApiRequest, conversation_id: UUID, document_id: UUID) -> HttpResponse:
    """End the binding of a conversation to a document; the document stays."""
    user = request.auth.user
    access.owned(user, Document, document_id)
    binding.unbind(user=user, conversation_id=conversation_id, document_id=document_id)
    return HttpResponse(status=204)


def described(one: Document) -> dict[str, Any]:
    """Return a document as answers have it."""
    error = {"code": one.reason, "message": reasons.sentence(one.reason)} if one.reason else None
    return {
        "id": one.pk,
        "name": one.name,
        "format": one.format,
        "kind": one.kind,
        "size": one.size,
        "status": one.status,
        "percent": one.percent,
        "error": error,
        "index": one.index_status,
        "project": one.project_id,
        "language": one.language,
        "details": one.details,
        "created_at": one.created_at,
        "parsed_at": one.parsed_at,
    }


def _block(one: Block) -> dict[str, Any]:
    names = ("position", "kind", "sender", "sent_at", "page", "headings", "text")
    return {name: getattr(one, name) for name in names}


def _table(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": one["name"],
        "title": one["title"],
        "rows": one["rows"],
        "columns": [{"name": it["name"], "type": it["type"]} for it in one["columns"]],
        "preview": one["preview"],
    }
