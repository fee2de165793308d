"""Private and undocumented behaviour of channels-redis and Channels that the product relies on.

Both are pinned with ``==`` in requirements.in, so that an upgrade fails here and not in production.
"""

from __future__ import annotations

import asyncio
import inspect

import pytest
from channels.consumer import AsyncConsumer, get_handler_name
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer  # noqa: TID251  its answer is the subject
from channels_redis.pubsub import RedisPubSubChannelLayer, RedisPubSubLoopLayer
from channels_redis.utils import _consistent_hash, _wrap_close, create_pool, decode_hosts

CALLS_OF_CHANNELS = (
    *("new_channel", "send", "receive", "group_add", "group_discard", "group_send", "flush"),
)


class Probe:
    """A layer of one loop that records its flush."""

    was_flushed = False

    async def flush(self) -> None:
        self.was_flushed = True


def test_constructors_take_our_arguments():
    inspect.signature(RedisPubSubChannelLayer).bind(hosts=[], prefix="asgi")
    inspect.signature(RedisPubSubLoopLayer).bind(hosts=[], prefix="asgi", channel_layer=None)
    assert RedisPubSubChannelLayer()._layers == {}


@pytest.mark.parametrize("name", CALLS_OF_CHANNELS)
async def test_calls_of_channels_reach_the_loop_layer(name: str):
    class Layer(RedisPubSubChannelLayer):
        def _get_layer(self) -> object:
            return LoopLayer()

    class LoopLayer:
        def __getattr__(self, called: str) -> object:
            return lambda *arguments: asyncio.sleep(0, (called, *arguments))

    assert await getattr(Layer(), name)("argument") == (name, "argument")
    assert inspect.iscoroutinefunction(getattr(RedisPubSubLoopLayer, name))


def test_closing_a_loop_flushes_its_layer():
    loop, probe = asyncio.new_event_loop(), Probe()
    layer = RedisPubSubChannelLayer()
    layer._layers[loop] = probe
    _wrap_close(layer, loop)
    loop.close()
    assert probe.was_flushed
    assert layer._layers == {}
    assert loop.is_closed()


def test_groups_keep_their_hosts():
    """Processes of two releases must choose the same host."""
    assert [_consistent_hash(f"parley:raw:run.{number}", 3) for number in (8, 10, 1)] == [0, 1, 2]
    assert _consistent_hash("parley:raw:run.1", 1) == 0


def test_hosts_become_options_and_pools():
    hosts = ["redis://one", ("two", 2), {"host": "three", "db": 3}]
    options = [{"address": "redis://one"}, {"host": "two", "port": 2}, {"host": "three", "db": 3}]
    assert decode_hosts(hosts) == options
    assert [create_pool(option).connection_kwargs["host"] for option in options] == [
        *("one", "two", "three")
    ]


def test_consumers_without_a_layer_use_none():
    """Sockets name a missing layer; otherwise each would get a Redis channel that nothing uses."""
    assert get_channel_layer("none") is None
    assert AsyncConsumer.channel_layer_alias == "default"


def test_consumer_methods_have_the_overridden_signatures():
    for method in (AsyncConsumer.dispatch, AsyncWebsocketConsumer.websocket_disconnect):
        assert list(inspect.signature(method).parameters) == ["self", "message"]
        assert inspect.iscoroutinefunction(method)
    assert get_handler_name({"type": "websocket.disconnect"}) == "websocket_disconnect"
