"""Every frame on the wire, in both directions.

A frame is one JSON object with a `type`. Clients may send only the fields declared here: `decode`
refuses others, so that a misspelt field is reported instead of ignored. docs/protocol.md is the
reference for readers; a test keeps the two in step.

The events of a run carry `run`, `attempt` and `seq`. `seq` grows by one from event to event; a new
attempt begins at `first_seq(attempt)`, so a number never repeats within a run.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar
from uuid import UUID

import msgspec
from django.conf import settings
from msgspec import UNSET, Meta, Struct, UnsetType

from accounts.sockets import TRY_AGAIN_LATER as TRY_AGAIN_LATER
from chat.errors import ChatError, Missing, sentence
from chatproject.lib import strict_json

MAX_FRAME_BYTES = 64 * 1024

# Numbers of one attempt's events. At 100 events a second they last for 27 hours.
SEQS_PER_ATTEMPT = 10_000_000

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

# Close codes. 1003, 1009, 1011 and 1013 are registered (RFC 6455 and IANA), 44xx are the application's.
UNSUPPORTED_DATA = 1003
TOO_BIG = 1009
INTERNAL_ERROR = 1011
NOT_SIGNED_IN = 4401
UNKNOWN_PATH = 4404
TOO_MANY = 4429


# --- From the client --------------------------------------------------------------------------

MOST_COMPARED = 3  # models of one comparison

# The client's idempotency key: a repeated action has one effect.
CLIENT_ID = r"^[A-Za-z0-9._:-]{1,64}\Z"
ClientId = Annotated[str, Meta(pattern=CLIENT_ID)]


class ClientEvent(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the client's frames; `ref` names the frame in an error."""

    @property
    def ref(self) -> str | None:
        return None


class ClientAction(ClientEvent, frozen=True, kw_only=True):
    """Base of the frames that start a run."""

    client_id: ClientId

    @property
    def ref(self) -> str | None:
        return self.client_id


RowId = Annotated[int, Meta(ge=1, le=2**53)]
# Ids of files that the user has uploaded, in order.
Attachments = Annotated[list[UUID], Meta(max_length=settings.ATTACHMENTS_PER_MESSAGE)]
Effort = Annotated[str, Meta(max_length=10)]
Temperature = Annotated[float, Meta(ge=0, le=2)]


class Choosing(ClientAction, frozen=True, kw_only=True):
    """Base of the frames with a new message, whose conversation keeps the model and settings.

    A value that is left out stays as it is; null returns to that of the assistant or the model.
    """

    model: RowId | UnsetType | None = UNSET
    effort: Effort | UnsetType | None = UNSET
    temperature: Temperature | UnsetType | None = UNSET


class ChatSend(Choosing, frozen=True, tag="chat.send", kw_only=True):
    """A message in a conversation; without `conversation` it begins a new one, with `assistant` in `project`.

    It follows the message `parent`, by default the end of the conversation. With `attachments` the text
    may be empty. `draft`: its text was stored by `draft.save`, and that draft is emptied.
    """

    text: str
    conversation: UUID | None = None
    parent: UUID | None = None
    assistant: RowId | None = None
    attachments: Attachments = []
    draft: bool = False
    project: UUID | None = None
    temporary: bool = False


class ChatCompare(Choosing, frozen=True, tag="chat.compare", kw_only=True):
    """A message like that of `chat.send`, with a reply of each of the `models` (their ids)."""

    text: str
    models: Annotated[list[RowId], Meta(min_length=2, max_length=MOST_COMPARED)]
    conversation: UUID | None = None
    parent: UUID | None = None
    assistant: RowId | None = None
    attachments: Attachments = []
    draft: bool = False
    project: UUID | None = None
    temporary: bool = False


class NextQueue(Choosing, frozen=True, tag="next.queue", kw_only=True):
    """A message that is sent when the present reply has ended; at once without an active run."""

    text: str
    conversation: UUID
    attachments: Attachments = []
    draft: bool = False


