"""Channels' layer on Redis publish/subscribe, with a faster path beside it for ready-made bytes.

Channels' own API (`send`, `receive`, groups, `flush`) is inherited from channels-redis. `attach` and
`publish` carry bytes unchanged on raw channels: Redis channels of their own named
``<prefix>:raw:<group>``, because msgpack bytes and ready-made JSON on one channel would break the
readers of either. No name that Channels allows has a colon.

Publish/subscribe stores nothing. Events that must not be lost belong in a log, which consumers read
after `attach` and again whenever their ``on_reconnect`` is called.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from channels import DEFAULT_CHANNEL_LAYER
from channels.layers import channel_layers
from channels_redis.pubsub import RedisPubSubChannelLayer, RedisPubSubLoopLayer
from channels_redis.utils import _consistent_hash, _wrap_close, decode_hosts
from django.core.exceptions import ImproperlyConfigured
from redis.exceptions import RedisError

from chatproject.lib.pubsub.hosts import Host, make_pool, make_sync_client, url_of
from chatproject.lib.pubsub.raw import Attachment, DropCount, Publisher, Subscriber


class PubSubChannelLayer(RedisPubSubChannelLayer):
    """The channel layer of CHANNEL_LAYERS; `get_layer` returns the project's.

    Options (CONFIG): ``hosts``, as in channels-redis: URLs (redis, rediss, unix), (host, port) or
    dicts, also of Sentinels; with several hosts each channel and group lives on one of them.
    ``prefix`` separates layers that share a Redis.

    A connection may be idle for ever: redis-py's ``socket_timeout`` applies to connecting only.
    """

    def __init__(self, hosts: Sequence[Host] | None = None, *, prefix: str = "asgi") -> None:
        super().__init__(hosts=hosts, prefix=prefix)
        self.hosts: list[dict[str, Any]] = decode_hosts(hosts)  # type: ignore[no-untyped-call]
        for options in self.hosts:
            # Raises for wrong options now instead of at the first connection.
            make_pool(options).make_connection()  # type: ignore[no-untyped-call]
        self.prefix = prefix
        self.dropped_publishes = DropCount()
        self._sync_clients = [make_sync_client(options) for options in self.hosts]

    async def attach(
        self,
        group: str,
        callback: Callable[[bytes], None],
        on_reconnect: Callable[[], None] | None = None,
    ) -> Attachment:
        """Pass everything published in the group from now on to the callback.

        Returns when Redis has confirmed the subscription, so that a log read afterwards and the
        callback together miss nothing. The callback receives the bytes exactly as published, in the
        event loop, possibly before `attach` returns; it must not block. ``on_reconnect`` is called
        when a lost connection has subscribed again: events published meanwhile are in the log only.
        Raises redis.exceptions.RedisError when the host is unreachable or refuses; then nothing
        stays attached.
        """
        channel = self.raw_channel(group)
        subscriber = self._get_layer().subscribers[self.host_of(channel)]
        return await subscriber.attach(channel, callback, on_reconnect)

    def publish(self, group: str, data: bytes) -> None:
        """Pass the bytes to every callback attached to the group, in any process.

        From the event loop only (`publish` of this module is for synchronous code). The bytes leave
        with everything else published in the same turn of the loop. Never raises for a network
        fault: messages that cannot be delivered are dropped and counted in ``dropped_publishes``.
        """
        channel = self.raw_channel(group)
        self._get_layer().publishers[self.host_of(channel)].publish(channel, data)

    def publish_sync(self, group: str, data: bytes) -> None:
        """`publish` for synchronous code in any thread; blocks for the host, at most a few seconds.

        Drops and counts likewise. Raises RuntimeError in a running event loop, which it would
        block.
        """
        _require_no_loop()
        host, command = self.raw_command(group, data)
        try:
            self._sync_clients[host].execute_command(*command)  # type: ignore[no-untyped-call]
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
            pipeline = self._sync_clients[host].pipeline(transaction=False)
            for command in of_host:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            try:
                pipeline.execute()
            except RedisError as error:
                self.dropped_publishes.add(len(of_host), error)

    def raw_command(self, group: str, data: bytes) -> tuple[int, tuple[bytes | str, ...]]:
        """Return the index of the group's host, and the command that publishes the bytes there."""
        channel = self.raw_channel(group)
        return self.host_of(channel), ("PUBLISH", channel, data)

    def raw_channel(self, group: str) -> str:
        """Return the Redis channel that carries the group's bytes."""
        return f"{self.prefix}:raw:{group}"

    def host_of(self, channel: str) -> int:
        """Return the index of the host that a Redis channel lives on."""
        index: int = _consistent_hash(channel, len(self.hosts))  # type: ignore[no-untyped-call]
        return index

    def _get_layer(self) -> LoopLayer:
        loop = asyncio.get_running_loop()
        layer: LoopLayer | None = self._layers.get(loop)
        if layer is None:
            layer = self._layers[loop] = LoopLayer(self)
            # Closing the loop will flush and forget its layer.
            _wrap_close(self, loop)  # type: ignore[no-untyped-call]
        return layer


class LoopLayer(RedisPubSubLoopLayer):
    """The layer of one event loop: channels-redis's, which connects when used, and raw channels."""

    def __init__(self, layer: PubSubChannelLayer) -> None:
        super().__init__(hosts=layer.hosts, prefix=layer.prefix, channel_layer=layer)  # type: ignore[no-untyped-call]
        dropped = layer.dropped_publishes
        self.publishers = [Publisher(options, dropped) for options in layer.hosts]
        self.subscribers = [Subscriber(options, dropped) for options in layer.hosts]

    async def flush(self) -> None:
        """Forget all channels, groups and attachments, and close the connections.

        Bytes published before still leave, if the hosts take them within a second. The layer can be
        used again afterwards.
        """
        await asyncio.gather(*(link.close() for link in (*self.publishers, *self.subscribers)))
        await super().flush()  # type: ignore[no-untyped-call]


def get_layer() -> PubSubChannelLayer:
    """Return the project's channel layer. Raises ImproperlyConfigured when it is another class."""
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


def host_urls() -> list[str]:
    """Return the URLs of the hosts in the order of `PubSubChannelLayer.host_of`.

    Raises ImproperlyConfigured for a host without a URL (Sentinel), or with options beside it.
    """
    return [url_of(options) for options in get_layer().hosts]


def _require_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("In the event loop use get_layer().publish(), which does not block.")
