"""The requests and answers of the REST API, as the OpenAPI document describes them."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from django.conf import settings
from ninja import Schema
from pydantic import AfterValidator, ConfigDict, Field

from chat import protocol
from chat.documents import binding
from chat.models import Conversation, Webhook
from chat.webhooks import addresses

T = TypeVar("T")

MOST_DOCUMENTS = binding.MOST


def storable(text: str) -> str:
    """Return a text that Postgres stores. Raises ValueError for one with NUL."""
    if not protocol.is_storable(text):
        raise ValueError("The text has a character that cannot be stored.")
    return text


def named(text: str) -> str:
    """Return a name in one line. Raises ValueError for an empty one."""
    text = " ".join(text.split())
    if not text:
        raise ValueError("The name is empty.")
    return text


TITLE_CHARACTERS: int = Conversation._meta.get_field("title").max_length or 100

Text = Annotated[str, AfterValidator(storable)]
Title = Annotated[str, Field(min_length=1, max_length=TITLE_CHARACTERS), AfterValidator(storable)]
RowId = Annotated[int, Field(ge=1, le=2**53)]
Limit = Annotated[int, Field(ge=1, le=100, description="Items of a page, at most.")]
Cursor = Annotated[str, Field(max_length=200, description="`next` of the page before.")]
Credits = Annotated[str, Field(description="Credits, exactly, as a decimal number in a text.")]


class Body(Schema):
    """Base of the requests: an undeclared field is refused."""

    model_config = ConfigDict(extra="forbid", strict=False)


# --- Errors -----------------------------------------------------------------------------------


class FieldProblem(Schema):
    """A part of a request that was refused."""

    field: str
    message: str


class Error(Schema):
    """An error: `code` is stable, `message` is for people, `request_id` is in the logs."""

    code: str
    message: str
    request_id: str
    fields: list[FieldProblem] | None = None


# --- Conversations ----------------------------------------------------------------------------


class ConversationOut(Schema):
    """A conversation. `leaf` is the last message of its path, `active` whether a reply is being generated."""

    id: UUID
    title: str
    assistant: int | None = Field(description="Null in a conversation of another user.")
    model: int | None = Field(description="The model of its next message; null: the assistant's.")
    project: UUID | None
    temporary: bool
    pinned: bool
    archived: bool
    active: bool | None = Field(description="Null where it was not read: in answers to changes.")
    leaf: UUID | None
    created_at: datetime
    updated_at: datetime


class ConversationCreate(Body):
    """A new conversation; by default with the user's assistant and model."""

    title: Title | None = None
    assistant: RowId | None = None
    model: RowId | None = None
    project: UUID | None = None
    documents: Annotated[list[UUID], Field(max_length=MOST_DOCUMENTS)] = Field(
        default_factory=list,
        description="That it is bound to; they need the scope `documents`, too.",
    )


class ConversationChange(Body):
    """The changes of a conversation; a field that is left out stays as it is."""

    title: Title | None = None
    pinned: bool | None = None
    archived: bool | None = None


class Attached(Schema):
    """A file of a message."""

    id: UUID | None
    name: str
    kind: str


class PartOut(Schema):
    """A part of a reply besides its text, made by a tool or a search: docs/tools.md has the `data` of each kind."""

    kind: Literal["tool", "citation", "table", "chart", "links", "note"]
    data: dict[str, Any]


class MessageOut(Schema):
    """A message. `run` generated it, if it is a reply that was made here.

    `parts` has the calls of tools, the passages that marks such as `[1]` cite, tables, charts, links to pages of the web
    and stored notes about the user; for its owner alone.
    """

    id: UUID
    parent: UUID | None
    role: Literal["user", "assistant"]
    status: Literal["pending", "done", "stopped", "failed"]
    text: str
    reasoning: str
    parts: list[PartOut]
    attachments: list[Attached]
    run: UUID | None
    created_at: datetime


class Page(Schema, Generic[T]):
    """A page of a list; `next` is the `cursor` of the page after it, null at the end."""

    items: list[T]
    next: str | None


class ConversationWithMessages(ConversationOut):
    """A conversation with the end of its path; `earlier` is the `cursor` of the messages before."""

    messages: list[MessageOut]
    earlier: str | None


# --- Runs -------------------------------------------------------------------------------------


