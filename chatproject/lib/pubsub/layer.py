"""Channels' layer on Redis publish/subscribe, and a faster path beside it for ready-made bytes.

Each event loop has, for each Redis host, one connection that publishes and one that subscribes::

    group_send, send, publish ─► _Publisher  ─► _Connection ─► Redis   one write per loop turn
    consumers' queues ◄┐
    attached callbacks ◄┴──────  _Subscriber ◄─ _Connection ◄─ Redis   one dict lookup per message

Channels' own API (`send`, `receive`, groups) behaves as in channels-redis. `attach` and `publish`
carry bytes as they are on Redis channels of their own, ``<prefix>:raw:<group>``; no name that
Channels allows has a colon. Publish/subscribe forgets: what must not be lost belongs in a log,
which consumers read after `attach` and again whenever their ``on_reconnect`` is called.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis
import redis
from channels import DEFAULT_CHANNEL_LAYER
from channels.layers import channel_layers
from channels_redis.pubsub import RedisPubSubChannelLayer
from channels_redis.utils import _consistent_hash, _wrap_close, create_pool, decode_hosts
from django.core.exceptions import ImproperlyConfigured
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel

from chatproject.lib.redis.connection import open_transport

logger = logging.getLogger(__name__)

Host = str | tuple[str, int] | dict[str, Any]

CAPACITY = 1_000  # messages that wait in one channel's queue
BUFFER_BYTES = 8 * 2**20  # published bytes that wait for one host
BUFFER_COMMANDS = 50_000  # commands that wait for one host or for its answer
CONNECT_TIMEOUT = 5.0  # seconds for connecting, TLS, AUTH and asking Sentinel together
SENTINEL_TIMEOUT = 1.0  # seconds for one Sentinel, so that the next ones are asked in time
HEALTH_CHECK_INTERVAL = 5.0  # seconds between PINGs
SYNC_TIMEOUT = 5.0  # seconds that synchronous code waits for a host
CLOSE_TIMEOUT = 1.0  # seconds in which a flush lets published data leave
FIRST_DELAY, LONGEST_DELAY = 0.05, 1.0  # seconds between attempts to connect

_MORE = object()  # hiredis: the rest of the reply has not come in yet


class PubSubChannelLayer(RedisPubSubChannelLayer):
    """The channel layer of CHANNEL_LAYERS; `get_layer` returns the project's.

    Options (CONFIG), beside channels-redis's ``symmetric_encryption_keys`` and
    ``serializer_format``:

    ``hosts``: as in channels-redis: URLs (redis, rediss, unix), (host, port) or dicts, also of
    Sentinels. With several hosts each channel and group lives on one of them.
    ``prefix``: separates layers that share a Redis.
    ``on_disconnect``, ``on_reconnect``: type of a message that every channel of this process gets
    when a subscribing connection is lost, and when it has subscribed to everything again.
    ``capacity``: messages that a channel's queue holds. When it is full, the oldest is dropped.
    ``buffer_bytes``: bytes that wait for one host, also those of one turn of the loop. When there
    are more, `send` and `group_send` raise and `publish` drops.
    ``connect_timeout``, ``health_check_interval``: seconds. A host that says nothing at all, not
    even to a PING, is given up after two to three intervals.

    A connection may be idle for ever: redis-py's ``socket_timeout`` counts while connecting only.
    """

    extensions = ["groups", "flush"]

    def __init__(
        self,
        hosts: Sequence[Host] | None = None,
        *,
        prefix: str = "asgi",
        on_disconnect: str | None = None,
        on_reconnect: str | None = None,
        capacity: int = CAPACITY,
        buffer_bytes: int = BUFFER_BYTES,
        connect_timeout: float = CONNECT_TIMEOUT,
        health_check_interval: float = HEALTH_CHECK_INTERVAL,
        symmetric_encryption_keys: Sequence[str] | None = None,
        serializer_format: str = "msgpack",
    ) -> None:
        super().__init__(
            symmetric_encryption_keys=symmetric_encryption_keys, serializer_format=serializer_format
        )
        self.hosts: list[dict[str, Any]] = decode_hosts(hosts)  # type: ignore[no-untyped-call]
        for options in self.hosts:
            _make_connection(_make_pool(options))  # raises here what is wrong with the options
        self.prefix = prefix
        self.on_disconnect = on_disconnect
        self.on_reconnect = on_reconnect
        self.capacity = capacity
        self.buffer_bytes = buffer_bytes
        self.connect_timeout = connect_timeout
        self.health_check_interval = health_check_interval
        self.dropped_from_queues = DropCount("messages of channels that nobody reads fast enough")
        self.dropped_publishes = DropCount("published messages")
        self._sync_clients: list[redis.Redis] = []
        self._sync_lock = threading.Lock()

    def serialize(self, message: Any) -> bytes:
        data: bytes = self._serializer.serialize(message)
        return data

    def deserialize(self, message: bytes) -> Any:
        return self._serializer.deserialize(message)

    async def attach(
        self,
        group: str,
        callback: Callable[[bytes], None],
        on_reconnect: Callable[[], None] | None = None,
    ) -> Attachment:
        """Hand everything published in the group from now on to the callback.

        Returns when Redis has confirmed the subscription, so that a log read afterwards and the
        callback together miss nothing. The callback gets the bytes exactly as published, in the
        event loop, perhaps already before `attach` returns; it must not block. ``on_reconnect``
        is called when a lost connection has subscribed again: what was published meanwhile is in
        the log only. Raises redis.exceptions.RedisError when the host cannot be reached or
        refuses; then nothing stays attached.
        """
        return await self._get_layer().attach(group, callback, on_reconnect)

    def publish(self, group: str, data: bytes) -> None:
        """Hand the bytes to every callback attached to the group, in whatever process.

        From the event loop only (`publish` of this module is for synchronous code). It leaves
        with everything else that is published in the same turn of the loop. Never raises for the
        network's sake: what cannot be delivered is dropped, and counted in ``dropped_publishes``.
        """
        self._get_layer().publish(group, data)

    def publish_sync(self, group: str, data: bytes) -> None:
        """`publish` for synchronous code in any thread: waits for the host, at most a few seconds.

        Drops and counts likewise. Raises RuntimeError in a running event loop, which it would
        block.
        """
        _require_no_loop()
        host, command = self.raw_command(group, data)
        try:
            self._sync_client(host).execute_command(*command)  # type: ignore[no-untyped-call]
        except RedisError as error:
            self.dropped_publishes.add(1, error)

    def publish_all_sync(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """`publish_sync` for pairs of group and bytes, in one pipeline per host."""
        _require_no_loop()
        commands: defaultdict[int, list[tuple[bytes | str, ...]]] = defaultdict(list)
        for group, data in messages:
            host, command = self.raw_command(group, data)
            commands[host].append(command)
        for host, of_host in commands.items():
            pipeline = self._sync_client(host).pipeline(transaction=False)
            for command in of_host:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            try:
                pipeline.execute()
            except RedisError as error:
                self.dropped_publishes.add(len(of_host), error)

    def raw_command(self, group: str, data: bytes) -> tuple[int, tuple[bytes | str, ...]]:
        """What `publish` sends: the index of the host, and the command with its arguments."""
        channel = self.raw_channel(group)
        return self.host_of(channel), ("PUBLISH", channel, data)

    def raw_channel(self, group: str) -> str:
        """The Redis channel that carries the group's bytes."""
        return f"{self.prefix}:raw:{group}"

    def host_of(self, channel: str) -> int:
        """The index of the host that a Redis channel lives on."""
        index: int = _consistent_hash(channel, len(self.hosts))  # type: ignore[no-untyped-call]
        return index

    def _get_layer(self) -> _LoopLayer:
        loop = asyncio.get_running_loop()
        layer: _LoopLayer | None = self._layers.get(loop)
        if layer is None:
            layer = self._layers[loop] = _LoopLayer(self, loop)
            # Closing the loop will flush and forget its layer.
            _wrap_close(self, loop)  # type: ignore[no-untyped-call]
        return layer

    def _sync_client(self, host: int) -> redis.Redis:
        with self._sync_lock:
            if not self._sync_clients:
                self._sync_clients = [_make_sync_client(options) for options in self.hosts]
            return self._sync_clients[host]


