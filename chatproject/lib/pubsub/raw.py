"""Raw channels: ready-made bytes on Redis channels of their own, in one event loop.

Each event loop has, for each Redis host, one connection that publishes and one that subscribes::

    publish ───────────► Publisher  ─► Connection ─► Redis   one write per loop turn
    attached callbacks ◄ Subscriber ◄─ Connection ◄─ Redis   one dict lookup per message
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from chatproject.lib import metrics
from chatproject.lib.pubsub.hosts import make_pool
from chatproject.lib.redis.connection import Connection
from chatproject.lib.redis.pipeline import pack

logger = logging.getLogger(__name__)

# Seconds.
CONNECT_TIMEOUT = 3.0  # for connecting, TLS, AUTH and asking Sentinel together
HEALTH_CHECK_INTERVAL = 2.5  # between PINGs
ATTACH_TIMEOUT = 2.5  # for Redis to confirm a subscription; less than that of any caller
CLOSE_TIMEOUT = 1.0  # in which a closing publisher writes what is still waiting
FIRST_DELAY, MAX_DELAY = 0.05, 1.0  # between attempts to connect

FULL = "Too much is waiting for Redis already."


class DropCount:
    """A count of published messages that were dropped, logged at most once per second; thread-safe."""

    def __init__(self) -> None:
        self.total = 0
        self._logged = 0
        self._next_log = 0.0
        self._lock = threading.Lock()

    def add(self, count: int, reason: object) -> None:
        metrics.EVENTS_DROPPED.inc(count)
        with self._lock:
            self.total += count
            now = time.monotonic()
            if now < self._next_log:
                return
            fresh, self._logged = self.total - self._logged, self.total
            self._next_log = now + 1.0
        message = "Dropped %d published messages (%d in all): %.200s"
        logger.warning(message, fresh, self.total, reason)


class Link(ABC):
    """Keeps a connection to a host for as long as it is needed, with pauses between attempts.

    There always is a connection to write to. One that is not open yet collects commands; they all
    fail when it cannot be opened, and a new connection takes its place.
    """

    def __init__(self, options: dict[str, Any], dropped: DropCount) -> None:
        self._pool = make_pool(options)
        self._dropped = dropped
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self._connection = self.new_connection()

    @abstractmethod
    def is_needed(self) -> bool:
        """Whether there is a reason to be connected."""

    def deliver(self, channel: bytes, data: bytes) -> None:
        """Pass on a published message; only a link that subscribes receives any."""
        raise NotImplementedError

    def new_connection(self) -> Connection:
        """Return a connection that is not open yet."""
        return Connection(
            on_message=self.deliver,
            on_drop=self._dropped.add,
            on_end=self.ended,
            health_check_interval=HEALTH_CHECK_INTERVAL,
        )

    def start(self) -> None:
        """Connect, if that is not under way already."""
        if self._task is None or self._task.done():
            # Callbacks run in this task's context, which must not be that of one user's request.
            self._task = asyncio.get_running_loop().create_task(
                self._run(), context=contextvars.Context()
            )

    async def _run(self) -> None:
        while self.is_needed():
            connection = self._connection
            # It may be open: a closing loop cancels this task before it flushes the layer.
            if not connection.is_open:
                with contextlib.suppress(RedisError):  # `ended` was called with it
                    await connection.open(
                        self._pool.make_connection(),  # type: ignore[no-untyped-call]
                        timeout=CONNECT_TIMEOUT,
                    )
            if connection.is_open:
                self._failures = 0
                await connection.ended.wait()
            # Random, so that the processes do not all connect at once.
            longest = min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(self._failures, 10))
            await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311  not a secret

    def ended(self, error: Exception, was_open: bool) -> None:
        """Replace the connection, which was lost or could not be opened."""
        if was_open:
            logger.warning("Lost a connection to Redis: %.200s", error)
        else:
            if self._failures == 0:
                logger.warning("Cannot connect to Redis: %.200s", error)
            self._failures += 1
        self._connection = self.new_connection()

    async def close(self) -> None:
        """Close the connection; the link can be started again."""
        connection = self._connection
        self._connection = self.new_connection()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await connection.close()
        if isinstance(self._pool, SentinelConnectionPool):
            for client in self._pool.sentinel_manager.sentinels:
                await client.aclose()


class Publisher(Link):
    """Publishes on one host; connected from the first message on."""

    def is_needed(self) -> bool:
        return self._connection.has_unanswered

    def publish(self, channel: str, data: bytes) -> None:
        """Write a message in this turn's batch, or drop and count it when too much waits."""
        connection = self._connection
        if connection.is_full:
            self._dropped.add(1, FULL)
        else:
            connection.post(pack("PUBLISH", channel, data))
            self.start()

    async def close(self) -> None:
        if self._connection.has_unanswered:
            barrier = self._connection.request(pack("PING"))
            self.start()
            await asyncio.wait([barrier], timeout=CLOSE_TIMEOUT)
        await super().close()


