"""Following a run for one request, by the same log and in the same way as a socket does (chat/web/run_follower.py).

The response is a stream: while it waits it has no thread and no connection to the database.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from uuid import UUID

from django.utils import timezone

from accounts import sockets
from accounts.api_keys import KeyRefused
from accounts.models import ApiKey
from chat import access, protocol
from chat.api.replies import RECHECK, RunEvents
from chat.api.rest.auth import Sender
from chat.web import socket_limits
from chat.web.run_follower import Follower
from chatproject.lib import db

logger = logging.getLogger(__name__)

LAST = {*protocol.TERMINAL_TYPES, "share.ended"}
COMMENT_EVERY = 15.0  # seconds; proxies end silent connections after a minute
COMMENT = b": waiting\n\n"
BEGIN = b"retry: 1000\n\n"  # milliseconds until an EventSource connects again


class Following:
    """Follows a run for its sender; ends after the last event, and when the key, the session or the share has ended.

    `shared` is the conversation of a sender who is only its reader.
    """

    def __init__(
        self, sender: Sender, run_id: UUID, after: int, shared: UUID | None = None
    ) -> None:
        self._sender = sender
        self._run_id = run_id
        self._after = after
        self._shared = shared
        self._received: asyncio.Queue[Sequence[bytes]] = asyncio.Queue(maxsize=1)
        self._has_lost_access = asyncio.Event()

    async def stream(self, first: Iterable[bytes]) -> AsyncIterator[bytes]:
        """Yield the events as server-sent events: those of `first`, then those of the run."""
        with socket_limits.stream_of(self._sender.user.pk):
            yield BEGIN + b"".join(map(framed, first))
            silent = 0.0
            async with aclosing(self._events()) as found:
                async for texts in found:
                    silent = 0.0 if texts else silent + RECHECK
                    if texts:
                        yield b"".join(map(framed, texts))
                    elif silent >= COMMENT_EVERY:
                        silent = 0.0
                        yield COMMENT

    async def wait(self, seconds: float) -> None:
        """Return when the run has ended, or after some seconds."""

        async def follow() -> None:
            with socket_limits.stream_of(self._sender.user.pk):
                async with aclosing(self._events()) as found:
                    async for _texts in found:
                        """The row has the reply."""

        try:
            async with asyncio.timeout(seconds):
                await follow()
        except TimeoutError:
            return

    async def _events(self) -> AsyncGenerator[Sequence[bytes], None]:
        """Yield events in order, until the last one; nothing (an empty list) after RECHECK without any."""
        outgoing = RunEvents(self._received.put)
        may_read = partial(access.run, self._sender.user, self._run_id)
        follower = Follower(
            self._run_id,
            self._after,
            followed={},
            outgoing=outgoing,
            shared=self._shared,
            may_read=may_read if self._shared else None,
        )
        session = await self._watch()
        try:
            follower.join()
            outgoing.open(b"")
            loop = asyncio.get_running_loop()
            due = loop.time() + RECHECK
            while not self._has_lost_access.is_set() and not outgoing.broken.done():
                texts: Sequence[bytes] = []
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        texts = await self._received.get()
                if loop.time() >= due:  # also while events come
                    due = loop.time() + RECHECK
                    follower.recheck()
                    await self._check_key()
                yield texts
                if texts and protocol.header(texts[-1]).type in LAST:
                    return
        finally:
            outgoing.stop()
            if session is not None:
                sockets.session_watch().remove(session)
            await follower.leave()

    async def _watch(self) -> sockets.SocketSession | None:
        """Watch the session of a page, as that of a socket; an ended one ends the stream."""
        if self._sender.key is not None:
            return None
        session = await db.run(sockets.find_session, self._sender.session)
        if session is None:
            self._has_lost_access.set()
            return None
        sockets.session_watch().add(session, self._lose_access)
        return session

    def _lose_access(self) -> None:
        self._has_lost_access.set()
        with suppress(
            asyncio.QueueFull
        ):  # events that wait for the client will be followed by the end
            self._received.put_nowait([])

    async def _check_key(self) -> None:
        key = self._sender.key
        if key is None:
            return
        try:
            if not await db.run(is_valid, key.pk):
                self._has_lost_access.set()
        except db.UNREACHABLE as error:
            logger.warning("the key of a stream was not checked: %s", error)


def check_sender(sender: Sender) -> None:
    """Check that the key or the session of a sender still holds. Raises KeyRefused."""
    if sender.key is not None and not is_valid(sender.key.pk):
        raise KeyRefused("invalid_api_key")
    if sender.key is None and sockets.find_session(sender.session) is None:
        raise KeyRefused("missing_api_key")


def is_valid(key_id: int) -> bool:
    """Return whether a key is neither revoked nor expired, and its user is active."""
    row = ApiKey.objects.values_list("revoked_at", "expires_at", "user__is_active").get(pk=key_id)
    revoked_at, expires_at, is_active = row
    return revoked_at is None and is_active and (not expires_at or expires_at > timezone.now())


def framed(event: bytes) -> bytes:
    """Return an event as a server-sent event. One without a number, about the queue, has no `id`."""
    seq = protocol.header(event).seq
    return (b"id: %d\n" % seq if seq else b"") + b"data: " + event + b"\n\n"