def get_layer() -> PubSubChannelLayer:
    """The project's channel layer. Raises ImproperlyConfigured when it is another class."""
    layer = channel_layers[DEFAULT_CHANNEL_LAYER]
    if not isinstance(layer, PubSubChannelLayer):
        raise ImproperlyConfigured(
            f"CHANNEL_LAYERS['{DEFAULT_CHANNEL_LAYER}'] must have the BACKEND"
            f" {PubSubChannelLayer.__module__}.{PubSubChannelLayer.__qualname__}."
        )
    return layer


def publish(group: str, data: bytes) -> None:
    """`PubSubChannelLayer.publish_sync` of the project's layer."""
    get_layer().publish_sync(group, data)


def publish_all(messages: Iterable[tuple[str, bytes]]) -> None:
    """`PubSubChannelLayer.publish_all_sync` of the project's layer."""
    get_layer().publish_all_sync(messages)


def raw_command(group: str, data: bytes) -> tuple[int, tuple[bytes | str, ...]]:
    """`PubSubChannelLayer.raw_command` of the project's layer, for pipelines of one's own."""
    return get_layer().raw_command(group, data)


def host_urls() -> list[str]:
    """The URLs of the hosts that `raw_command` counts.

    Raises ImproperlyConfigured for a host that has no URL (Sentinel) or options beside it.
    """
    urls = []
    for options in get_layer().hosts:
        if options.keys() == {"address"}:
            urls.append(options["address"])
        elif options.keys() == {"host", "port"}:
            urls.append(f"redis://{options['host']}:{options['port']}")
        else:
            raise ImproperlyConfigured("Give each host of CHANNEL_LAYERS as a URL.")
    return urls


