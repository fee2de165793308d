"""The socket of a browser tab: /ws/v1/. docs/protocol.md is the reference of what it speaks.

What is for a socket is sent in the moment in which it comes, as long as nothing waits for the
socket. What must wait (for a client that reads slowly, for a log to be read) is sent by one task,
the pump, which lives until nothing waits any more: first what is for the user, then what the
followed runs have. So order is kept without locks, and a slow client makes only its own pump wait.
What is per connection dies with the consumer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import redis
from channels.consumer import get_handler_name
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from accounts.sockets import TRY_AGAIN_LATER
from chat import protocol
from chat.errors import ChatError
from chat.runs import describe, start, wait_estimate
from chat.runs.stop import stop_run
from chat.streaming import groups
from chat.web.run_follower import Follower, ReplayReader
from chatproject.lib import channel_layer, db, web

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser

    from accounts.models import User

logger = logging.getLogger(__name__)

# Close codes. 1009 and 1003 are the protocol's own (RFC 6455), 4401 is of the application.
UNSUPPORTED_DATA = 1003
TOO_BIG = 1009
NOT_SIGNED_IN = 4401
NOT_THERE = 4404
INTERNAL_ERROR = 1011

MAX_FOLLOWED = 100  # runs that one socket follows at a time
MAX_ANNOUNCED = 1_000  # runs of which one socket remembers that it told of them

# What may wait for a slow client of what is for the user; then it is sent away.
MAX_OUTBOX = 500  # frames
MAX_OUTBOX_BYTES = 1024 * 1024

# Seconds after which a follower that heard nothing asks the row again: the last net, for an event
# that was published while a host of the channel layer was away. It takes up to twice as long.
RECHECK = 20.0

UNREACHABLE = (redis.RedisError, *db.UNREACHABLE, OSError)


class ChatConsumer(AsyncWebsocketConsumer):  # type: ignore[misc, unused-ignore] # Channels is untyped
    # No layer of Channels' own: each consumer would get a Redis channel that nothing here uses.
    channel_layer_alias = "none"

    user: User

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.queued_bytes = 0  # of the followers, which count them
        self._is_open = False
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._is_too_slow = False
        self._followed: dict[UUID, Follower] = {}
        self._due: dict[Follower, None] = {}  # those that have something to send, in order
        self._announced: dict[UUID, None] = {}
        self._pump: asyncio.Task[None] | None = None
        self._recheck: asyncio.TimerHandle | None = None
        self._attachment: channel_layer.Attachment | None = None
        self._text_frames: web.TextFrames | None = None

    async def dispatch(self, message: Any) -> None:
        # Channels' own goes through a thread first, for each frame, to close the connections to the
        # database that are this thread's. Here lib.db alone uses the database.
        await getattr(self, get_handler_name(message))(message)

    async def websocket_disconnect(self, message: Any) -> None:
        # For the same reason.
        await self.disconnect(message["code"])
        raise StopConsumer

    # --- Connection ---------------------------------------------------------------------------

    async def connect(self) -> None:
        await self.accept()
        extensions = cast("dict[str, Any]", self.scope.get("extensions") or {})
        self._text_frames = extensions.get(web.TEXT_FRAMES)
        user = cast("User | AnonymousUser", self.scope["user"])
        if not user.is_authenticated:
            await self._send_away(NOT_SIGNED_IN, ChatError("not_signed_in"))
            return
        self.user = user
        try:
            self._attachment = await channel_layer.get_layer().attach(
                groups.user_group(user.pk), self._receive_for_user
            )
        except redis.RedisError:
            logger.warning("a socket was turned away: Redis is away")
            await self._send_away(TRY_AGAIN_LATER, ChatError("unavailable"))
            return
        self._outbox.appendleft(protocol.Ready(user=user.pk).encode())
        self._is_open = True
        self._start_pump()

    async def disconnect(self, code: int) -> None:
        self._is_open = False
        if self._recheck is not None:
            self._recheck.cancel()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
        for follower in self._followed.values():
            await follower.leave()
        self._followed.clear()
        self._due.clear()
        if self._attachment is not None:
            await self._attachment.detach()

    async def _send_away(self, code: int, error: ChatError | None = None) -> None:
        """Close the socket; `error` is its last frame."""
        self._is_open = False
        if error is not None:
            self._tell(error, ref=None)
            await self._flush_outbox()
        await self.close(code)

    # --- From the client ----------------------------------------------------------------------

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if not self._is_open:
            return  # it is being closed
        if text_data is None:
            await self._send_away(UNSUPPORTED_DATA)
            return
        if len(text_data) > protocol.MAX_FRAME_BYTES or (
            len(text_data.encode()) > protocol.MAX_FRAME_BYTES
        ):
            await self._send_away(TOO_BIG)
            return
        try:
            event = protocol.decode(text_data)
        except protocol.NotJSON:
            await self._send_away(UNSUPPORTED_DATA, ChatError("bad_json"))
            return
        except ChatError as error:
            self._tell(error, ref=protocol.ref_of(text_data))
            return
        try:
            await self._handle(event)
        except ChatError as error:
            self._tell(error, ref=event.ref)
        except UNREACHABLE:
            logger.warning("%s was refused", event.__struct_config__.tag, exc_info=True)
            self._tell(
                ChatError("unavailable", retry_after=wait_estimate.RETRY_AFTER), ref=event.ref
            )
        except Exception:
            # The socket outlives a fault of ours; the user is told, the log has the rest.
            logger.exception("%s failed", event.__struct_config__.tag)
            self._tell(ChatError("internal"), ref=event.ref)

    async def _handle(self, event: protocol.ClientEvent) -> None:
        match event:
            case protocol.ChatSend():
                started = await db.run(
                    start.send,
                    user=self.user,
                    text=event.text,
                    client_id=event.client_id,
                    conversation_id=event.conversation,
                    parent_id=event.parent,
                )
                await self._follow_started(started)
            case protocol.RunRegenerate():
                started = await db.run(
                    start.regenerate,
                    user=self.user,
                    message_id=event.message,
                    client_id=event.client_id,
                )
                await self._follow_started(started)
            case protocol.MessageEdit():
                started = await db.run(
                    start.edit,
                    user=self.user,
                    message_id=event.message,
                    text=event.text,
                    client_id=event.client_id,
                )
                await self._follow_started(started)
            case protocol.RunStop():
                await db.run(stop_run, user=self.user, run_id=event.run)
            case protocol.Resume():
                queued = await _archive().ask(
                    describe.queue_status, user=self.user, run_id=event.run
                )
                if queued is not None:
                    self._put(queued.encode())
                await self._follow(event.run, event.after)
            case protocol.Ping():
                self._put(protocol.Pong().encode())

    async def _follow_started(self, started: describe.Started) -> None:
        run_id = started.run.id
        if not (started.is_new and run_id in self._announced):
            self._remember(run_id)
            self._put(started.event.encode())
        await self._follow(run_id, 0, is_new=started.is_new)

    async def _follow(self, run_id: UUID, after: int, *, is_new: bool = False) -> None:
        follower = self._followed.get(run_id)
        if follower is not None:
            follower.rewind(after)
            return
        if len(self._followed) >= MAX_FOLLOWED:
            raise ChatError("busy")
        follower = Follower(run_id, after, archive=_archive(), reader=self, is_new=is_new)
        # Known before it joins: a second frame for the same run must find it.
        self._followed[run_id] = follower
        try:
            await follower.join()
        except BaseException:
            del self._followed[run_id]
            self._due.pop(follower, None)
            raise
        self._recheck_later()

    def _recheck_later(self) -> None:
        if self._recheck is None:
            # Spread, as after a restart all sockets begin to follow in the same moment.
            delay = RECHECK * random.uniform(0.75, 1.25)  # noqa: S311  not a secret
            self._recheck = asyncio.get_running_loop().call_later(delay, self._recheck_all)

    def _recheck_all(self) -> None:
        self._recheck = None
        for follower in self._followed.values():
            follower.recheck()
        if self._followed:
            self._recheck_later()

    def _remember(self, run_id: UUID) -> None:
        self._announced[run_id] = None
        if len(self._announced) > MAX_ANNOUNCED:
            del self._announced[next(iter(self._announced))]

    # --- To the client ------------------------------------------------------------------------

    def _receive_for_user(self, data: bytes) -> None:
        header = protocol.header(data)
        if header.type == "run.queued" and header.run is not None:
            if header.run in self._announced:
                return  # this socket asked for the run, and was told first
            self._remember(header.run)
        self._put(data)

    def _tell(self, error: ChatError, *, ref: str | None) -> None:
        self._put(
            protocol.Error(
                code=error.code,
                message=error.message,
                ref=ref,
                credits=error.credits,
                retry_after=error.retry_after,
            ).encode()
        )

    def _put(self, data: bytes) -> None:
        """Send what is for the user, when the socket takes it."""
        if self._is_too_slow or (self._is_open and self.send_now(data)):
            return
        self._outbox.append(data)
        self._outbox_bytes += len(data)
        if len(self._outbox) > MAX_OUTBOX or self._outbox_bytes > MAX_OUTBOX_BYTES:
            self._is_too_slow = True
            self._clear_outbox()
        self._start_pump()

    def _clear_outbox(self) -> None:
        self._outbox.clear()
        self._outbox_bytes = 0

    def send_now(self, text: bytes) -> bool:
        """Send at once if nothing at all waits for the socket; False when something does."""
        frames = self._text_frames
        if frames is None or self._pump is not None or frames.is_full:
            return False
        frames.write((text,))
        return True

    def serve_soon(self, follower: Follower) -> None:
        """Have the pump serve a follower that has something to send."""
        self._due[follower] = None
        self._start_pump()

    def _start_pump(self) -> None:
        if self._pump is None and self._is_open:
            self._pump = asyncio.create_task(self._run_pump())

    async def _run_pump(self) -> None:
        while self._is_open and (self._is_too_slow or self._outbox or self._due):
            try:
                await self._pump_once()
            except UNREACHABLE as error:
                logger.warning("a socket waits for Redis or the database: %s", error)
                await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311  not a secret
            except Exception:
                logger.exception("a socket's pump failed")
                await self._send_away(INTERNAL_ERROR)
        self._pump = None

    async def _pump_once(self) -> None:
        if self._is_too_slow:
            await self._send_away(TRY_AGAIN_LATER)
            return
        await self._flush_outbox()
        if self._due:
            follower = next(iter(self._due))
            del self._due[follower]
            try:
                await follower.serve(self._send)
            except UNREACHABLE:
                follower.fall_behind()
                raise
            if follower.has_ended:
                await self._leave(follower)

    async def _leave(self, follower: Follower) -> None:
        await follower.leave()
        del self._followed[follower.run_id]
        self._due.pop(follower, None)

    async def _flush_outbox(self) -> None:
        while self._outbox:
            texts = tuple(self._outbox)
            self._clear_outbox()
            await self._send(texts)

    async def _send(self, texts: Sequence[bytes]) -> None:
        """Send each text in a frame of its own; return when the socket takes more."""
        frames = self._text_frames
        if frames is None:
            for text in texts:
                await self.send(text_data=text.decode())
        else:
            frames.write(texts)
            if frames.is_full:
                await frames.drain()


_archives: dict[asyncio.AbstractEventLoop, ReplayReader] = {}


def _archive() -> ReplayReader:
    """What all sockets of the running event loop share."""
    loop = asyncio.get_running_loop()
    if loop not in _archives:
        _archives[loop] = ReplayReader()
    return _archives[loop]


async def close_clients() -> None:
    """Close what the sockets of the running event loop shared, before the loop ends."""
    archive = _archives.pop(asyncio.get_running_loop(), None)
    if archive is not None:
        await archive.close()


class UnknownPathConsumer(AsyncWebsocketConsumer):  # type: ignore[misc, unused-ignore] # Channels is untyped
    """Answers every other path, also those of a later version of the protocol."""

    channel_layer_alias = "none"

    async def connect(self) -> None:
        await self.accept()
        await self.close(NOT_THERE)
