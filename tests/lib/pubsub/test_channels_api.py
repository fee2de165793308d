"""Channels' own API: what channels-redis's tests demand of its publish/subscribe layer, and more."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from channels_redis.pubsub import RedisPubSubChannelLayer
from channels_redis.serializers import SerializerDoesNotExist
from cryptography.fernet import InvalidToken

from chatproject.lib.pubsub.layer import PubSubChannelLayer
from tests.lib.pubsub.conftest import MakeLayer
from tests.lib.pubsub.helpers import PATIENCE, Server, until


async def take(layer: RedisPubSubChannelLayer, channel: str) -> Any:
    return await asyncio.wait_for(layer.receive(channel), PATIENCE)


async def test_it_carries_a_message_to_a_channel(layer: PubSubChannelLayer):
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "test.message", "text": "Ahoy-hoy!"})
    assert await take(layer, channel) == {"type": "test.message", "text": "Ahoy-hoy!"}


async def test_it_keeps_the_order_of_messages(layer: PubSubChannelLayer):
    channel = await layer.new_channel()
    for number in range(3):
        await layer.send(channel, {"number": number})
    assert [(await take(layer, channel))["number"] for _ in range(3)] == [0, 1, 2]


async def test_it_keeps_the_order_of_sends_of_one_turn(layer: PubSubChannelLayer):
    channel = await layer.new_channel()
    await asyncio.gather(*(layer.send(channel, {"number": number}) for number in range(50)))
    assert [(await take(layer, channel))["number"] for _ in range(50)] == list(range(50))


def test_it_carries_messages_from_one_event_loop_to_another(valkey_url: str):
    layer = PubSubChannelLayer(hosts=[valkey_url])
    loop = asyncio.new_event_loop()
    channel = loop.run_until_complete(layer.new_channel())
    for number in range(3):
        asyncio.run(layer.send(channel, {"number": number}))
    received = [loop.run_until_complete(take(layer, channel))["number"] for _ in range(3)]
    loop.close()
    assert received == [0, 1, 2]


async def test_it_carries_a_message_to_the_members_of_a_group_only(layer: PubSubChannelLayer):
    ann, bob, eve = [await layer.new_channel(prefix=f"test-{number}") for number in range(3)]
    for channel in (ann, bob, eve):
        await layer.group_add("test-group", channel)
    await layer.group_discard("test-group", eve)
    await layer.group_send("test-group", {"type": "message.1"})
    assert (await take(layer, ann))["type"] == "message.1"
    assert (await take(layer, bob))["type"] == "message.1"

    await layer.send(eve, {"type": "message.2"})
    assert (await take(layer, eve))["type"] == "message.2"


async def test_it_tells_channels_with_the_same_prefix_apart(layer: PubSubChannelLayer):
    channels = [await layer.new_channel(prefix="test-gr-chan") for _ in range(3)]
    for channel in channels:
        await layer.group_add("test-group", channel)
    await layer.group_send("test-group", {"type": "message.1"})
    for channel in channels:
        assert (await take(layer, channel))["type"] == "message.1"


async def test_it_counts_a_member_once(layer: PubSubChannelLayer):
    channel = await layer.new_channel()
    await layer.group_add("test-group", channel)
    await layer.group_add("test-group", channel)
    await layer.group_send("test-group", {"number": 1})
    await layer.group_send("test-group", {"number": 2})
    assert [(await take(layer, channel))["number"] for _ in range(2)] == [1, 2]


async def test_it_receives_on_a_general_channel_from_another_process(
    layer: PubSubChannelLayer, other_layer: PubSubChannelLayer, valkey_url: str
):
    receiving = asyncio.create_task(other_layer.receive("test-channel"))
    await until(lambda: Server(valkey_url).subscribers("test-channel"))
    await layer.send("test-channel", "message.1")
    assert await asyncio.wait_for(receiving, PATIENCE) == "message.1"


async def test_it_never_repeats_a_channels_name(layer: PubSubChannelLayer):
    random.seed(1)
    first = await layer.new_channel()
    random.seed(1)
    assert first != await layer.new_channel()


async def test_the_layer_of_a_loop_knows_the_whole(layer: PubSubChannelLayer):
    assert layer._get_layer().channel_layer is layer


def test_it_writes_msgpack():
    message: dict[str, Any] = {"a": True, "b": None, "c": {"d": []}}
    data = b"\x83\xa1a\xc3\xa1b\xc0\xa1c\x81\xa1d\x90"
    assert PubSubChannelLayer().serialize(message) == data
    assert PubSubChannelLayer().deserialize(data) == message


async def test_it_writes_json_when_told_to(make_layer: MakeLayer):
    layer = make_layer(serializer_format="json")
    assert layer.serialize({"a": None}) == b'{"a": null}'
    channel = await layer.new_channel()
    await layer.send(channel, {"a": None})
    assert await take(layer, channel) == {"a": None}


def test_it_refuses_an_unknown_format_and_unknown_options():
    with pytest.raises(SerializerDoesNotExist):
        PubSubChannelLayer(serializer_format="carrier-pigeon")
    with pytest.raises(TypeError, match="group_expiry"):
        PubSubChannelLayer(group_expiry=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="list of Redis hosts"):
        PubSubChannelLayer(hosts="redis://localhost")


async def test_it_encrypts_and_keys_can_be_rotated(make_layer: MakeLayer):
    old = make_layer(symmetric_encryption_keys=["old key"])
    new = make_layer(symmetric_encryption_keys=["new key", "old key"])
    channel = await new.new_channel()
    await old.send(channel, {"text": "secret"})
    assert await take(new, channel) == {"text": "secret"}
    assert b"secret" not in old.serialize({"text": "secret"})

    await new.send(channel, {"text": "secret"})
    await make_layer(symmetric_encryption_keys=["wrong key"]).send(channel, {"text": "secret"})
    assert await take(new, channel) == {"text": "secret"}
    with pytest.raises(InvalidToken):
        await take(new, channel)


async def test_layers_with_different_prefixes_do_not_meet(
    layer: PubSubChannelLayer, make_layer: MakeLayer
):
    channel = await layer.new_channel()
    await layer.group_add("test-group", channel)
    await make_layer(prefix="stranger").group_send("test-group", {"from": "stranger"})
    await layer.group_send("test-group", {"from": "friend"})
    assert await take(layer, channel) == {"from": "friend"}


async def test_it_understands_channels_redis_and_is_understood(
    layer: PubSubChannelLayer, valkey_url: str
):
    theirs = RedisPubSubChannelLayer(hosts=[valkey_url])
    channel, their_channel = await layer.new_channel(), await theirs.new_channel()
    await layer.group_add("test-group", channel)
    await theirs.group_add("test-group", their_channel)
    await until(lambda: Server(valkey_url).subscribers("asgi__group__test-group") == 2)
    await theirs.group_send("test-group", {"from": "them"})
    await layer.group_send("test-group", {"from": "us"})
    for member, name in ((layer, channel), (theirs, their_channel)):
        assert [(await take(member, name))["from"] for _ in range(2)] == ["them", "us"]
    await theirs.flush()


def test_closing_a_loop_cleans_up(valkey_url: str, caplog: pytest.LogCaptureFixture):
    layer = PubSubChannelLayer(hosts=[valkey_url])
    server = Server(valkey_url)

    async def use() -> None:
        channel = await layer.new_channel()
        await layer.group_add("test-group", channel)
        await layer.attach("test-group", lambda data: None)
        await layer.send(channel, {"type": "test.message"})
        assert len(layer._layers) == 1
        assert len(server.channels()) == 3

    asyncio.run(use())
    assert len(layer._layers) == 0
    assert not server.channels()
    assert not caplog.records  # no task was destroyed, nothing was lost


async def test_its_methods_are_recognised_as_coroutine_functions(layer: PubSubChannelLayer):
    for name in ("new_channel", "send", "receive", "group_add", "group_discard", "group_send"):
        assert inspect.iscoroutinefunction(getattr(layer, name))


def test_it_names_its_extensions():
    assert PubSubChannelLayer().extensions == ["groups", "flush"]


async def test_a_receive_without_a_message_can_be_given_up(layer: PubSubChannelLayer):
    channel = await layer.new_channel()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(layer.receive(channel), 0.05)


async def test_a_receive_given_up_forgets_the_channel_and_its_groups(
    layer: PubSubChannelLayer, valkey_url: str
):
    channel = await layer.new_channel()
    await layer.group_add("one", channel)
    await layer.group_add("two", channel)
    assert len(Server(valkey_url).channels()) == 3

    receiving = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    await until(lambda: not Server(valkey_url).channels())
    with pytest.raises(RuntimeError, match="this process"):
        await layer.group_add("one", channel)


async def test_a_receive_given_up_does_not_disturb_another_one(layer: PubSubChannelLayer):
    channel = await layer.new_channel()
    first, second = [asyncio.create_task(layer.receive(channel)) for _ in range(2)]
    await asyncio.sleep(0)
    first.cancel()
    await layer.send(channel, {"number": 1})
    assert await asyncio.wait_for(second, PATIENCE) == {"number": 1}


async def test_two_can_wait_for_a_channel_that_is_not_subscribed_yet(
    layer: PubSubChannelLayer, valkey_url: str
):
    receiving = [asyncio.create_task(layer.receive("general")) for _ in range(2)]
    await until(lambda: Server(valkey_url).subscribers("general"))
    await layer.send("general", 1)
    await layer.send("general", 2)
    assert sorted(await asyncio.wait_for(asyncio.gather(*receiving), PATIENCE)) == [1, 2]


@pytest.mark.parametrize("channel", ["nobody's", "asgispecific.of-another-process"])
async def test_only_channels_of_this_process_join_groups(layer: PubSubChannelLayer, channel: str):
    with pytest.raises(RuntimeError, match="this process"):
        await layer.group_add("test-group", channel)


async def test_leaving_a_group_before_joining_it_is_no_error(layer: PubSubChannelLayer):
    channel = await layer.new_channel()
    await layer.group_discard("test-group", channel)
    await layer.group_discard("test-group", "nobody's")


async def test_the_last_one_out_of_a_group_unsubscribes(layer: PubSubChannelLayer, valkey_url: str):
    server = Server(valkey_url)
    channels = [await layer.new_channel() for _ in range(2)]
    for channel in channels:
        await layer.group_add("test-group", channel)
    await layer.group_discard("test-group", channels[0])
    assert server.subscribers("asgi__group__test-group") == 1
    await layer.group_discard("test-group", channels[1])
    await until(lambda: server.subscribers("asgi__group__test-group") == 0)


async def test_a_group_that_was_left_can_be_joined_again_at_once(layer: PubSubChannelLayer):
    channel = await layer.new_channel()
    await layer.group_add("test-group", channel)
    for number in range(20):
        await layer.group_discard("test-group", channel)
        await layer.group_add("test-group", channel)
        await layer.group_send("test-group", {"number": number})
        assert await take(layer, channel) == {"number": number}


async def test_joining_is_over_when_redis_has_confirmed_it(
    layer: PubSubChannelLayer, valkey_url: str
):
    # Published by another connection, so that nothing but the confirmation can order the two.
    server = Server(valkey_url)
    channel = await layer.new_channel()
    assert server.subscribers(channel) == 1
    await layer.group_add("test-group", channel)
    assert server.subscribers("asgi__group__test-group") == 1


async def test_a_full_channel_drops_its_oldest_messages_and_counts_them(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
):
    layer = make_layer(capacity=3)
    channel = await layer.new_channel()
    await layer.group_add("test-group", channel)
    for number in range(10):
        await layer.group_send("test-group", {"number": number})
    await until(lambda: layer.dropped_from_queues.total == 7)
    assert [(await take(layer, channel))["number"] for _ in range(3)] == [7, 8, 9]
    assert len([record for record in caplog.records if "Dropped" in record.message]) == 1


async def test_a_flush_makes_it_like_new(layer: PubSubChannelLayer, valkey_url: str):
    server = Server(valkey_url)
    before = server.info("connected_clients")
    channel = await layer.new_channel()
    await layer.group_add("test-group", channel)
    await layer.group_send("test-group", {"number": 1})
    assert server.info("connected_clients") == before + 2
    await layer.flush()
    await until(lambda: server.info("connected_clients") == before)
    assert not server.channels()

    with pytest.raises(RuntimeError, match="this process"):
        await layer.group_add("test-group", channel)
    channel = await layer.new_channel()
    await layer.send(channel, {"number": 2})
    assert await take(layer, channel) == {"number": 2}


async def test_a_flush_is_not_logged_as_a_lost_connection(
    layer: PubSubChannelLayer, caplog: pytest.LogCaptureFixture
):
    await layer.new_channel()
    with caplog.at_level(logging.INFO):
        await layer.flush()
    assert not caplog.records


async def test_a_send_that_is_cancelled_disturbs_nobody(layer: PubSubChannelLayer):
    channel = await layer.new_channel()
    cancelled = asyncio.create_task(layer.send(channel, {"number": 1}))
    await asyncio.sleep(0)
    cancelled.cancel()
    await layer.send(channel, {"number": 2})
    numbers = [(await take(layer, channel))["number"] for _ in range(2)]
    assert numbers == [1, 2]


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda layer: layer.new_channel(), id="new_channel"),
        pytest.param(lambda layer: layer.receive("general"), id="receive"),
    ],
)
async def test_a_subscription_that_is_cancelled_leaves_nothing(
    layer: PubSubChannelLayer,
    valkey_url: str,
    call: Callable[[PubSubChannelLayer], Awaitable[Any]],
):
    await layer.attach("keeps.connected", lambda data: None)
    joining = asyncio.ensure_future(call(layer))
    await asyncio.sleep(0)
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    await layer.attach("later", lambda data: None)  # Redis has answered all that came before
    assert Server(valkey_url).channels() == {"asgi:raw:keeps.connected", "asgi:raw:later"}
