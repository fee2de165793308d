"""The socket of a browser tab: /ws/v1/. docs/protocol.md is the reference of what it speaks.

Everything that a socket sends goes through one task, its pump: first what is for the user, then what
the followed runs have. So that order is kept without locks, and a slow client makes only its own
pump wait. What is per connection dies with the consumer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import redis
import redis.asyncio
from channels.generic.websocket import AsyncWebsocketConsumer

from chat import events, runs
from chat.events import ChatError
from chat.follow import Follower
from chatproject.lib import channel_layer, db
from chatproject.lib.redis import async_client

if TYPE_CHECKING:
    from django.contrib.auth.models import AnonymousUser

    from accounts.models import User

logger = logging.getLogger(__name__)

# Close codes. 1009 and 1003 are the protocol's own (RFC 6455), 4401 is of the application.
UNSUPPORTED_DATA = 1003
TOO_BIG = 1009
NOT_SIGNED_IN = 4401
NOT_THERE = 4404
TRY_AGAIN_LATER = 1013
INTERNAL_ERROR = 1011

MAX_FOLLOWED = 100  # runs that one socket follows at a time
MAX_OUTBOX = 500  # frames for the user that wait for a slow client; then it is sent away

# Seconds after which a follower that heard nothing asks the row again: the last net, for an event
# that was published while a host of the channel layer was away.
RECHECK = 20.0

UNREACHABLE = (redis.RedisError, *db.UNREACHABLE, OSError)


class ChatConsumer(AsyncWebsocketConsumer):  # type: ignore[misc, unused-ignore] # Channels is untyped
    # No layer of Channels' own: each consumer would get a Redis channel that nothing here uses.
    channel_layer_alias = "none"

    user: User

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._outbox: deque[bytes] = deque()
        self._followed: dict[UUID, Follower] = {}
        self._announced: set[UUID] = set()
        self._wake = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._attachment: channel_layer.Attachment | None = None

    # --- Connection ---------------------------------------------------------------------------

    async def connect(self) -> None:
        await self.accept()
        user = cast("User | AnonymousUser", self.scope["user"])
        if not user.is_authenticated:
            self._tell(ChatError("not_signed_in"), ref=None)
            await self._flush_outbox()
            await self.close(NOT_SIGNED_IN)
            return
        self.user = user
        try:
            self._attachment = await channel_layer.get_layer().attach(
                events.user_group(user.pk), self._receive_for_user
            )
        except redis.RedisError:
            logger.warning("a socket was turned away: Redis is away")
            self._tell(ChatError("unavailable"), ref=None)
            await self._flush_outbox()
            await self.close(TRY_AGAIN_LATER)
            return
        self._put(events.Ready(user=user.pk).encode())
        self._pump = asyncio.create_task(self._run_pump(), name=f"pump of user {user.pk}")

    async def disconnect(self, code: int) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
        for follower in self._followed.values():
            await follower.leave()
        self._followed.clear()
        if self._attachment is not None:
            await self._attachment.detach()

    # --- From the client ----------------------------------------------------------------------

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if self._pump is None:
            return  # it is being closed
        if text_data is None:
            await self.close(UNSUPPORTED_DATA)
            return
        if len(text_data) > events.MAX_FRAME_BYTES or (
            len(text_data.encode()) > events.MAX_FRAME_BYTES
        ):
            await self.close(TOO_BIG)
            return
        try:
            event = events.decode(text_data)
        except events.NotJSON:
            self._tell(ChatError("bad_json"), ref=None)
            await self._flush_outbox()
            await self.close(UNSUPPORTED_DATA)
            return
        except ChatError as error:
            self._tell(error, ref=events.ref_of(text_data))
            return
        try:
            await self._handle(event)
        except ChatError as error:
            self._tell(error, ref=event.ref)
        except UNREACHABLE:
            logger.warning("%s was refused", event.__struct_config__.tag, exc_info=True)
            self._tell(ChatError("unavailable"), ref=event.ref)
        except Exception:
            # The socket outlives a fault of ours; the user is told, the log has the rest.
            logger.exception("%s failed", event.__struct_config__.tag)
            self._tell(ChatError("internal"), ref=event.ref)

    async def _handle(self, event: events.ClientEvent) -> None:
        match event:
            case events.ChatSend():
                started = await db.run(
                    runs.start,
                    user=self.user,
                    text=event.text,
                    client_id=event.client_id,
                    conversation_id=event.conversation,
                    parent_id=event.parent,
                )
                await self._follow_started(started)
            case events.RunRegenerate():
                started = await db.run(
                    runs.regenerate,
                    user=self.user,
                    message_id=event.message,
                    client_id=event.client_id,
                )
                await self._follow_started(started)
            case events.MessageEdit():
                started = await db.run(
                    runs.edit,
                    user=self.user,
                    message_id=event.message,
                    text=event.text,
                    client_id=event.client_id,
                )
                await self._follow_started(started)
            case events.RunStop():
                await db.run(runs.stop, user=self.user, run_id=event.run)
            case events.Resume():
                queued = await db.run(runs.look, user=self.user, run_id=event.run)
                if queued is not None:
                    self._put(queued.encode())
                await self._follow(event.run, event.after)
            case events.Ping():
                self._put(events.Pong().encode())

    async def _follow_started(self, started: runs.Started) -> None:
        run_id = started.run.id
        if not (started.is_new and run_id in self._announced):
            self._announced.add(run_id)
            self._put(started.event.encode())
        await self._follow(run_id, 0)

    async def _follow(self, run_id: UUID, after: int) -> None:
        follower = self._followed.get(run_id)
        if follower is not None:
            follower.rewind(after)
            return
        if len(self._followed) >= MAX_FOLLOWED:
            raise ChatError("busy")
        follower = Follower(run_id, after, client=_redis(), wake=self._wake.set)
        # Known before it joins: a second frame for the same run must find it.
        self._followed[run_id] = follower
        try:
            await follower.join()
        except BaseException:
            del self._followed[run_id]
            raise

    # --- To the client ------------------------------------------------------------------------

    def _receive_for_user(self, data: bytes) -> None:
        header = events.header(data)
        if header.type == "run.queued" and header.run is not None:
            if header.run in self._announced:
                return  # this socket asked for the run, and was told first
            self._announced.add(header.run)
        self._put(data)

    def _tell(self, error: ChatError, *, ref: str | None) -> None:
        self._put(
            events.Error(
                code=error.code, message=error.message, ref=ref, credits=error.credits
            ).encode()
        )

    def _put(self, data: bytes) -> None:
        self._outbox.append(data)
        self._wake.set()

    async def _run_pump(self) -> None:
        while True:
            try:
                async with asyncio.timeout(RECHECK):
                    await self._wake.wait()
            except TimeoutError:
                for follower in self._followed.values():
                    follower.fall_behind()
            self._wake.clear()
            try:
                await self._pump_once()
            except UNREACHABLE as error:
                logger.warning("a socket waits for Redis or the database: %s", error)
                await self._pause()
            except Exception:
                logger.exception("a socket's pump failed")
                await self.close(INTERNAL_ERROR)
                return

    async def _pump_once(self) -> None:
        if len(self._outbox) > MAX_OUTBOX:
            self._outbox.clear()
            await self.close(TRY_AGAIN_LATER)
            return
        await self._flush_outbox()
        for run_id, follower in list(self._followed.items()):
            await follower.serve(self._send)
            if follower.is_over:
                del self._followed[run_id]
                self._announced.discard(run_id)
                await follower.leave()

    async def _pause(self) -> None:
        """Let a moment pass, then have every run's row and log read again."""
        await asyncio.sleep(1)
        for follower in self._followed.values():
            follower.fall_behind()

    async def _flush_outbox(self) -> None:
        while self._outbox:
            await self._send(self._outbox.popleft())

    async def _send(self, data: bytes) -> None:
        await self.send(text_data=data.decode())


_clients: dict[asyncio.AbstractEventLoop, redis.asyncio.Redis] = {}


def _redis() -> redis.asyncio.Redis:
    """The client with which all sockets of this process read logs."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _clients[loop] = async_client()
    return _clients[loop]


async def close_clients() -> None:
    """Close what the sockets of the running event loop shared, before the loop ends."""
    client = _clients.pop(asyncio.get_running_loop(), None)
    if client is not None:
        await client.aclose()


class NoSuchSocket(AsyncWebsocketConsumer):  # type: ignore[misc, unused-ignore] # Channels is untyped
    """Answers every other path, also those of a later version of the protocol."""

    channel_layer_alias = "none"

    async def connect(self) -> None:
        await self.accept()
        await self.close(NOT_THERE)