class RunRegenerate(ClientAction, frozen=True, tag="run.regenerate", kw_only=True):
    """Another reply in place of the reply `message`, which is kept as a branch, or a reply to that of the user.

    `model` answers this once, by default the model of the conversation.
    """

    message: UUID
    model: RowId | None = None


class RunContinue(ClientAction, frozen=True, tag="run.continue", kw_only=True):
    """A reply that goes on where the reply `message` reached its length limit, which is kept as a branch."""

    message: UUID


class MessageEdit(Choosing, frozen=True, tag="message.edit", kw_only=True):
    """Another text in place of the user's own `message`, which is kept as a branch.

    Without `attachments` the new message has those of the old one.
    """

    message: UUID
    text: str
    attachments: Attachments | UnsetType = UNSET


class BranchSelect(ClientEvent, frozen=True, tag="branch.select"):
    """Show the branch of `message`, down to its newest leaf."""

    message: UUID

    @property
    def ref(self) -> str | None:
        return str(self.message)


class RunAction(ClientEvent, frozen=True):
    """Base of the frames about an existing run."""

    run: UUID

    @property
    def ref(self) -> str | None:
        return str(self.run)


class ToolDecide(RunAction, frozen=True, tag="tool.decide", kw_only=True):
    """Allow or refuse a call of a tool that waits for it: `call` is its number in the run."""

    call: Annotated[str, Meta(pattern=r"^[0-9]{1,5}$")]
    allow: bool


class RunStop(RunAction, frozen=True, tag="run.stop"):
    pass


class Resume(RunAction, frozen=True, tag="resume"):
    """Follow a run from the event after number `after` (0: from its beginning)."""

    after: Annotated[int, Meta(ge=0, le=2**53)] = 0


class ConversationAction(ClientEvent, frozen=True):
    """Base of the frames about a conversation."""

    conversation: UUID

    @property
    def ref(self) -> str | None:
        return str(self.conversation)


class NextEdit(ConversationAction, frozen=True, tag="next.edit"):
    """Take the next message back into the draft of the conversation."""


class NextRemove(ConversationAction, frozen=True, tag="next.remove"):
    """Remove the next message."""


class NextSend(ConversationAction, frozen=True, tag="next.send"):
    """Send a paused next message."""


class ConversationRead(ConversationAction, frozen=True, tag="conversation.read"):
    """The user has seen the newest reply of a conversation."""


class DraftSave(ClientEvent, frozen=True, tag="draft.save", kw_only=True):
    """The unsent text of a conversation, or (without one) of a new chat, typed `age` milliseconds ago."""

    text: str
    conversation: UUID | None = None
    age: Annotated[int, Meta(ge=0, le=2**53)] = 0

    @property
    def ref(self) -> str | None:
        return f"draft:{self.conversation or 'new'}"


class Ping(ClientEvent, frozen=True, tag="ping"):
    pass


CLIENT_EVENTS: dict[str, type[ClientEvent]] = {
    str(event.__struct_config__.tag): event
    for event in (
        ChatSend,
        ChatCompare,
        NextQueue,
        NextEdit,
        NextRemove,
        NextSend,
        RunRegenerate,
        RunContinue,
        MessageEdit,
        BranchSelect,
        ToolDecide,
        RunStop,
        Resume,
        ConversationRead,
        DraftSave,
        Ping,
    )
}


class NotJSON(ValueError):
    """The frame is not JSON at all."""