class Attachment:
    """One callback's place in a group; made by `PubSubChannelLayer.attach`."""

    def __init__(self, subscriber: _Subscriber, channel: str) -> None:
        self._subscriber = subscriber
        self._channel = channel

    async def detach(self) -> None:
        """Never call the callbacks again; without effect when done before."""
        self._subscriber.leave(self._channel, self)


class DropCount:
    """Counts what had to be thrown away, and logs it at most once per second; thread-safe."""

    def __init__(self, what: str) -> None:
        self.total = 0
        self._what = what
        self._logged = 0
        self._next_log = 0.0
        self._lock = threading.Lock()

    def add(self, count: int, reason: object) -> None:
        with self._lock:
            self.total += count
            now = time.monotonic()
            if now < self._next_log:
                return
            fresh, self._logged = self.total - self._logged, self.total
            self._next_log = now + 1.0
        logger.warning("Dropped %d %s (%d in all): %.200s", fresh, self._what, self.total, reason)


class _LoopLayer:
    """The layer of one event loop. Its channels and groups are named on Redis as the parent does."""

    def __init__(self, layer: PubSubChannelLayer, loop: asyncio.AbstractEventLoop) -> None:
        self.channel_layer = layer
        self._channels: dict[str, _ChannelQueue] = {}
        self._hosts = [_Host(options, layer, loop, self._tell_channels) for options in layer.hosts]

    async def attach(
        self,
        group: str,
        callback: Callable[[bytes], None],
        on_reconnect: Callable[[], None] | None,
    ) -> Attachment:
        channel = self.channel_layer.raw_channel(group)
        subscriber = self._host(channel).subscriber
        attachment = Attachment(subscriber, channel)
        await subscriber.join(channel, attachment, callback)
        if on_reconnect is not None:
            subscriber.on_reconnect[attachment] = on_reconnect
        return attachment

    def publish(self, group: str, data: bytes) -> None:
        channel = self.channel_layer.raw_channel(group)
        self._host(channel).publisher.post(channel, data)

    async def send(self, channel: str, message: Any) -> None:
        """Send a message to a channel. Raises redis.exceptions.RedisError."""
        data = self.channel_layer.serialize(message)
        await self._host(channel).publisher.publish(channel, data)

    async def new_channel(self, prefix: str = "specific.") -> str:
        """The name of a new channel of this process; confirmed by Redis when this returns."""
        channel = f"{self.channel_layer.prefix}{prefix}{uuid.uuid4().hex}"
        await self._subscribe_to_channel(channel)
        return channel

    async def receive(self, channel: str) -> Any:
        """Wait for the channel's next message.

        Channels cancels this when a consumer ends. The channel then leaves its groups and is
        forgotten, unless somebody else waits for it too.
        """
        queue = self._channels.get(channel)
        if queue is None or not queue.is_subscribed:
            queue = await self._subscribe_to_channel(channel)
        queue.receivers += 1
        try:
            data = await queue.get()
        except BaseException:
            if queue.receivers == 1:
                self._forget_channel(channel, queue)
            raise
        finally:
            queue.receivers -= 1
        return self.channel_layer.deserialize(data)

    async def _subscribe_to_channel(self, channel: str) -> _ChannelQueue:
        layer = self.channel_layer
        queue = self._channels.get(channel)
        if queue is None:
            queue = _ChannelQueue(layer.capacity, layer.dropped_from_queues)
            self._channels[channel] = queue
        try:
            await self._host(channel).subscriber.join(channel, queue, queue.put)
        except BaseException:
            self._forget_channel(channel, queue)
            raise
        queue.is_subscribed = True
        return queue

    def _forget_channel(self, channel: str, queue: _ChannelQueue) -> None:
        if self._channels.get(channel) is queue:  # else it was forgotten before
            del self._channels[channel]
            for name in (channel, *queue.groups):
                self._host(name).subscriber.leave(name, queue)

    async def group_add(self, group: str, channel: str) -> None:
        """Let the channel get what is sent to the group; confirmed by Redis when this returns.

        Raises RuntimeError for a channel that is not of this process.
        """
        queue = self._channels.get(channel)
        if queue is None:
            raise RuntimeError(
                f"group_add() needs a channel of this process, which {channel!r} is not; consumers"
                f" call group_add({group!r}, self.channel_name)."
            )
        name = self._group_channel(group)
        queue.groups.add(name)
        await self._host(name).subscriber.join(name, queue, queue.put)

    async def group_discard(self, group: str, channel: str) -> None:
        """Take the channel out of the group; without effect when it is not in it."""
        queue = self._channels.get(channel)
        if queue is not None:
            name = self._group_channel(group)
            queue.groups.discard(name)
            self._host(name).subscriber.leave(name, queue)

    async def group_send(self, group: str, message: Any) -> None:
        """Send a message to all channels of a group. Raises redis.exceptions.RedisError."""
        name = self._group_channel(group)
        data = self.channel_layer.serialize(message)
        await self._host(name).publisher.publish(name, data)

    async def flush(self) -> None:
        """Forget all channels, groups and attachments, and close the connections.

        What was published before still leaves, if the hosts take it within a second. The layer
        can be used again afterwards.
        """
        self._channels = {}
        await asyncio.gather(*(host.close() for host in self._hosts))

    def _group_channel(self, group: str) -> str:
        return f"{self.channel_layer.prefix}__group__{group}"

    def _host(self, channel: str) -> _Host:
        return self._hosts[self.channel_layer.host_of(channel)]

    def _tell_channels(self, message_type: str | None) -> None:
        if message_type is not None:
            data = self.channel_layer.serialize({"type": message_type})
            for queue in self._channels.values():
                queue.put(data)


