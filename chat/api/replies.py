"""Following the run of a call in the web process: the events of its log, as a socket follows them.

No thread and no connection to the database belongs to a call while it waits. `Following` has a follower of its own
(chat/web/run_follower.py), whose events it hands to a `Reply`, and stops the run when its client has hung up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from accounts.models import User
from chat import errors, protocol
from chat.api.errors import ApiError, of_run, stopped
from chat.errors import ChatError
from chat.models import MessagePart, Run
from chat.runs.stop import stop_interrupted, stop_run
from chat.web.outgoing import Outgoing
from chat.web.run_follower import Follower
from chatproject.lib import db
from chatproject.lib.server.asgi_types import Message, Receive

logger = logging.getLogger(__name__)

RECHECK = 5.0  # seconds, as of sockets: chat/web/consumer.py
STOP_TRIES = 5
STOP_PAUSE = 2.0  # seconds between two tries to stop a run

INTERRUPTED = (
    "The reply was interrupted on our side and cannot be continued. Send the request again."
)


class Event(msgspec.Struct):
    """The fields of events that a reply is made of."""

    type: str
    attempt: int = 0
    seq: int = 0
    text: str = ""
    reasoning: str = ""
    index: int = 0
    id: str = ""
    name: str = ""
    arguments: str = ""
    usage: protocol.Usage | None = None
    cost: int | None = None
    finish_reason: str = ""
    code: str = ""
    message: str = ""


decode = msgspec.json.Decoder(Event).decode


@dataclass(slots=True)
class ToolCall:
    """A tool call so far."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """More of a reply: of its text, its reasoning, or the tool call number `index`."""

    text: str = ""
    reasoning: str = ""
    index: int | None = None
    call: ToolCall | None = None


@dataclass(slots=True)
class Reply:
    """The reply to a call, from the events of its run.

    `end` is the last event. `is_whole` unless events are missing before it, because Redis has lost them. A reply
    that is `streamed` was delivered as it came, and cannot be taken back.
    """

    streamed: bool
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, ToolCall] = field(default_factory=dict)
    end: Event | None = None
    is_whole: bool = True
    is_replaced: bool = False  # delivered text turned out to be reasoning
    _seq: int = 0

    def take(self, event: Event) -> Piece | None:
        """Add an event; return what it adds to the reply. Raises ApiError for a reply that begins anew."""
        kind, last, self._seq = event.type, self._seq, event.seq or self._seq
        if kind == "text.delta":
            self.text.append(event.text)
            return Piece(text=event.text)
        if kind == "reasoning.delta":
            self.reasoning.append(event.text)
            return Piece(reasoning=event.text)
        if kind == "tool.delta":
            call = self.calls.setdefault(event.index, ToolCall())
            call.id, call.name = call.id or event.id, call.name or event.name
            call.arguments += event.arguments
            return Piece(index=event.index, call=ToolCall(event.id, event.name, event.arguments))
        if kind == "run.restarted":
            return self._restart(event)
        if kind == "reply.replaced":
            self.is_replaced = self.streamed
            if not self.streamed:
                self.text, self.reasoning = [event.text], [event.reasoning]
        elif kind in protocol.TERMINAL_TYPES:
            self.is_whole = event.seq == last + 1
            self.end = event
        return None

    def _restart(self, event: Event) -> Piece | None:
        """Go on with another attempt."""
        before = "".join(self.text)
        if not self.streamed:
            self.text, self.reasoning, self.calls = [event.text], [event.reasoning], {}
            return None
        if self.calls or not event.text.startswith(before):
            raise ApiError(500, INTERRUPTED, code="interrupted")
        added = event.text[len(before) :]
        self.text.append(added)
        return Piece(text=added) if added else None

    def rest(self) -> str:
        """Return the text that the end has and the events did not, if the delivered text is its beginning."""
        if self.end is None or self.is_replaced:
            return ""
        before = "".join(self.text)
        return self.end.text[len(before) :] if self.end.text.startswith(before) else ""

    @property
    def finish_reason(self) -> str:
        """The finish reason of the reply, one of OpenAI's words."""
        if self.calls:
            return "tool_calls"
        reason = self.end.finish_reason if self.end else ""
        return reason if reason in ("stop", "length", "content_filter") else "stop"


def read_calls(run: Run) -> dict[int, ToolCall]:
    """Return the stored tool calls of a run that has ended."""
    parts = MessagePart.objects.filter(message=run.message_id, kind=MessagePart.Kind.TOOL_CALL)
    return {
        number: ToolCall(part.data["id"], part.data["name"], part.data["arguments"])
        for number, part in enumerate(parts.order_by("position"))
    }