class RunStart(Body):
    """A message that asks for a reply; without `conversation` it begins a new one."""

    text: Text = Field(default="", description="May be empty with attachments.")
    conversation: UUID | None = None
    parent: UUID | None = Field(
        default=None, description="The message that it follows; by default the end of the path."
    )
    model: RowId | None = None
    effort: Annotated[str, Field(max_length=10), AfterValidator(storable)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    assistant: RowId | None = Field(default=None, description="Of a new conversation.")
    project: UUID | None = Field(default=None, description="Of a new conversation.")
    temporary: bool = Field(default=False, description="Whether a new conversation is temporary.")
    attachments: list[UUID] = Field(
        default_factory=list, max_length=settings.ATTACHMENTS_PER_MESSAGE
    )


class Usage(Schema):
    """Tokens of a run. `estimated`: counted here, as the provider sent no usage."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    estimated: bool


class RunProblem(Schema):
    """The reason of a failed run."""

    code: str
    message: str


class ToolDecision(Body):
    """The answer to a call of a tool that waits for it."""

    allow: bool


class WaitingCall(Schema):
    """A call of a tool that waits for its user's answer: `call` is its number in the run."""

    call: str
    name: str
    title: str
    arguments: Any
    until: datetime | None


class RunOut(Schema):
    """A run: one making of one reply. `text` and the fields after it are complete when it has ended."""

    id: UUID
    conversation: UUID
    message: UUID
    status: Literal["queued", "running", "done", "stopped", "failed"]
    attempt: int
    model: str
    text: str
    finish_reason: str
    error: RunProblem | None
    usage: Usage | None
    charged: Credits | None
    waiting_for: list[WaitingCall]
    queued_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


# --- Webhooks ---------------------------------------------------------------------------------

Event = Literal["run.done", "credits.low"]
WebhookName = Annotated[
    str,
    Field(max_length=60),
    AfterValidator(storable),
    AfterValidator(named),
]
Url = Annotated[
    str,
    Field(
        max_length=addresses.MAX_CHARACTERS,
        description="Begins with https://, and has the name of a server that is on the internet.",
    ),
]
Events = Annotated[list[Event], Field(min_length=1, max_length=len(Webhook.Event))]


class WebhookCreate(Body):
    """A new webhook."""

    name: WebhookName
    url: Url
    events: Events
    includes_text: bool = Field(
        default=False, description="Whether `run.done` has the text of the reply."
    )
    active: bool = Field(default=True, description="Whether events are sent.")


class WebhookChange(Body):
    """The changes of a webhook; a field that is left out stays as it is."""

    name: WebhookName | None = None
    url: Url | None = None
    events: Events | None = None
    includes_text: bool | None = None
    active: bool | None = None


class WebhookOut(Schema):
    """A webhook. `disabled` is the reason for which the site has switched it off, `failing_since` is null after a success."""

    id: UUID
    name: str
    url: str
    events: list[Event]
    includes_text: bool
    active: bool
    disabled: Literal["", "failing", "gone", "staff"]
    failing_since: datetime | None
    created_at: datetime


class WebhookWithSecret(WebhookOut):
    """A webhook with its signing secret, which no later answer has."""

    secret: str


class DeliveryOut(Schema):
    """A message to a webhook. `due_at` is the time of the next attempt; `error` is about the last one."""

    id: UUID
    message_id: str = Field(description="The header `webhook-id` of all its attempts.")
    event: Literal["run.done", "credits.low", "ping"]
    run: UUID | None
    status: Literal["waiting", "queued", "sending", "delivered", "failed"]
    attempts: int
    due_at: datetime | None
    created_at: datetime
    attempted_at: datetime | None
    response_status: int | None
    error: str


class DeliveryWithBody(DeliveryOut):
    """A message with its `body`, which has no text of a reply, and the beginning of the last answer's body."""

    body: str
    response_body: str


# --- Search and account -----------------------------------------------------------------------


class SearchHit(Schema):
    """A conversation that was found; `message` is null for a hit in the title."""

    conversation: UUID
    title: str
    updated_at: datetime
    archived: bool
    message: UUID | None
    snippet: str


class SearchResult(Schema):
    """The conversations that were found, the best first; `note` is about a query that finds nothing."""

    items: list[SearchHit]
    next: str | None
    note: str


class BalanceOut(Schema):
    """The credits of the account. `available` is the balance without what running replies hold."""

    available: Credits
    balance: Credits
    held: Credits
    debt: Credits
    frozen: bool
    warning: Literal["", "low", "empty"]


class UsageRow(Schema):
    """The usage of one model on one day."""

    day: date
    model: str
    calls: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    charged: Credits


class UsageReport(Schema):
    """The usage of a span of days, the oldest first; `charged` is that of all days, not of the page alone."""

    first: date
    last: date
    items: list[UsageRow]
    next: str | None
    charged: Credits


class LedgerEntry(Schema):
    """An entry of the account's ledger; `seq` grows by one from entry to entry."""

    seq: int
    at: datetime
    kind: str
    title: str
    note: str
    amount: Credits
    balance_after: Credits
    order: UUID | None
    model: str
    conversation: UUID | None


def responses(success: dict[int, Any], *more: int) -> dict[int, Any]:
    """Return the answers of an operation, with the errors that every operation has and `more`."""
    errors = {400, 401, 403, 404, 422, 429, 503, *more}
    return success | dict.fromkeys(sorted(errors), Error)