class _ChannelQueue:
    """The messages that wait for `receive`; when it is full, the oldest is dropped."""

    def __init__(self, capacity: int, dropped: DropCount) -> None:
        self.is_subscribed = False
        self.receivers = 0  # coroutines in receive()
        self.groups: set[str] = set()  # names of the groups' Redis channels
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(capacity)
        self._dropped = dropped

    def put(self, data: bytes) -> None:
        if self._queue.full():
            self._queue.get_nowait()
            self._dropped.add(1, f"more than {self._queue.maxsize} are waiting")
        self._queue.put_nowait(data)

    async def get(self) -> bytes:
        return await self._queue.get()


class _Host:
    """A host's two links."""

    def __init__(
        self,
        options: dict[str, Any],
        layer: PubSubChannelLayer,
        loop: asyncio.AbstractEventLoop,
        tell_channels: Callable[[str | None], None],
    ) -> None:
        self._pool = _make_pool(options)
        self.publisher = _Publisher(self._pool, layer, loop)
        self.subscriber = _Subscriber(self._pool, layer, loop, tell_channels)

    async def close(self) -> None:
        await self.subscriber.close()
        await self.publisher.close()
        if isinstance(self._pool, SentinelConnectionPool):
            for client in self._pool.sentinel_manager.sentinels:
                await client.aclose()