class Subscriber(Link):
    """Subscribes on one host and calls the attached callbacks; connected while there are any.

    Redis answers in the order of the commands. So a channel that is left and joined again before
    the answers are in has a new `_Subscription`, confirmed by the answer to its own SUBSCRIBE.
    """

    def __init__(self, options: dict[str, Any], dropped: DropCount) -> None:
        super().__init__(options, dropped)
        self._subscriptions: dict[bytes, _Subscription] = {}
        self._was_lost = False

    def is_needed(self) -> bool:
        return bool(self._subscriptions)

    async def attach(
        self,
        channel: str,
        callback: Callable[[bytes], None],
        on_reconnect: Callable[[], None] | None,
    ) -> Attachment:
        """Pass every message of the channel to the callback until the attachment is detached.

        Returns when Redis has confirmed the subscription. Raises redis.exceptions.RedisError.
        """
        name = channel.encode()
        subscription = self._subscriptions.get(name)
        if subscription is None:
            if self._connection.is_full:
                raise RedisConnectionError(FULL)
            subscription = _Subscription(self._connection.request(pack("SUBSCRIBE", name)))
            self._subscriptions[name] = subscription
        self.start()
        attachment = Attachment(self, name)
        subscription.callbacks[attachment] = callback
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT):
                # Shielded, since other attachments wait for it too.
                (answer,) = await asyncio.shield(subscription.confirmed)
            if isinstance(answer, Exception):
                raise answer
        except TimeoutError:
            self.detach(attachment, name)
            raise RedisTimeoutError(
                f"Redis did not confirm a subscription within {ATTACH_TIMEOUT:g} s."
            ) from None
        except BaseException:
            self.detach(attachment, name)
            raise
        attachment.on_reconnect = on_reconnect
        return attachment

    def detach(self, attachment: Attachment, name: bytes) -> None:
        """End an attachment; without effect when it has ended before."""
        subscription = self._subscriptions.get(name)
        if subscription is None or subscription.callbacks.pop(attachment, None) is None:
            return
        attachment.on_reconnect = None
        if not subscription.callbacks:
            del self._subscriptions[name]
            self._connection.request(pack("UNSUBSCRIBE", name))

    def deliver(self, channel: bytes, data: bytes) -> None:
        subscription = self._subscriptions.get(channel)
        if subscription is None:
            return  # left while the message was on its way
        for callback in tuple(subscription.callbacks.values()):
            try:
                callback(data)
            except Exception:
                logger.exception("A callback on the Redis channel %r failed", channel)

    def ended(self, error: Exception, was_open: bool) -> None:
        super().ended(error, was_open)
        self._was_lost = self._was_lost or was_open
        for name, subscription in self._subscriptions.items():
            subscription.confirmed = self._connection.request(pack("SUBSCRIBE", name))
        if self._subscriptions and self._was_lost:
            # Answered after all the subscriptions.
            self._connection.request(pack("PING")).add_done_callback(self._restored)

    def _restored(self, barrier: asyncio.Future[list[Any]]) -> None:
        if barrier.exception() is not None:
            return  # this connection was lost as well
        self._was_lost = False
        logger.info("Subscribed to everything again")
        attachments: list[Attachment] = []
        for name, subscription in self._subscriptions.items():
            attachments += subscription.callbacks
            if subscription.confirmed.done():
                (answer,) = subscription.confirmed.result()
                if isinstance(answer, Exception):
                    logger.error("Redis refuses the subscription to %r: %s", name, answer)
        for attachment in attachments:
            if attachment.on_reconnect is not None:
                try:
                    attachment.on_reconnect()
                except Exception:
                    logger.exception("A callback for a reconnect failed")

    async def close(self) -> None:
        self._subscriptions = {}
        await super().close()


class Attachment:
    """One callback attached to a raw channel; made by `PubSubChannelLayer.attach`."""

    def __init__(self, subscriber: Subscriber, name: bytes) -> None:
        self.on_reconnect: Callable[[], None] | None = None
        self._subscriber = subscriber
        self._name = name

    async def detach(self) -> None:
        """Never call the callbacks again; without effect when it has ended before."""
        self._subscriber.detach(self, self._name)


@dataclass(eq=False, slots=True)
class _Subscription:
    """A Redis channel: the answer to its SUBSCRIBE, and the callbacks attached to it."""

    confirmed: asyncio.Future[list[Any]]
    callbacks: dict[Attachment, Callable[[bytes], None]] = field(default_factory=dict)