def decode(frame: str) -> ClientEvent:
    """Decode a client's frame.

    Raises NotJSON, and ChatError for a frame that is not one of CLIENT_EVENTS: `unknown_type`,
    `unknown_field`, `bad_text` (it has half of a surrogate pair) or `bad_json` (a field is missing or
    malformed, a number is out of range, the nesting too deep). Of a repeated field the last one counts.
    """
    try:
        data = msgspec.json.decode(frame)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ChatError("bad_json", f"{sentence('bad_json')} ({error})") from error
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        # Text in UTF-16, as in a browser, may be cut in the middle of a character.
        try:
            is_object = isinstance(strict_json.loads(frame), dict)
        except RecursionError:
            raise ChatError("bad_json") from error
        except ValueError:
            is_object = False
        if not is_object:
            raise NotJSON(str(error)) from error
        raise ChatError("bad_text") from error
    kind = data.get("type") if isinstance(data, dict) else None
    event = CLIENT_EVENTS.get(kind) if isinstance(kind, str) else None
    if event is None:
        raise ChatError("unknown_type")
    unknown = (
        data.keys() - {field.encode_name for field in msgspec.structs.fields(event)} - {"type"}
    )
    if unknown:
        raise ChatError("unknown_field")
    try:
        return msgspec.convert(data, event)
    except msgspec.ValidationError as error:
        raise ChatError("bad_json", f"{sentence('bad_json')} ({error})") from error


def ref_of(frame: str) -> str | None:
    """Return the `client_id`, `run` or `message` of a frame that `decode` refused, if it has one."""
    try:
        data = strict_json.loads(frame)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    ref = data.get("client_id") or data.get("run") or data.get("message")
    return ref[:64] if isinstance(ref, str) and is_storable(ref) else None


def is_storable(text: str) -> bool:
    """Return whether Postgres stores a text: it has no NUL and no half of a surrogate pair."""
    return not UNSTORABLE.search(text)


# --- From the server --------------------------------------------------------------------------


class ServerEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the server's frames."""

    # Django's templates render to a subclass of str, which the encoder refuses without the hook. The
    # hook raises TypeError for every other type.
    encoder: ClassVar[msgspec.json.Encoder] = msgspec.json.Encoder(enc_hook=str.__str__)

    def encode(self) -> bytes:
        """Return the bytes that the browser, the log and Redis receive."""
        return self.encoder.encode(self)


class Ready(ServerEvent, frozen=True, tag="ready", kw_only=True):
    """The socket is signed in and receives the events of its user."""

    user: int


class Pong(ServerEvent, frozen=True, tag="pong"):
    pass


class Error(ServerEvent, frozen=True, tag="error", kw_only=True):
    """The refusal of one frame, which `ref` names; the frame changed nothing."""

    code: str
    message: str
    ref: str | None = None
    credits: Missing | None = None
    retry_after: float | None = None

    @classmethod
    def of(cls, error: ChatError, ref: str | None = None) -> Error:
        """Return the event for an exception."""
        return cls(
            code=error.code,
            message=error.message,
            ref=ref,
            credits=error.credits,
            retry_after=error.retry_after,
        )


class Delayed(ServerEvent, frozen=True, tag="delayed", kw_only=True):
    """The answer to a frame, which `ref` names, takes longer than usual; the frame is still tried."""

    code: str
    message: str
    ref: str | None = None


class Rendered(Struct, frozen=True):
    """A message as the page shows it."""

    id: UUID
    html: str


class RunQueued(ServerEvent, frozen=True, tag="run.queued", kw_only=True):
    """A run is queued.

    `sent` is the user's new message, `reply` the empty one that the run will fill; both follow
    `parent`. `position` is the queue position (1: the next), `eta` the expected wait in seconds. A
    throttled (`held`) run waits for other runs of its user, and `position` counts among the user's
    throttled runs. A `busy` provider has reached its limit, and `position` counts among the runs that
    wait for it. `most` is the maximum cost in micro-credits; `shortened`: the balance lowered the
    reply's cap to `max_tokens`. `model`, `effort` and `temperature` are those of the conversation's
    next message. `compared` is the number of replies to `sent` that are shown side by side.
    """

    run: UUID
    conversation: UUID
    client_id: str
    position: int
    eta: float | None = None
    held: bool = False
    busy: bool = False
    parent: UUID | None = None
    sent: Rendered | None = None
    reply: Rendered
    most: int = 0
    max_tokens: int | None = None
    shortened: bool = False
    model: int = 0
    effort: str = ""
    temperature: float | None = None
    compared: int = 0