class _Link(ABC):
    """Keeps a connection to a host for as long as it is needed, with pauses between attempts.

    There always is a ``_connection`` to write to. One that is not open yet collects what is
    written to it; all of that fails when it cannot be opened, and the next one takes its place.
    """

    def __init__(
        self, pool: ConnectionPool, layer: PubSubChannelLayer, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._pool = pool
        self._layer = layer
        self._loop = loop
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self._connection = _Connection(self, layer, loop)

    def start(self) -> None:
        if self._task is None or self._task.done():
            # Callbacks run in this task's context, which must not be that of one user's request.
            self._task = self._loop.create_task(self._run(), context=contextvars.Context())

    async def _run(self) -> None:
        while self.is_needed():
            connection = self._connection
            # It may be open: a closing loop cancels this task before it flushes the layer.
            if connection.is_open or await connection.open(self._pool):
                self._failures = 0
                await connection.ended.wait()
            await asyncio.sleep(_delay(self._failures))

    @abstractmethod
    def is_needed(self) -> bool:
        """Whether there is anything to be connected for."""

    def deliver(self, name: bytes, data: bytes) -> None:
        """A message came in, which can only happen where channels are subscribed."""
        raise NotImplementedError

    def ended(self, error: Exception, *, was_open: bool) -> None:
        """The connection is lost, or could not be opened."""
        if was_open:
            logger.warning("Lost a connection to Redis: %.200s", error)
        else:
            if self._failures == 0:
                logger.warning("Cannot connect to Redis: %.200s", error)
            self._failures += 1
        self._connection = _Connection(self, self._layer, self._loop)

    async def close(self) -> None:
        connection = self._connection
        self._connection = _Connection(self, self._layer, self._loop)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await connection.close()


class _Publisher(_Link):
    """Publishes on one host; connects when there is something to publish."""

    def is_needed(self) -> bool:
        return self._connection.has_unanswered

    def post(self, channel: str, data: bytes) -> None:
        if self._connection.is_full:
            self._layer.dropped_publishes.add(1, _too_much())
        else:
            self._connection.post("PUBLISH", channel, data)
            self.start()

    async def publish(self, channel: str, data: bytes) -> None:
        """Return when Redis has it. Raises redis.exceptions.RedisError."""
        if self._connection.is_full:
            raise _too_much()
        answer = self._connection.request("PUBLISH", channel, data)
        self.start()
        await answer

    async def close(self) -> None:
        if self._connection.has_unanswered:
            barrier = self._connection.request("PING")
            self.start()
            await asyncio.wait([barrier], timeout=CLOSE_TIMEOUT)
        await super().close()


class _Subscriber(_Link):
    """Subscribes on one host, and hands on what comes in; connected while anybody is subscribed.

    Redis answers in the order of the commands. So a channel that is left and joined again before
    the answers are in has a new `_Subscription`, confirmed by the answer to its own SUBSCRIBE.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        layer: PubSubChannelLayer,
        loop: asyncio.AbstractEventLoop,
        tell_channels: Callable[[str | None], None],
    ) -> None:
        super().__init__(pool, layer, loop)
        self.on_reconnect: dict[Hashable, Callable[[], None]] = {}
        self._tell_channels = tell_channels
        self._subscriptions: dict[bytes, _Subscription] = {}
        self._was_lost = False

    def is_needed(self) -> bool:
        return bool(self._subscriptions)

    async def join(self, channel: str, key: Hashable, callback: Callable[[bytes], None]) -> None:
        """Call back with what comes in on the Redis channel, until `leave` with the same key.

        Returns when Redis has confirmed it. Raises redis.exceptions.RedisError.
        """
        name = channel.encode()
        subscription = self._subscriptions.get(name)
        if subscription is None:
            if self._connection.is_full:
                raise _too_much()
            subscription = _Subscription(self._connection.request("SUBSCRIBE", name))
            self._subscriptions[name] = subscription
        self.start()
        is_new = key not in subscription.callbacks
        subscription.callbacks[key] = callback
        try:
            await asyncio.shield(subscription.confirmed)  # others wait for it too
        except BaseException:
            if is_new:
                self.leave(channel, key)
            raise

    def leave(self, channel: str, key: Hashable) -> None:
        """Without effect for a key that is not in."""
        name = channel.encode()
        subscription = self._subscriptions.get(name)
        if subscription is None or subscription.callbacks.pop(key, None) is None:
            return
        self.on_reconnect.pop(key, None)
        if not subscription.callbacks:
            del self._subscriptions[name]
            self._connection.request("UNSUBSCRIBE", name)

    def deliver(self, name: bytes, data: bytes) -> None:
        subscription = self._subscriptions.get(name)
        if subscription is None:
            return  # left while this was under way
        for callback in tuple(subscription.callbacks.values()):
            try:
                callback(data)
            except Exception:
                logger.exception("A callback on the Redis channel %r failed", name)

    def ended(self, error: Exception, *, was_open: bool) -> None:
        super().ended(error, was_open=was_open)
        for name, subscription in self._subscriptions.items():
            subscription.confirmed = self._connection.request("SUBSCRIBE", name)
        if self._subscriptions:
            # Answered after all the others.
            self._connection.request("PING").add_done_callback(self._restored)
        if was_open:
            self._was_lost = True
            self._tell_channels(self._layer.on_disconnect)

    def _restored(self, barrier: asyncio.Future[Any]) -> None:
        if not self._was_lost or barrier.cancelled() or barrier.exception() is not None:
            return
        self._was_lost = False
        logger.info("Subscribed to everything again")
        for name, subscription in self._subscriptions.items():
            if subscription.confirmed.done() and (refusal := subscription.confirmed.exception()):
                logger.error("Redis refuses the subscription to %r: %s", name, refusal)
        self._tell_channels(self._layer.on_reconnect)
        for callback in tuple(self.on_reconnect.values()):
            try:
                callback()
            except Exception:
                logger.exception("A callback for a reconnect failed")

    async def close(self) -> None:
        self._subscriptions = {}
        self.on_reconnect = {}
        await super().close()


@dataclass(eq=False, slots=True)
class _Subscription:
    """A Redis channel, who listens to it, and whether Redis knows."""

    confirmed: asyncio.Future[Any]
    callbacks: dict[Hashable, Callable[[bytes], None]] = field(default_factory=dict)


class _Connection(asyncio.Protocol):
    """One connection, once: it collects commands, opens, has them answered in order, and ends.

    redis-py connects; from then on this is the protocol of its transport, and hiredis parses.
    """

    def __init__(
        self, link: _Link, layer: PubSubChannelLayer, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.ended = asyncio.Event()
        self._link = link
        self._layer = layer
        self._loop = loop
        self._reader = hiredis.Reader(replyError=ResponseError, notEnoughData=_MORE)
        self._writer: asyncio.StreamWriter | None = None
        self._is_closed = asyncio.Event()
        self._commands: list[bytes] = []  # not yet handed to the transport
        self._size = 0  # of those, in bytes
        self._unanswered: deque[asyncio.Future[Any] | None] = deque()
        self._can_write = False
        self._write_is_scheduled = False
        self._silent_checks = 0
        self._check_timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        return self._writer is not None

    @property
    def _peer(self) -> object:
        return self._writer and self._writer.get_extra_info("peername")

    @property
    def is_full(self) -> bool:
        too_big = self._size >= self._layer.buffer_bytes
        return too_big or len(self._unanswered) >= BUFFER_COMMANDS

    @property
    def has_unanswered(self) -> bool:
        return bool(self._unanswered)

    def request(self, *command: str | bytes) -> asyncio.Future[Any]:
        """Write a command in this turn's batch; the future gets the answer."""
        answer = self._loop.create_future()
        self._write(command, answer)
        return answer

    def post(self, *command: str | bytes) -> None:
        """Write a PUBLISH in this turn's batch; what becomes of it is only counted."""
        self._write(command, None)

    def _write(self, command: tuple[str | bytes, ...], answer: asyncio.Future[Any] | None) -> None:
        packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # any length
        self._commands.append(packed)
        self._size += len(packed)
        self._unanswered.append(answer)
        if self._can_write and not self._write_is_scheduled:
            self._write_is_scheduled = True
            self._loop.call_soon(self._write_out)

    def _write_out(self) -> None:
        self._write_is_scheduled = False
        if self._can_write and self._commands and self._writer is not None:
            batch = b"".join(self._commands)
            self._commands.clear()
            self._size = 0
            self._writer.transport.write(batch)

    async def open(self, pool: ConnectionPool) -> bool:
        """Connect and write what has been collected; when that is impossible, all of it fails."""
        try:
            self._writer = await open_transport(
                _make_connection(pool), self, timeout=self._layer.connect_timeout
            )
        except RedisError as error:
            self._lose(error)
            return False
        self._can_write = True
        self._check_timer = self._loop.call_later(self._layer.health_check_interval, self._check)
        self._write_out()
        return True

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        self._write_out()

    def data_received(self, data: bytes) -> None:
        self._silent_checks = 0
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not _MORE:
            if isinstance(reply, list) and reply[0] == b"message":
                self._link.deliver(reply[1], reply[2])
            else:
                self._answer(reply)

    def _answer(self, reply: Any) -> None:
        answer = self._unanswered.popleft()
        if isinstance(reply, Exception):
            if answer is None:
                self._layer.dropped_publishes.add(1, reply)
            else:
                _fail(answer, reply)
        elif answer is not None and not answer.done():
            answer.set_result(reply)

    def _check(self) -> None:
        if self._silent_checks == 2:
            # Not at 1: after a pause of this process the answer may lie unread in the socket.
            self._lose(RedisConnectionError(f"Redis at {self._peer} is silent."))
            return
        if self._silent_checks == 0:
            self.request("PING")
        self._silent_checks += 1
        self._check_timer = self._loop.call_later(self._layer.health_check_interval, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed.set()
        reason = f" ({exc})" if exc else ""
        self._lose(RedisConnectionError(f"Redis at {self._peer} hung up{reason}."))

    def _lose(self, error: Exception) -> None:
        if not self.ended.is_set():
            self._end(error)
            self._link.ended(error, was_open=self.is_open)

    async def close(self) -> None:
        self._end(RedisConnectionError("The channel layer was flushed."))
        if self.is_open:
            await self._is_closed.wait()

    def _end(self, error: Exception) -> None:
        self.ended.set()
        self._can_write = False
        if self._check_timer is not None:
            self._check_timer.cancel()
        if self._writer is not None:
            self._writer.transport.abort()
        answers = [answer for answer in self._unanswered if answer is not None]
        posted = len(self._unanswered) - len(answers)
        self._unanswered.clear()
        self._commands.clear()
        for answer in answers:
            _fail(answer, error)
        if posted:
            self._layer.dropped_publishes.add(posted, error)


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # counts as seen: perhaps nobody waits any more


def _too_much() -> RedisConnectionError:
    return RedisConnectionError("Redis does not take what waits for it already.")


def _delay(failures: int) -> float:
    """Seconds to wait before the next attempt, so that not everybody comes at once."""
    longest = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  not a secret


def _make_pool(options: dict[str, Any]) -> ConnectionPool:
    """How redis-py makes connections; they are not pooled here."""
    if "master_name" in options:
        kwargs = _sentinel_kwargs(options, AsyncRetry(NoBackoff(), 0))
        options = {**options, "sentinel_kwargs": kwargs}
    pool: ConnectionPool = create_pool(options)  # type: ignore[no-untyped-call]
    return pool


def _make_connection(pool: ConnectionPool) -> AbstractConnection:
    """One that is not connected yet."""
    connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
    return connection


def _make_sync_client(options: dict[str, Any]) -> redis.Redis:
    timeouts = {"socket_timeout": SYNC_TIMEOUT, "socket_connect_timeout": SYNC_TIMEOUT}
    options = {**timeouts, **options}
    if "address" in options:
        return redis.Redis.from_url(options.pop("address"), **options)
    if "master_name" not in options:
        return redis.Redis(connection_pool=redis.ConnectionPool(**options))
    kwargs = _sentinel_kwargs(options, Retry(NoBackoff(), 0))
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        options.pop("sentinels"), sentinel_kwargs=kwargs
    )
    options.pop("sentinel_kwargs", None)
    name = options.pop("master_name")
    client: redis.Redis = sentinel.master_for(name, **options)  # type: ignore[no-untyped-call]
    return client


def _sentinel_kwargs(options: dict[str, Any], no_retry: Retry | AsyncRetry) -> dict[str, Any]:
    # redis-py asks one Sentinel after the other, and would try each of them for seconds.
    return {
        "socket_timeout": SENTINEL_TIMEOUT,
        "socket_connect_timeout": SENTINEL_TIMEOUT,
        "retry": no_retry,
        **(options.get("sentinel_kwargs") or {}),
    }


def _require_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("In the event loop use get_layer().publish(), which does not block.")