def read_error(run: Run) -> tuple[str, str]:
    """Return the cause of a failed run, and the source of its sentence."""
    return Run.objects.values_list("error_cause", "error_message").get(pk=run.pk)


async def failure(run: Run, end: Event) -> ApiError | None:
    """Return the error that the end of a run is; None for a finished reply."""
    if end.type == "run.done":
        return None
    if end.type == "run.stopped":
        return stopped()
    cause, source = await db.run(read_error, run)
    # The sentence of chats says that the text is saved.
    message = INTERRUPTED if source == errors.INTERRUPTED else end.message
    return of_run(end.code, cause, message)


async def hang_up(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


class RunEvents(Outgoing):
    """In place of the sending side of a socket: hands events to a function instead."""

    def __init__(self, take: Callable[[Sequence[bytes]], Awaitable[None]]) -> None:
        super().__init__(_no_frames, None)
        self._take = take
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def send(self, texts: Sequence[bytes]) -> None:
        """Hand on events, without the greeting of a socket."""
        if found := [text for text in texts if text]:
            await self._take(found)

    async def close(
        self, code: int, error: ChatError | None = None, ref: str | None = None
    ) -> None:
        """End the call: its pump has failed, and has logged the reason."""
        self.stop()
        if not self.broken.done():
            self.broken.set_result(None)


async def _no_frames(message: Message) -> None:
    """Ignore a frame: a call has no socket."""


class ClientGone(Exception):
    """The client of a call has hung up."""


class Following:
    """Follows a new run until its end, for one call.

    `take` gets the events in order and returns True after the last one that it needs. Its exceptions end the call.
    """

    def __init__(
        self, run: Run, user: User, receive: Receive, take: Callable[[Event], Awaitable[bool]]
    ) -> None:
        self._run = run
        self._user = user
        self._receive = receive
        self._take_one = take
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._events = RunEvents(self._take)
        self._follower = Follower(run.pk, 0, followed={}, outgoing=self._events, is_new=True)

    async def wait(
        self, *, seconds: float | None, every: float, tick: Callable[[], Awaitable[None]]
    ) -> None:
        """Return after the last event; the run is stopped if the call ends before.

        `tick` is awaited `every` so many seconds. Raises ClientGone, TimeoutError after `seconds`, and the
        exceptions of `take`.
        """
        loop = asyncio.get_running_loop()
        gone = asyncio.create_task(hang_up(self._receive))
        began = ticked = rechecked = loop.time()
        self._follower.join()
        self._events.open(b"")
        try:
            while not self._done.done():
                waits = {self._done, gone, self._events.broken}
                await asyncio.wait(
                    waits, timeout=min(every, RECHECK), return_when=asyncio.FIRST_COMPLETED
                )
                now = loop.time()
                if self._done.done():
                    break
                if gone.done():
                    raise ClientGone
                if self._events.broken.done():
                    raise ApiError(500, INTERRUPTED, code="internal")
                if seconds is not None and now - began >= seconds:
                    raise TimeoutError
                if now - rechecked >= RECHECK:
                    rechecked = now
                    self._follower.recheck()
                if now - ticked >= every:
                    ticked = now
                    await tick()
            self._done.result()
        except BaseException as error:
            # Also when this process ends: no client will read the reply.
            is_restart = isinstance(error, asyncio.CancelledError)
            stopping = asyncio.create_task(self._stop_run(is_restart=is_restart))
            _stopping.add(stopping)
            stopping.add_done_callback(_stopping.discard)
            with suppress(asyncio.CancelledError):
                await asyncio.shield(stopping)
            raise
        finally:
            gone.cancel()
            self._events.stop()
            await self._follower.leave()

    async def _take(self, texts: Sequence[bytes]) -> None:
        for text in texts:
            if self._done.done():
                return
            try:
                is_last = await self._take_one(decode(text))
            except Exception as error:  # noqa: BLE001 # raised by `wait`
                if not self._done.done():
                    self._done.set_exception(error)
                return
            if is_last and not self._done.done():
                self._done.set_result(None)

    async def _stop_run(self, *, is_restart: bool) -> None:
        """Stop the run, so that it is settled for what its client has received."""
        api = self._run.api
        is_undelivered = is_restart and api is not None and not api["streamed"]
        for turn in range(STOP_TRIES):
            try:
                if is_undelivered:
                    await db.run(stop_interrupted, self._run.pk)
                else:
                    await db.run(stop_run, user=self._user, run_id=self._run.pk)
                return
            except (ChatError, *db.UNREACHABLE) as error:
                logger.warning("run %s of a call is not stopped yet: %s", self._run.pk, error)
                if turn + 1 < STOP_TRIES:
                    await asyncio.sleep(STOP_PAUSE)


_stopping: set[asyncio.Task[None]] = set()