class RunWaiting(ServerEvent, frozen=True, tag="run.waiting", kw_only=True):
    """The present queue position of a run; without a number, as it is never replayed.

    `attempt` is the attempt that the run waits for. The other fields are as in RunQueued.
    """

    run: UUID
    attempt: int
    position: int
    eta: float | None = None
    held: bool = False
    busy: bool = False


class RunEvent(ServerEvent, frozen=True, kw_only=True):
    """Base of the numbered events of a run."""

    run: UUID
    attempt: int
    seq: int


class RunStarted(RunEvent, frozen=True, tag="run.started"):
    """A worker has claimed the run."""


class RunRestarted(RunEvent, frozen=True, tag="run.restarted", kw_only=True):
    """A worker has claimed the run: the reply so far is exactly `text`, its reasoning `reasoning`.

    It is another worker, or the run continues another reply (`run.continue`). After a lost attempt a
    model that can continue goes on from them; for any other they are empty, and it begins again.
    """

    text: str = ""
    reasoning: str = ""


class ReplyReplaced(RunEvent, frozen=True, tag="reply.replaced", kw_only=True):
    """The reply so far is exactly `text`, its reasoning `reasoning`: text turned out to be reasoning."""

    text: str = ""
    reasoning: str = ""


class Delta(RunEvent, frozen=True, kw_only=True):
    """Base of the events that add to a reply.

    `t`, on some of them, is the time at which the worker wrote the event, in milliseconds since 1970:
    the web process measures delivery times with it.
    """

    text: str
    t: int = 0


class TextDelta(Delta, frozen=True, tag="text.delta"):
    """More of the reply."""


class ReasoningDelta(Delta, frozen=True, tag="reasoning.delta"):
    """More of the model's reasoning."""


class ToolCallDelta(RunEvent, frozen=True, tag="tool.delta", kw_only=True):
    """More of the tool call number `index`; `id` and `name` come with its first piece.

    Only in runs of the API, which no socket follows.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class ToolEvent(RunEvent, frozen=True, kw_only=True):
    """Base of the events of a call of a tool that the server makes; `call` is its number in the run."""

    call: str


class ToolStarted(ToolEvent, frozen=True, tag="tool.started", kw_only=True):
    """A call has begun. `progress` is a line such as "Searching documents…", `at` its place in the text.

    `input` are its arguments; `at` counts characters of the text before it; the line itself comes as a block (`reply.blocks`).
    """

    name: str
    title: str
    progress: str
    input: Any = None
    at: int = 0


class ToolWaiting(ToolEvent, frozen=True, tag="tool.waiting", kw_only=True):
    """A call waits for its user's answer, `tool.decide`, until a time (ISO 8601). `html` is its card."""

    name: str
    title: str
    input: Any = None
    until: str
    at: int = 0
    html: str = ""


class ToolDone(ToolEvent, frozen=True, tag="tool.done", kw_only=True):
    """A call has ended. `status` is "done", "failed", "refused" or "expired", `summary` a line for people.

    `result` is the beginning of what the model receives.
    """

    status: str
    summary: str
    result: str = ""
    seconds: float | None = None


class ReplyBlocks(RunEvent, frozen=True, tag="reply.blocks", kw_only=True):
    """The HTML of blocks of the reply, from number `first` on; the reply's text is sent before it.

    All blocks so far show the first `end` UTF-16 code units of the text. A block that begins with `<li` or
    `<tr` belongs to the list or the table before it.
    """

    first: int
    blocks: list[str]
    end: int


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of a run. `estimated`: counted here, as the provider sent no usage."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False


