"""The project's layer: its options, its place in Channels, and publishing from synchronous code."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import redis.asyncio
from channels.consumer import AsyncConsumer
from channels.exceptions import StopConsumer
from channels.testing import ApplicationCommunicator
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from chatproject.lib.pubsub.layer import PubSubChannelLayer, get_layer, host_urls, publish
from tests.lib.pubsub.conftest import MakeLayer
from tests.lib.pubsub.helpers import Inbox, Server, until

BACKEND = "chatproject.lib.pubsub.layer.PubSubChannelLayer"


def settings(hosts: list[object], backend: str = BACKEND) -> override_settings:
    config = {"hosts": hosts} if backend == BACKEND else {}
    return override_settings(CHANNEL_LAYERS={"default": {"BACKEND": backend, "CONFIG": config}})


class Member(AsyncConsumer):  # type: ignore[misc, unused-ignore] # Channels is untyped
    """Joins a group, passes its messages on, and leaves it."""

    async def test_join(self, message: Any) -> None:
        await self.channel_layer.group_add("members", self.channel_name)
        await self.channel_layer.send(self.channel_name, {"type": "group.message", "text": "own"})

    async def group_message(self, message: Any) -> None:
        await self.send(message)

    async def test_leave(self, message: Any) -> None:
        await self.channel_layer.group_discard("members", self.channel_name)
        raise StopConsumer


# Channels looks at the database connections of a thread before each handler.
@pytest.mark.django_db(transaction=True)
async def test_channels_can_use_groups_of_the_layer(valkey_url: str):
    """All calls that Channels makes are inherited from channels-redis."""
    server = Server(valkey_url)
    with settings([valkey_url]):
        member = ApplicationCommunicator(Member.as_asgi(), {"type": "test"})
        await member.send_input({"type": "test.join"})
        assert (await member.receive_output(timeout=10))["text"] == "own"
        await until(lambda: server.subscribers("asgi__group__members"))
        await get_layer().group_send("members", {"type": "group.message", "text": "to all"})
        assert (await member.receive_output(timeout=10))["text"] == "to all"
        await member.send_input({"type": "test.leave"})
        await member.wait(timeout=10)
        await until(lambda: not server.channels())
        await get_layer().flush()


async def test_raw_bytes_stay_apart_from_channels_groups(layer: PubSubChannelLayer):
    inbox = Inbox()
    channel = await layer.new_channel()
    await layer.group_add("run.1", channel)
    await layer.attach("run.1", inbox)
    layer.publish("run.1", b"\xc1 is no msgpack")
    assert await inbox.wait(1) == [b"\xc1 is no msgpack"]
    await layer.send(channel, {"number": 1})
    assert await layer.receive(channel) == {"number": 1}
    assert inbox.items == [b"\xc1 is no msgpack"]


def test_closing_a_loop_leaves_nothing(valkey_url: str, caplog: pytest.LogCaptureFixture):
    layer = PubSubChannelLayer(hosts=[valkey_url])
    server = Server(valkey_url)

    async def use() -> None:
        await layer.new_channel()
        await layer.attach("run.1", lambda data: None)
        await until(lambda: len(server.channels()) == 2)
        assert len(layer._layers) == 1

    asyncio.run(use())
    assert len(layer._layers) == 0
    assert not server.channels()
    assert not caplog.records  # no task was destroyed, nothing was lost


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="group_expiry"):
        PubSubChannelLayer(group_expiry=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="list of Redis hosts"):
        PubSubChannelLayer(hosts="redis://localhost")


async def test_layers_with_different_prefixes_do_not_meet(
    layer: PubSubChannelLayer, make_layer: MakeLayer
):
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    stranger = make_layer(prefix="stranger")
    await stranger.attach("run.1", echo := Inbox())
    stranger.publish("run.1", b"from a stranger")
    await echo.wait(1)
    layer.publish("run.1", b"from a friend")
    assert await inbox.wait(1) == [b"from a friend"]


# The project's layer


async def test_every_way_of_publishing_reaches_the_group(valkey_url: str):
    with settings([valkey_url]):
        layer = get_layer()
        assert layer is get_layer()
        inbox = Inbox()
        await layer.attach("run.1", inbox)
        await asyncio.to_thread(publish, "run.1", b"from a thread")
        await inbox.wait(1)

        host, command = layer.raw_command("run.1", b"from a pipeline")
        url = host_urls()[host]
        async with redis.asyncio.Redis.from_url(url) as client, client.pipeline() as pipeline:
            pipeline.set("something", "else")
            pipeline.execute_command(*command)
            await pipeline.execute()
        assert await inbox.wait(2) == [b"from a thread", b"from a pipeline"]
        await layer.flush()


def test_host_urls_keep_the_order_of_hosts():
    with settings(["redis://one:1/0", ("two", 2), {"address": "rediss://three"}]):
        assert host_urls() == ["redis://one:1/0", "redis://two:2", "rediss://three"]
    with (
        settings([{"sentinels": [("one", 1)], "master_name": "main"}]),
        pytest.raises(ImproperlyConfigured, match="URL"),
    ):
        host_urls()


def test_another_backend_is_a_wrong_setting():
    with (
        settings([], backend="channels.layers.InMemoryChannelLayer"),
        pytest.raises(ImproperlyConfigured, match="PubSubChannelLayer"),
    ):
        get_layer()


# From synchronous code


async def test_threads_publish_over_few_connections(layer: PubSubChannelLayer, valkey_url: str):
    server = Server(valkey_url)
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    before = server.info("total_connections_received")

    def publish_many(name: bytes) -> None:
        for number in range(25):
            layer.publish_sync("run.1", b"%s %d" % (name, number))

    threads = [threading.Thread(target=publish_many, args=(b"%d" % n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    received = await inbox.wait(100)
    for thread in threads:
        thread.join()
    assert len(received) == len(set(received)) == 100
    assert [data for data in received if data.startswith(b"0 ")] == [
        b"0 %d" % number for number in range(25)
    ]
    assert server.info("total_connections_received") - before <= 4 + 1  # `info` opens one


async def test_sync_publish_refuses_an_event_loop(layer: PubSubChannelLayer):
    with pytest.raises(RuntimeError, match=r"get_layer\(\).publish\(\)"):
        layer.publish_sync("run.1", b"data")
    with pytest.raises(RuntimeError, match=r"get_layer\(\).publish\(\)"):
        layer.publish_all_sync([])


def test_sync_publish_to_unreachable_host_is_counted(caplog: pytest.LogCaptureFixture):
    layer = PubSubChannelLayer(hosts=["redis://127.0.0.1:1"])
    for _ in range(5):
        layer.publish_sync("run.1", b"data")
    layer.publish_all_sync([("run.1", b"data"), ("run.2", b"data")])
    assert layer.dropped_publishes.total == 7
    assert len([record for record in caplog.records if "Dropped" in record.message]) == 1
