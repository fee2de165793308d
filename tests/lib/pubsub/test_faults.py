"""Redis goes away, hangs, comes back; and what waits meanwhile stays bounded."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import signal
import time
from collections.abc import Iterator

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from chatproject.embedded import ValkeyServer, free_port
from chatproject.lib.pubsub import layer as channel_layer
from chatproject.lib.pubsub.layer import PubSubChannelLayer
from tests.lib.pubsub.conftest import MakeLayer
from tests.lib.pubsub.helpers import PATIENCE, Gate, Inbox, Server, until


@pytest.fixture
def frozen_valkey(own_valkey: ValkeyServer) -> Iterator[ValkeyServer]:
    """One that a test may stop with SIGSTOP: connections stay open, nothing answers."""
    yield own_valkey
    os.kill(own_valkey.pid, signal.SIGCONT)


@pytest.fixture
def nobody() -> list[str]:
    """Hosts where nobody listens."""
    return [f"redis://127.0.0.1:{free_port()}/0"]


# Never there


@pytest.mark.parametrize("method", ["send", "group_send"])
async def test_sending_raises_when_redis_is_away(
    make_layer: MakeLayer, nobody: list[str], method: str
):
    layer = make_layer(nobody)
    for _ in range(3):
        with pytest.raises(RedisConnectionError):
            await asyncio.wait_for(getattr(layer, method)("name", {"type": "x"}), PATIENCE)
    assert layer.dropped_publishes.total == 0


async def test_publishing_drops_and_counts_when_redis_is_away(
    make_layer: MakeLayer, nobody: list[str]
):
    layer = make_layer(nobody)
    for _ in range(10):
        layer.publish("run.1", b"data")
    await until(lambda: layer.dropped_publishes.total == 10)


async def test_joining_raises_when_redis_is_away_and_leaves_nothing(
    make_layer: MakeLayer, own_valkey: ValkeyServer
):
    layer = make_layer([own_valkey.url])
    own_valkey.kill()
    for join in (
        lambda: layer.attach("run.1", Inbox()),
        lambda: layer.attach("run.1", Inbox()),
        lambda: layer.new_channel(),
        lambda: layer.receive("general"),
    ):
        with pytest.raises(RedisConnectionError):
            await asyncio.wait_for(join(), PATIENCE)
    assert not layer._get_layer()._channels
    own_valkey.start()
    await layer.attach("later", Inbox())
    assert Server(own_valkey.url).channels() == {"asgi:raw:later"}


async def test_everybody_who_waits_for_a_channel_hears_that_redis_is_away(
    make_layer: MakeLayer, nobody: list[str]
):
    layer = make_layer(nobody)
    receiving = [asyncio.create_task(layer.receive("general")) for _ in range(3)]
    outcomes = asyncio.gather(*receiving, return_exceptions=True)
    for error in await asyncio.wait_for(outcomes, PATIENCE):
        assert isinstance(error, RedisConnectionError)


async def test_a_wrong_password_reaches_whoever_waits(
    make_layer: MakeLayer, own_valkey: ValkeyServer
):
    Server(own_valkey.url).run("CONFIG", "SET", "requirepass", "secret")
    layer = make_layer([own_valkey.url.replace("redis://", "redis://:wrong@")])
    with pytest.raises(RedisConnectionError, match="invalid username-password"):
        await layer.send("name", {})
    with pytest.raises(RedisConnectionError, match="invalid username-password"):
        await layer.attach("run.1", Inbox())
    right = make_layer([own_valkey.url.replace("redis://", "redis://:secret@")])
    await right.attach("run.1", Inbox())


async def test_what_redis_refuses_reaches_whoever_waits(
    make_layer: MakeLayer, own_valkey: ValkeyServer
):
    Server(own_valkey.url).run(
        *("ACL", "SETUSER", "limited", "on", ">secret", "+@all", "resetchannels", "&*allowed*")
    )
    layer = make_layer([own_valkey.url.replace("redis://", "redis://limited:secret@")])
    inbox = Inbox()
    refused, _, again = await asyncio.gather(
        layer.attach("forbidden", Inbox()),
        layer.attach("allowed", inbox),
        layer.attach("forbidden", Inbox()),
        return_exceptions=True,
    )
    assert isinstance(refused, ResponseError)
    assert isinstance(again, ResponseError)
    with pytest.raises(ResponseError, match="NOPERM"):
        await layer.send("forbidden", {})
    layer.publish("forbidden", b"data")
    layer.publish("allowed", b"data")
    assert await inbox.wait(1) == [b"data"]
    await until(lambda: layer.dropped_publishes.total == 1)


async def test_a_subscription_that_redis_refuses_after_a_reconnect_is_logged(
    make_layer: MakeLayer, own_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
):
    server = Server(own_valkey.url)
    server.run(*("ACL", "SETUSER", "ann", "on", ">secret", "+@all", "&*"))
    layer = make_layer([own_valkey.url.replace("redis://", "redis://ann:secret@")])
    reconnects, inbox = Inbox(), Inbox()
    await layer.attach("forbidden", Inbox())
    await layer.attach("allowed", inbox, reconnects)
    server.run("ACL", "SETUSER", "ann", "resetchannels", "&*allowed*")  # disconnects as well
    await reconnects.wait(1)
    layer.publish("allowed", b"data")
    assert await inbox.wait(1) == [b"data"]
    refusals = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(refusals) == 1
    assert "asgi:raw:forbidden" in refusals[0]


# Lost and found


async def test_killed_connections_come_back_with_everything(
    layer: PubSubChannelLayer, valkey_url: str
):
    server = Server(valkey_url)
    ann, bob, eve = [await layer.new_channel() for _ in range(3)]
    await layer.group_add("test-group", ann)
    await layer.group_add("test-group", bob)
    server.kill_connections()
    await until(lambda: server.subscribers(ann) == 1)
    await layer.group_add("test-group", eve)
    await layer.group_discard("test-group", bob)
    server.kill_connections()
    await until(lambda: server.subscribers("asgi__group__test-group") == 1)

    await layer.group_send("test-group", {"number": 1})
    await layer.send(bob, {"number": 2})
    for channel, number in ((ann, 1), (eve, 1), (bob, 2)):
        assert await asyncio.wait_for(layer.receive(channel), PATIENCE) == {"number": number}


async def test_a_send_after_its_connection_was_killed_succeeds(
    layer: PubSubChannelLayer, valkey_url: str
):
    channel = await layer.new_channel()
    await layer.send(channel, {"number": 1})
    Server(valkey_url).run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: not layer._get_layer()._hosts[0].publisher._connection.is_open)
    await layer.send(channel, {"number": 2})
    assert [(await layer.receive(channel))["number"] for _ in range(2)] == [1, 2]


async def test_it_reports_a_reconnect_once_everything_is_subscribed(
    layer: PubSubChannelLayer, valkey_url: str
):
    server = Server(valkey_url)
    groups = [f"run.{number}" for number in range(50)]
    inboxes = [Inbox() for _ in groups]
    reconnects = Inbox()

    def on_reconnect(number: int) -> None:
        reconnects(number)
        if number == 0:  # the first to hear of it: all the others must be subscribed already
            for group in groups:
                server.publish(f"asgi:raw:{group}", b"back")

    for number, group in enumerate(groups):
        await layer.attach(group, inboxes[number], functools.partial(on_reconnect, number))
    await layer.attach("run.0", Inbox())  # without on_reconnect
    gone = await layer.attach("run.0", Inbox(), lambda: reconnects("gone"))
    await gone.detach()

    for round_ in (1, 2):
        server.kill_connections()
        await reconnects.wait(50 * round_)
        for inbox in inboxes:
            assert len(await inbox.wait(round_)) == round_
    assert sorted(reconnects.items) == sorted([*range(50), *range(50)])


async def test_an_on_reconnect_that_fails_is_logged_and_disturbs_nobody(
    layer: PubSubChannelLayer, valkey_url: str, caplog: pytest.LogCaptureFixture
):
    def fail() -> None:
        raise ZeroDivisionError("a bug of on_reconnect")

    reconnects = Inbox()
    await layer.attach("run.1", Inbox(), fail)
    await layer.attach("run.1", Inbox(), reconnects)
    Server(valkey_url).kill_connections()
    await reconnects.wait(1)
    assert "a bug of on_reconnect" in caplog.text


async def test_it_outlives_a_restart_of_redis(
    make_layer: MakeLayer, own_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
):
    layer = make_layer([own_valkey.url])
    inbox, reconnects = Inbox(), Inbox()
    channel = await layer.new_channel()
    await layer.group_add("test-group", channel)
    await layer.attach("run.1", inbox, reconnects)

    own_valkey.kill()
    with pytest.raises(RedisConnectionError):
        await layer.group_send("test-group", {"number": 1})
    with pytest.raises(RedisConnectionError):
        await layer.attach("run.1", Inbox())
    layer.publish("run.1", b"lost")
    await until(lambda: layer.dropped_publishes.total == 1)

    with caplog.at_level(logging.INFO):
        own_valkey.start()
        await reconnects.wait(1)
    layer.publish("run.1", b"after")
    assert await inbox.wait(1) == [b"after"]
    await layer.group_send("test-group", {"number": 2})
    assert await asyncio.wait_for(layer.receive(channel), PATIENCE) == {"number": 2}
    assert reconnects.items == [None]
    # One line for each fact, not for each attempt.
    messages = [record.message for record in caplog.records]
    assert len([text for text in messages if text.startswith("Lost a connection")]) == 1
    assert len([text for text in messages if text.startswith("Cannot connect")]) == 2
    assert len([text for text in messages if text.startswith("Subscribed to everything")]) == 1


async def test_joining_again_while_redis_is_away_does_not_end_a_membership(
    make_layer: MakeLayer, own_valkey: ValkeyServer
):
    layer = make_layer([own_valkey.url], on_disconnect="redis.lost", on_reconnect="redis.back")
    channel = await layer.new_channel()
    await layer.group_add("test-group", channel)
    own_valkey.kill()
    assert await asyncio.wait_for(layer.receive(channel), PATIENCE) == {"type": "redis.lost"}
    with pytest.raises(RedisConnectionError):
        await asyncio.wait_for(layer.group_add("test-group", channel), PATIENCE)
    own_valkey.start()
    assert await asyncio.wait_for(layer.receive(channel), PATIENCE) == {"type": "redis.back"}
    await layer.group_send("test-group", {"number": 1})
    assert await asyncio.wait_for(layer.receive(channel), PATIENCE) == {"number": 1}


async def test_an_attach_while_redis_is_away_neither_reconnects_nor_lasts(
    make_layer: MakeLayer, own_valkey: ValkeyServer
):
    layer = make_layer([own_valkey.url])
    kept, never = Inbox(), Inbox()
    await layer.attach("run.1", Inbox(), kept)
    own_valkey.kill()
    with pytest.raises(RedisConnectionError):
        await layer.attach("run.2", never, never)
    own_valkey.start()
    await kept.wait(1)
    assert Server(own_valkey.url).channels() == {"asgi:raw:run.1"}
    assert never.items == []


async def test_channels_are_told_of_a_lost_connection_and_of_its_return(
    make_layer: MakeLayer, valkey_url: str
):
    layer = make_layer(on_disconnect="redis.lost", on_reconnect="redis.back")
    channels = [await layer.new_channel() for _ in range(2)]
    Server(valkey_url).kill_connections()
    for channel in channels:
        for message_type in ("redis.lost", "redis.back"):
            message = await asyncio.wait_for(layer.receive(channel), PATIENCE)
            assert message == {"type": message_type}
    await layer.send(channels[0], {"type": "x"})
    assert await asyncio.wait_for(layer.receive(channels[0]), PATIENCE) == {"type": "x"}


async def test_nobody_is_told_of_a_first_connection(
    make_layer: MakeLayer, own_valkey: ValkeyServer
):
    own_valkey.stop()
    layer = make_layer([own_valkey.url], on_reconnect="redis.back")
    with pytest.raises(RedisConnectionError):
        await layer.new_channel()
    own_valkey.start()
    reconnects = Inbox()
    channel = await layer.new_channel()
    await layer.attach("run.1", Inbox(), reconnects)
    await layer.send(channel, {"type": "x"})
    assert await asyncio.wait_for(layer.receive(channel), PATIENCE) == {"type": "x"}
    assert reconnects.items == []


async def test_garbage_from_redis_ends_the_connection_and_a_new_one_takes_over(
    make_layer: MakeLayer, valkey_url: str
):
    async with Gate(valkey_url) as gate:
        layer = make_layer([gate.url])
        inbox, reconnects = Inbox(), Inbox()
        await layer.attach("run.1", inbox, reconnects)
        garbage = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+UNASKED\r\n"]
        for number, data in enumerate(garbage, 1):
            gate.send(data)
            await reconnects.wait(number)
        Server(valkey_url).publish("asgi:raw:run.1", b"data")
        assert await inbox.wait(1) == [b"data"]
        await layer.flush()


async def test_attempts_to_connect_become_rare(make_layer: MakeLayer):
    attempts = 0

    def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    layer = make_layer([f"redis://127.0.0.1:{port}"])
    give_up_at = time.monotonic() + 1.5
    while time.monotonic() < give_up_at:
        layer.publish("run.1", b"data")
        await asyncio.sleep(0.005)
    server.close()
    await server.wait_closed()
    assert 1 < attempts < 15
    assert layer.dropped_publishes.total > 50


# Silence


async def test_idling_longer_than_every_timeout_is_no_fault(
    make_layer: MakeLayer, valkey_url: str, caplog: pytest.LogCaptureFixture
):
    layer = make_layer(
        [f"{valkey_url}?socket_timeout=0.1&socket_connect_timeout=0.1"],
        connect_timeout=0.2,
        health_check_interval=0.05,
    )
    inbox, reconnects = Inbox(), Inbox()
    channel = await layer.new_channel()
    receiving = asyncio.create_task(layer.receive(channel))
    await layer.attach("run.1", inbox, reconnects)
    await layer.group_send("nobody", {})
    await asyncio.sleep(1.0)
    layer.publish("run.1", b"data")
    await layer.send(channel, {"number": 1})
    assert await inbox.wait(1) == [b"data"]
    assert await asyncio.wait_for(receiving, PATIENCE) == {"number": 1}
    assert reconnects.items == []
    assert not caplog.records


async def test_a_host_that_falls_silent_is_given_up(
    make_layer: MakeLayer, frozen_valkey: ValkeyServer
):
    layer = make_layer(
        [frozen_valkey.url],
        on_disconnect="redis.lost",
        health_check_interval=0.1,
        connect_timeout=0.2,
    )
    inbox, reconnects = Inbox(), Inbox()
    channel = await layer.new_channel()
    await layer.attach("run.1", inbox, reconnects)
    await layer.send(channel, {"type": "x"})
    await layer.receive(channel)

    os.kill(frozen_valkey.pid, signal.SIGSTOP)
    message = await asyncio.wait_for(layer.receive(channel), PATIENCE)
    assert message == {"type": "redis.lost"}
    with pytest.raises(RedisConnectionError):
        await asyncio.wait_for(layer.send(channel, {"type": "y"}), PATIENCE)

    os.kill(frozen_valkey.pid, signal.SIGCONT)
    await reconnects.wait(1)
    layer.publish("run.1", b"data")
    assert b"data" in await inbox.wait(1)


async def test_a_send_is_not_left_hanging_by_a_host_that_falls_silent(
    make_layer: MakeLayer, frozen_valkey: ValkeyServer
):
    layer = make_layer([frozen_valkey.url], health_check_interval=0.1)
    await layer.send("name", {})
    os.kill(frozen_valkey.pid, signal.SIGSTOP)
    with pytest.raises(RedisConnectionError, match="silent"):
        await asyncio.wait_for(layer.send("name", {}), PATIENCE)


async def test_a_pause_of_this_process_is_not_taken_for_silence(
    make_layer: MakeLayer, valkey_url: str, caplog: pytest.LogCaptureFixture
):
    layer = make_layer(health_check_interval=0.05)
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    for _ in range(20):
        await asyncio.sleep(0)
        time.sleep(0.06)  # noqa: ASYNC251  longer than the interval, in every turn of the loop
    layer.publish("run.1", b"data")
    assert await inbox.wait(1) == [b"data"]
    assert not caplog.records


async def test_a_host_that_does_not_finish_connecting_is_given_up(
    make_layer: MakeLayer, frozen_valkey: ValkeyServer
):
    os.kill(frozen_valkey.pid, signal.SIGSTOP)
    layer = make_layer([frozen_valkey.url], connect_timeout=0.1)
    with pytest.raises(RedisConnectionError):
        await asyncio.wait_for(layer.attach("run.1", Inbox()), PATIENCE)
    with pytest.raises(RedisConnectionError):
        await asyncio.wait_for(layer.send("name", {}), PATIENCE)


async def test_a_flush_does_not_wait_for_a_host_that_is_silent(
    make_layer: MakeLayer, frozen_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
):
    layer = make_layer([frozen_valkey.url])
    attachment = await layer.attach("run.1", Inbox())
    await layer.send("name", {})
    os.kill(frozen_valkey.pid, signal.SIGSTOP)
    layer.publish("run.1", b"data")
    await attachment.detach()
    attaching = asyncio.create_task(layer.attach("run.2", Inbox()))
    await asyncio.sleep(0)
    await asyncio.wait_for(layer.flush(), PATIENCE)
    with pytest.raises(RedisConnectionError, match="flushed"):
        await attaching
    assert layer.dropped_publishes.total == 1
    gc.collect()
    assert "never retrieved" not in caplog.text


# Too much


async def test_what_waits_for_a_host_is_bounded_in_bytes(
    make_layer: MakeLayer, frozen_valkey: ValkeyServer
):
    layer = make_layer([frozen_valkey.url], buffer_bytes=2**20)
    await layer.send("name", {})
    os.kill(frozen_valkey.pid, signal.SIGSTOP)
    data = bytes(2**16)
    sent = 0
    async with asyncio.timeout(PATIENCE):
        while layer.dropped_publishes.total == 0:
            layer.publish("run.1", data)
            sent += len(data)
            await asyncio.sleep(0)
    assert sent < 40 * 2**20  # the sockets' own buffers hold some megabytes as well
    with pytest.raises(RedisConnectionError, match="waits"):
        await layer.send("name", {})

    waiting = layer._get_layer()._hosts[0].publisher._connection
    assert waiting._size < 2**20 + 2 * len(data)
    os.kill(frozen_valkey.pid, signal.SIGCONT)
    await until(lambda: not waiting.has_unanswered)
    await layer.send("name", {})


async def test_what_waits_for_an_answer_is_bounded(
    make_layer: MakeLayer, frozen_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(channel_layer, "BUFFER_COMMANDS", 100)
    layer = make_layer([frozen_valkey.url])
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    await layer.send("name", {})
    os.kill(frozen_valkey.pid, signal.SIGSTOP)
    for number in range(130):
        layer.publish("run.1", b"%d" % number)
    assert layer.dropped_publishes.total == 30
    attaching = [asyncio.create_task(layer.attach(f"many.{n}", Inbox())) for n in range(130)]
    await asyncio.sleep(0)
    refused = [task for task in attaching if task.done() and task.exception()]
    assert 30 <= len(refused) < 40

    os.kill(frozen_valkey.pid, signal.SIGCONT)
    assert await inbox.wait(100) == [b"%d" % number for number in range(100)]
    await asyncio.gather(*attaching, return_exceptions=True)
    await layer.attach("run.2", Inbox())


async def test_what_waits_for_the_first_connection_is_bounded(
    make_layer: MakeLayer, nobody: list[str]
):
    layer = make_layer(nobody, buffer_bytes=10_000)
    for _ in range(100):
        layer.publish("run.1", bytes(1_000))
    assert 85 <= layer.dropped_publishes.total <= 95
    await until(lambda: layer.dropped_publishes.total == 100)