class RunEnd(RunEvent, frozen=True, kw_only=True):
    """Base of the three ends of a run. `text` is the whole reply, `html` its rendered message.

    `cost` is the charge to the user in micro-credits; left out where billing is switched off.
    `answered_by` is the name of the fallback model that answered instead of the chat's own. `streamed` are
    the parts of `html`, as beginning and end in characters, that the events before it contain.
    """

    conversation: UUID
    reply: UUID
    text: str
    html: str
    usage: Usage | None = None
    cost: int | None = None
    answered_by: str = ""
    streamed: list[tuple[int, int]] = []


class RunDone(RunEnd, frozen=True, tag="run.done", kw_only=True):
    finish_reason: str


class RunStopped(RunEnd, frozen=True, tag="run.stopped", kw_only=True):
    pass


class RunFailed(RunEnd, frozen=True, tag="run.failed", kw_only=True):
    code: str
    message: str


class ConversationUpdated(ServerEvent, frozen=True, tag="conversation.updated", kw_only=True):
    """A conversation of the user is new, or its title, place or state in the lists has changed."""

    conversation: UUID
    title: str
    url: str
    updated_at: str
    active: bool = False
    deleted: bool = False
    restored: bool = False
    pinned: bool = False
    archived: bool = False
    unread: bool = False
    project: UUID | None = None


class ProjectUpdated(ServerEvent, frozen=True, tag="project.updated", kw_only=True):
    """A project of the user is new, was renamed, deleted or restored.

    A deleted one has no conversations any longer, and a restored one has them again.
    """

    project: UUID
    name: str
    url: str
    deleted: bool = False
    restored: bool = False


class AnnouncementsChanged(ServerEvent, frozen=True, tag="announcements.changed"):
    """An announcement began, changed, ended or was closed: the page fetches the user's announcements."""


class FeedbackChanged(ServerEvent, frozen=True, tag="feedback.changed", kw_only=True):
    """The user's rating of a reply: "good", "bad" or, without one, empty; `html` are its buttons."""

    message: UUID
    rating: str
    html: str


class TransferUpdated(ServerEvent, frozen=True, tag="transfer.updated", kw_only=True):
    """The progress or the end of an import (`kind` "import") or an export of all chats ("export").

    `status` is "queued", "running", "done", "failed" or "stopped".
    """

    kind: str
    id: UUID
    status: str
    percent: int


class DocumentUpdated(ServerEvent, frozen=True, tag="document.updated", kw_only=True):
    """The state of a document of the user: its upload, the progress of reading or indexing it, its end or deletion.

    `status` is "uploaded", "parsing", "ready" or "failed", then with the code of a `reason`; `index_status` is
    "none", "queued", "indexing", "ready" or "failed".
    """

    document: UUID
    name: str
    url: str
    status: str
    percent: int
    reason: str
    index_status: str
    deleted: bool


class InsightUpdated(ServerEvent, frozen=True, tag="insight.updated", kw_only=True):
    """The state of a job of insights into a document: how many of its `total` are done, and how many failed.

    `status` is "active", "done", "partial", "failed" or "stopped".
    """

    job: UUID
    document: UUID
    status: str
    done: int
    failed: int
    total: int


class ShareEnded(ServerEvent, frozen=True, tag="share.ended", kw_only=True):
    """A conversation is no longer shared with the user."""

    conversation: UUID


class BranchSelected(ServerEvent, frozen=True, tag="branch.selected", kw_only=True):
    """The user chose another branch, that of `message`; the conversation now ends with `leaf`."""

    conversation: UUID
    message: UUID
    leaf: UUID


class NextUpdated(ServerEvent, frozen=True, tag="next.updated", kw_only=True):
    """The message that is sent when the present reply has ended; without `text` there is none.

    A `paused` one waits for its user: `code` and `message` are the reason, as of one that is tried again later.
    `client_id` names the request that is answered. `taken` is the text that `next.edit` took back. `attachments`
    are its files, or those that were taken back.
    """

    conversation: UUID
    client_id: str = ""
    text: str = ""
    attachments: list[UUID] = []
    paused: bool = False
    code: str = ""
    message: str = ""
    taken: str | UnsetType = UNSET


