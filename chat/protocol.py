"""Every frame on the wire, in both directions.

A frame is one JSON object with a `type`. Clients may send only the fields declared here: `decode`
refuses others, so that a misspelt field is reported instead of ignored. docs/protocol.md is the
reference for readers; a test keeps the two in step.

The events of a run carry `run`, `attempt` and `seq`. `seq` grows by one from event to event; a new
attempt goes on at `first_seq(attempt)`, so that a number never comes back within a run.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from chat.errors import ERRORS, ChatError, Missing

MAX_FRAME_BYTES = 64 * 1024

# Events that one attempt can number. At 100 events a second it lasts for 27 hours.
SEQS_PER_ATTEMPT = 10_000_000


# --- From the client --------------------------------------------------------------------------

# A name that a client gives to what it does, so that doing it again has one effect.
CLIENT_ID = r"^[A-Za-z0-9._:-]{1,64}\Z"
ClientId = Annotated[str, Meta(pattern=CLIENT_ID)]


def check_client_id(client_id: str) -> None:
    """Raise ChatError `bad_json` for a name that `decode` would have refused."""
    if not re.match(CLIENT_ID, client_id):
        raise ChatError("bad_json")


class ClientEvent(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what clients send; `ref` is how an error names it."""

    @property
    def ref(self) -> str | None:
        return None


class ClientAction(ClientEvent, frozen=True, kw_only=True):
    """Base of what starts a run."""

    client_id: ClientId

    @property
    def ref(self) -> str | None:
        return self.client_id


class ChatSend(ClientAction, frozen=True, tag="chat.send", kw_only=True):
    """A message in a conversation; without one it begins a new conversation.

    `parent` is the message that it follows; left out, it follows the end of the conversation.
    """

    text: str
    conversation: UUID | None = None
    parent: UUID | None = None


class RunRegenerate(ClientAction, frozen=True, tag="run.regenerate", kw_only=True):
    """Another reply in the place of `message`, which is kept as a branch."""

    message: UUID


class MessageEdit(ClientAction, frozen=True, tag="message.edit", kw_only=True):
    """Another text in the place of the user's own `message`, which is kept as a branch."""

    message: UUID
    text: str


class RunStop(ClientEvent, frozen=True, tag="run.stop"):
    run: UUID

    @property
    def ref(self) -> str | None:
        return str(self.run)


class Resume(ClientEvent, frozen=True, tag="resume"):
    """Follow a run from the event after number `after` (0: from its beginning)."""

    run: UUID
    after: Annotated[int, Meta(ge=0, le=2**53)] = 0

    @property
    def ref(self) -> str | None:
        return str(self.run)


class Ping(ClientEvent, frozen=True, tag="ping"):
    pass


CLIENT_EVENTS: dict[str, type[ClientEvent]] = {
    str(event.__struct_config__.tag): event
    for event in (ChatSend, RunRegenerate, MessageEdit, RunStop, Resume, Ping)
}


class NotJSON(ValueError):
    """The frame is not JSON at all."""


def decode(frame: str) -> ClientEvent:
    """Read a frame of a client.

    Raises NotJSON when it is not JSON, and ChatError with `unknown_type`, `unknown_field` or
    `bad_json` (a field that is missing or of the wrong form) when it is not one of CLIENT_EVENTS.
    """
    try:
        data = msgspec.json.decode(frame)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise NotJSON(str(error)) from error
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
        raise ChatError("bad_json", f"{ERRORS['bad_json']} ({error})") from error


def ref_of(frame: str) -> str | None:
    """How to name a frame that `decode` refused, if it says: its `client_id` or `run`."""
    try:
        data = msgspec.json.decode(frame)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
    ref = (data.get("client_id") or data.get("run")) if isinstance(data, dict) else None
    return ref[:64] if isinstance(ref, str) else None


# --- From the server --------------------------------------------------------------------------


def _plain(value: object) -> object:
    """Django's templates render to a subclass of str, which the encoder does not know."""
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"{type(value).__name__} does not go over the wire")


class ServerEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what the server sends."""

    encoder: ClassVar[msgspec.json.Encoder] = msgspec.json.Encoder(enc_hook=_plain)

    def encode(self) -> bytes:
        """The frame as it goes to the browser, into the log and over Redis."""
        return self.encoder.encode(self)


class Ready(ServerEvent, frozen=True, tag="ready", kw_only=True):
    """The socket is signed in and hears what concerns its user."""

    user: int


class Pong(ServerEvent, frozen=True, tag="pong"):
    pass


class Error(ServerEvent, frozen=True, tag="error", kw_only=True):
    """An answer to one frame of the client, which `ref` names; nothing was changed by it."""

    code: str
    message: str
    ref: str | None = None
    credits: Missing | None = None
    retry_after: float | None = None


class Rendered(Struct, frozen=True):
    """A message as the page shows it."""

    id: UUID
    html: str


class RunQueued(ServerEvent, frozen=True, tag="run.queued", kw_only=True):
    """A run waits for a worker.

    `sent` is the user's new message, `reply` the empty one that the run will fill; both follow
    `parent`. `position` is the place in line (1: the next), `eta` the expected wait in seconds. A
    run that is `held` back waits for others of its user, and `position` is its place among these.
    `most` is what it may cost at most, in micro-credits; `shortened` tells that the balance lowered
    the reply's cap to `max_tokens`.
    """

    run: UUID
    conversation: UUID
    client_id: str
    position: int
    eta: float | None = None
    held: bool = False
    parent: UUID | None = None
    sent: Rendered | None = None
    reply: Rendered
    most: int = 0
    max_tokens: int | None = None
    shortened: bool = False


class RunWaiting(ServerEvent, frozen=True, tag="run.waiting", kw_only=True):
    """How the line moves for a run that waits; has no number, as it is of the moment.

    `attempt` is the one that the run waits for. `position`, `eta` and `held` are as in
    RunQueued.
    """

    run: UUID
    attempt: int
    position: int
    eta: float | None = None
    held: bool = False


class RunEvent(ServerEvent, frozen=True, kw_only=True):
    """Base of the numbered events of a run."""

    run: UUID
    attempt: int
    seq: int


class RunStarted(RunEvent, frozen=True, tag="run.started"):
    """A worker has the run."""


class RunRestarted(RunEvent, frozen=True, tag="run.restarted", kw_only=True):
    """Another worker has the run: its reply so far is exactly `text`, its reasoning `reasoning`.

    They are empty for a model that begins anew, and what there was for one that can continue.
    """

    text: str = ""
    reasoning: str = ""


class Delta(RunEvent, frozen=True, kw_only=True):
    """Base of what grows a reply.

    `t`, on some of them, is when the worker wrote it, in milliseconds since 1970: the web process
    measures by it how long deliveries take.
    """

    text: str
    t: int = 0


class TextDelta(Delta, frozen=True, tag="text.delta"):
    """More of the reply."""


class ReasoningDelta(Delta, frozen=True, tag="reasoning.delta"):
    """More of what the model thinks aloud."""


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of a run. `estimated`: counted here, as the provider sent none."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False


class RunEnd(RunEvent, frozen=True, kw_only=True):
    """Base of the three ends of a run. `text` is the whole reply, `html` its rendered message.

    `cost` is what the user paid, in micro-credits; left out where billing is switched off.
    """

    conversation: UUID
    reply: UUID
    text: str
    html: str
    usage: Usage | None = None
    cost: int | None = None


class RunDone(RunEnd, frozen=True, tag="run.done", kw_only=True):
    finish_reason: str


class RunStopped(RunEnd, frozen=True, tag="run.stopped", kw_only=True):
    pass


class RunFailed(RunEnd, frozen=True, tag="run.failed", kw_only=True):
    code: str
    message: str


class ConversationUpdated(ServerEvent, frozen=True, tag="conversation.updated", kw_only=True):
    """A conversation of the user changed: it is new, was renamed, moved up or was deleted."""

    conversation: UUID
    title: str
    url: str
    updated_at: str
    active: bool = False
    deleted: bool = False


class Balance(ServerEvent, frozen=True, tag="balance", kw_only=True):
    """The user's credits changed. Amounts are micro-credits; `shown` is how pages write `available`.

    `low` is empty, or `low`, or `empty` when not even a typical message can be paid.
    """

    balance: int
    held: int
    available: int
    shown: str
    low: str = ""


class Header(Struct, frozen=True):
    """The part of an event by which followers sort it, without decoding the rest."""

    type: str
    run: UUID | None = None
    attempt: int = 0
    seq: int = 0
    t: int = 0


_header = msgspec.json.Decoder(Header)

TERMINAL_TYPES = frozenset({"run.done", "run.stopped", "run.failed"})


def header(data: bytes) -> Header:
    """Read the header of an encoded event."""
    return _header.decode(data)


def first_seq(attempt: int) -> int:
    """The number of the first event of an attempt (attempts count from 1)."""
    return (attempt - 1) * SEQS_PER_ATTEMPT + 1


def server_events() -> dict[str, type[ServerEvent]]:
    """All events of the server by type."""
    found: dict[str, type[ServerEvent]] = {}
    waiting: list[Any] = [ServerEvent]
    while waiting:
        event = waiting.pop()
        waiting += event.__subclasses__()
        if event.__struct_config__.tag:
            found[str(event.__struct_config__.tag)] = event
    return found