class DraftUpdated(ServerEvent, frozen=True, tag="draft.updated", kw_only=True):
    """The draft of a conversation, or of a new chat, which was typed `age` milliseconds ago."""

    conversation: UUID | None = None
    text: str = ""
    age: int = 0


class InstructionsChanged(ServerEvent, frozen=True, tag="instructions.changed", kw_only=True):
    """The user changed the instructions of a conversation, its system prompt."""

    conversation: UUID
    system_prompt: str


class Balance(ServerEvent, frozen=True, tag="balance", kw_only=True):
    """The user's credits changed. Amounts are micro-credits; `shown` is `available` as pages write it.

    `low` is "", "low", or "empty" when the balance does not even cover a typical message.
    """

    balance: int
    held: int
    available: int
    shown: str
    low: str = ""


class SettingsChanged(ServerEvent, frozen=True, tag="settings.changed", kw_only=True):
    """The user changed settings, on this device or another one."""

    theme: str
    text_size: str
    single_keys: bool


class Header(Struct, frozen=True):
    """The fields by which followers order an event, without decoding the rest."""

    type: str
    run: UUID | None = None
    attempt: int = 0
    seq: int = 0
    t: int = 0


_header = msgspec.json.Decoder(Header)

TERMINAL_TYPES = frozenset({"run.done", "run.stopped", "run.failed"})


def header(data: bytes) -> Header:
    """Decode the header of an encoded event."""
    return _header.decode(data)


def shortened(data: bytes) -> bytes:
    """Return the end of a run without the text and the HTML that the events before it contain."""
    event = msgspec.json.decode(data)
    streamed = event.pop("streamed", None)
    if not streamed:
        return data
    html = event.pop("html")
    del event["text"]
    ends = [0, *(end for _, end in streamed)]
    begins = [*(begin for begin, _ in streamed), len(html)]
    event["html"] = "".join(html[end:begin] for end, begin in zip(ends, begins, strict=True))
    return msgspec.json.encode(event)


# The fields of a run's events that a reader by share receives, besides those of `Header`; empty texts are in
# place of others. No cost, no usage, no reasoning (it may quote instructions), and no error of the owner.
READER_FIELDS: dict[str, set[str]] = {
    "run.started": set(),
    "run.restarted": {"text"},
    "reply.replaced": {"text"},
    "text.delta": {"text"},
    "reasoning.delta": set(),
    "reply.blocks": {"first", "blocks", "end"},
    "tool.started": {"call", "name", "title", "progress", "at"},
    "tool.waiting": {"call", "name", "title", "until", "at"},
    "tool.done": {"call", "status", "summary"},
    "run.done": {"conversation", "reply", "finish_reason"},
    "run.stopped": {"conversation", "reply"},
    "run.failed": {"conversation", "reply"},
}
EMPTY_FOR_READER = {
    "reasoning.delta": {"text": ""},
    "run.done": {"text": "", "html": ""},
    "run.stopped": {"text": "", "html": ""},
    "run.failed": {"text": "", "html": "", "code": "run_failed", "message": ""},
}


def for_reader(data: bytes) -> bytes | None:
    """Return an event of a run as a reader by share receives it; None for one that is for its owner alone."""
    event = msgspec.json.decode(data)
    type = event["type"]
    if type not in READER_FIELDS:
        return None
    kept = {"type", "run", "attempt", "seq", "t"} | READER_FIELDS[type]
    shown = {name: value for name, value in event.items() if name in kept}
    return msgspec.json.encode(shown | EMPTY_FOR_READER.get(type, {}))


def first_seq(attempt: int) -> int:
    """Return the number of the first event of an attempt (attempts count from 1)."""
    return (attempt - 1) * SEQS_PER_ATTEMPT + 1
