"""Redis becomes unreachable, hangs, and returns; commands that wait meanwhile stay bounded."""

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

from chatproject.lib.pubsub import raw
from chatproject.lib.pubsub.layer import PubSubChannelLayer
from chatproject.lib.redis import connection
from chatproject.local.servers import ValkeyServer, free_port
from tests.lib.pubsub.conftest import MakeLayer
from tests.lib.pubsub.helpers import PATIENCE, Gate, Inbox, Server, until


@pytest.fixture
def frozen_valkey(own_valkey: ValkeyServer) -> Iterator[ValkeyServer]:
    """A Valkey that a test may stop with SIGSTOP: connections stay open, nothing answers."""
    yield own_valkey
    os.kill(own_valkey.pid, signal.SIGCONT)


@pytest.fixture
def unreachable() -> list[str]:
    """Hosts on a port without a listener."""
    return [f"redis://127.0.0.1:{free_port()}/0"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time in which a host must connect and answer."""
    monkeypatch.setattr(raw, "CONNECT_TIMEOUT", 0.2)
    monkeypatch.setattr(raw, "HEALTH_CHECK_INTERVAL", 0.1)


async def connected(layer: PubSubChannelLayer) -> Inbox:
    """Connect both links of the layer's host; returns the callback attached to run.1."""
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    layer.publish("run.1", b"connects")
    await inbox.wait(1)
    return inbox


# Unreachable from the start


async def test_publish_to_unreachable_host_is_counted(
    make_layer: MakeLayer, unreachable: list[str]
):
    layer = make_layer(unreachable)
    for _ in range(10):
        layer.publish("run.1", b"data")
    await until(lambda: layer.dropped_publishes.total == 10)


async def test_attach_to_unreachable_host_raises_and_leaves_nothing(
    make_layer: MakeLayer, own_valkey: ValkeyServer
):
    layer = make_layer([own_valkey.url])
    own_valkey.kill()
    for _ in range(2):
        attaching = asyncio.gather(
            *(layer.attach("run.1", Inbox()) for _ in range(3)), return_exceptions=True
        )
        for error in await asyncio.wait_for(attaching, PATIENCE):
            assert isinstance(error, RedisConnectionError)
    own_valkey.start()
    await layer.attach("later", Inbox())
    assert Server(own_valkey.url).channels() == {"asgi:raw:later"}


async def test_wrong_password_is_raised(make_layer: MakeLayer, own_valkey: ValkeyServer):
    Server(own_valkey.url).run("CONFIG", "SET", "requirepass", "secret")
    layer = make_layer([own_valkey.url.replace("redis://", "redis://:wrong@")])
    with pytest.raises(RedisConnectionError, match="invalid username-password"):
        await layer.attach("run.1", Inbox())
    right = make_layer([own_valkey.url.replace("redis://", "redis://:secret@")])
    await right.attach("run.1", Inbox())


async def test_refused_channel_is_raised_or_counted(
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
    layer.publish("forbidden", b"data")
    layer.publish("allowed", b"data")
    assert await inbox.wait(1) == [b"data"]
    await until(lambda: layer.dropped_publishes.total == 1)


async def test_subscription_refused_after_reconnect_is_logged(
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


async def test_killed_connections_restore_the_current_attachments(
    layer: PubSubChannelLayer, valkey_url: str
):
    server = Server(valkey_url)
    ann, bob, eve, reconnects = Inbox(), Inbox(), Inbox(), Inbox()
    await layer.attach("run.1", ann, reconnects)
    leaving = await layer.attach("run.1", bob)
    server.kill_connections()
    await reconnects.wait(1)
    await layer.attach("run.2", eve)
    await leaving.detach()
    server.kill_connections()
    await reconnects.wait(2)

    for group in ("run.1", "run.2"):
        assert server.publish(f"asgi:raw:{group}", b"data") == 1
    assert await ann.wait(1) == await eve.wait(1) == [b"data"]
    assert bob.items == []


async def test_publish_after_a_killed_connection_succeeds(
    layer: PubSubChannelLayer, valkey_url: str
):
    inbox = await connected(layer)
    publisher = layer._get_layer().publishers[0]
    Server(valkey_url).run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await until(lambda: not publisher._connection.is_open)
    layer.publish("run.1", b"after")
    assert await inbox.wait(2) == [b"connects", b"after"]


async def test_reconnect_is_reported_after_all_subscriptions(
    layer: PubSubChannelLayer, valkey_url: str
):
    server = Server(valkey_url)
    groups = [f"run.{number}" for number in range(50)]
    inboxes = [Inbox() for _ in groups]
    reconnects = Inbox()

    def on_reconnect(number: int) -> None:
        reconnects(number)
        if number == 0:  # called first: all the others must be subscribed already
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


async def test_reconnect_lost_at_once_is_reported_later(
    layer: PubSubChannelLayer, valkey_url: str, monkeypatch: pytest.MonkeyPatch
):
    """The connection ends between its last answer and the report, which comes too early then."""
    server, reconnects = Server(valkey_url), Inbox()
    was_lost_again = False
    await layer.attach("run.1", Inbox(), lambda: reconnects(server.subscribers("asgi:raw:run.1")))
    receive = connection.Connection.data_received

    def receive_and_end(self: connection.Connection, data: bytes) -> None:
        nonlocal was_lost_again
        receive(self, data)
        if b"pong" in data and not was_lost_again:
            was_lost_again = True
            self.end(RedisConnectionError("lost again"))

    monkeypatch.setattr(connection.Connection, "data_received", receive_and_end)
    server.kill_connections()
    assert (await reconnects.wait(2))[-1] == 1


async def test_failing_on_reconnect_is_logged_and_isolated(
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


async def test_restart_of_redis_is_survived(
    make_layer: MakeLayer, own_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
):
    layer = make_layer([own_valkey.url])
    inbox, reconnects = Inbox(), Inbox()
    await layer.attach("run.1", inbox, reconnects)

    own_valkey.kill()
    await until(lambda: not layer._get_layer().subscribers[0]._connection.is_open)
    with pytest.raises(RedisConnectionError):
        await layer.attach("run.1", Inbox())
    layer.publish("run.1", b"lost")
    await until(lambda: layer.dropped_publishes.total == 1)

    with caplog.at_level(logging.INFO):
        own_valkey.start()
        await reconnects.wait(1)
    layer.publish("run.1", b"after")
    assert await inbox.wait(1) == [b"after"]
    assert reconnects.items == [None]
    # One record for each fact, not for each attempt.
    messages = [record.message for record in caplog.records]
    assert len([text for text in messages if text.startswith("Lost a connection")]) == 1
    assert len([text for text in messages if text.startswith("Cannot connect")]) == 2
    assert len([text for text in messages if text.startswith("Subscribed to everything")]) == 1


async def test_attach_during_an_outage_changes_nothing(
    make_layer: MakeLayer, own_valkey: ValkeyServer
):
    """It raises, ends no other attachment, and is neither restored nor called back."""
    layer = make_layer([own_valkey.url])
    inbox, reconnects, never = Inbox(), Inbox(), Inbox()
    await layer.attach("run.1", inbox, reconnects)
    own_valkey.kill()
    await until(lambda: not layer._get_layer().subscribers[0]._connection.is_open)
    for group in ("run.1", "run.2"):
        with pytest.raises(RedisConnectionError):
            await asyncio.wait_for(layer.attach(group, never, never), PATIENCE)
    own_valkey.start()
    await reconnects.wait(1)
    assert Server(own_valkey.url).channels() == {"asgi:raw:run.1"}
    layer.publish("run.1", b"data")
    assert await inbox.wait(1) == [b"data"]
    assert never.items == []


async def test_first_connection_is_no_reconnect(make_layer: MakeLayer, own_valkey: ValkeyServer):
    own_valkey.stop()
    layer = make_layer([own_valkey.url])
    with pytest.raises(RedisConnectionError):
        await layer.attach("run.1", Inbox())
    own_valkey.start()
    inbox, reconnects = Inbox(), Inbox()
    await layer.attach("run.1", inbox, reconnects)
    layer.publish("run.1", b"data")
    assert await inbox.wait(1) == [b"data"]
    assert reconnects.items == []


async def test_garbage_from_redis_replaces_the_connection(make_layer: MakeLayer, valkey_url: str):
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


@pytest.mark.usefixtures("impatient")
async def test_idle_connection_outlives_every_timeout(
    make_layer: MakeLayer, valkey_url: str, caplog: pytest.LogCaptureFixture
):
    layer = make_layer([f"{valkey_url}?socket_timeout=0.1&socket_connect_timeout=0.1"])
    inbox, reconnects = Inbox(), Inbox()
    await layer.attach("run.1", inbox, reconnects)
    layer.publish("run.1", b"connects")
    await asyncio.sleep(1.0)
    layer.publish("run.1", b"data")
    assert await inbox.wait(2) == [b"connects", b"data"]
    assert reconnects.items == []
    assert not caplog.records


@pytest.mark.usefixtures("impatient")
async def test_silent_host_is_given_up(make_layer: MakeLayer, frozen_valkey: ValkeyServer):
    layer = make_layer([frozen_valkey.url])
    inbox, reconnects = await connected(layer), Inbox()
    await layer.attach("run.1", Inbox(), reconnects)
    os.kill(frozen_valkey.pid, signal.SIGSTOP)
    with pytest.raises(RedisConnectionError, match="silent"):
        await asyncio.wait_for(layer.attach("run.2", Inbox()), PATIENCE)
    layer.publish("run.1", b"lost")
    await until(lambda: layer.dropped_publishes.total == 1)

    os.kill(frozen_valkey.pid, signal.SIGCONT)
    await reconnects.wait(1)
    layer.publish("run.1", b"data")
    assert b"data" in await inbox.wait(2)


@pytest.mark.usefixtures("impatient")
async def test_pause_of_this_process_is_no_silence(
    layer: PubSubChannelLayer, caplog: pytest.LogCaptureFixture
):
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    for _ in range(10):
        await asyncio.sleep(0)
        time.sleep(0.11)  # noqa: ASYNC251  longer than the interval, in every turn of the loop
    layer.publish("run.1", b"data")
    assert await inbox.wait(1) == [b"data"]
    assert not caplog.records


@pytest.mark.usefixtures("impatient")
async def test_unfinished_connect_is_given_up(make_layer: MakeLayer, frozen_valkey: ValkeyServer):
    os.kill(frozen_valkey.pid, signal.SIGSTOP)
    layer = make_layer([frozen_valkey.url])
    with pytest.raises(RedisConnectionError):
        await asyncio.wait_for(layer.attach("run.1", Inbox()), PATIENCE)
    layer.publish("run.1", b"data")
    await until(lambda: layer.dropped_publishes.total == 1)


async def test_flush_does_not_wait_for_silent_host(
    make_layer: MakeLayer, frozen_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
):
    layer = make_layer([frozen_valkey.url])
    await connected(layer)
    attachment = await layer.attach("run.3", Inbox())
    os.kill(frozen_valkey.pid, signal.SIGSTOP)
    layer.publish("run.1", b"data")
    await attachment.detach()
    attaching = asyncio.create_task(layer.attach("run.2", Inbox()))
    await asyncio.sleep(0)
    await asyncio.wait_for(layer.flush(), PATIENCE)
    with pytest.raises(RedisConnectionError, match="closed"):
        await attaching
    assert layer.dropped_publishes.total == 1
    gc.collect()
    assert "never retrieved" not in caplog.text


# Too much


async def test_bytes_waiting_for_host_are_bounded(
    make_layer: MakeLayer, frozen_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connection, "MAX_BYTES", 2**20)
    layer = make_layer([frozen_valkey.url])
    inbox = await connected(layer)
    os.kill(frozen_valkey.pid, signal.SIGSTOP)
    data = bytes(2**16)
    sent = 0
    async with asyncio.timeout(PATIENCE):
        while layer.dropped_publishes.total == 0:
            layer.publish("run.1", data)
            sent += len(data)
            await asyncio.sleep(0)
    assert sent < 40 * 2**20  # the sockets' own buffers hold some megabytes as well

    waiting = layer._get_layer().publishers[0]._connection
    assert waiting._size < 2**20 + 2 * len(data)
    os.kill(frozen_valkey.pid, signal.SIGCONT)
    await until(lambda: not waiting.has_unanswered)
    layer.publish("run.1", b"later")
    await until(lambda: inbox.items[-1] == b"later")


async def test_commands_waiting_for_answers_are_bounded(
    make_layer: MakeLayer, frozen_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connection, "MAX_UNANSWERED", 100)
    layer = make_layer([frozen_valkey.url])
    inbox = await connected(layer)
    os.kill(frozen_valkey.pid, signal.SIGSTOP)
    for number in range(130):
        layer.publish("run.1", b"%d" % number)
    assert layer.dropped_publishes.total == 30
    attaching = [asyncio.create_task(layer.attach(f"many.{n}", Inbox())) for n in range(130)]
    await asyncio.sleep(0)
    refused = [task for task in attaching if task.done() and task.exception()]
    assert 30 <= len(refused) < 40

    os.kill(frozen_valkey.pid, signal.SIGCONT)
    assert (await inbox.wait(101))[1:] == [b"%d" % number for number in range(100)]
    await asyncio.gather(*attaching, return_exceptions=True)
    await layer.attach("run.2", Inbox())


async def test_commands_waiting_for_first_connection_are_bounded(
    make_layer: MakeLayer, unreachable: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connection, "MAX_BYTES", 10_000)
    layer = make_layer(unreachable)
    for _ in range(100):
        layer.publish("run.1", bytes(1_000))
    assert 85 <= layer.dropped_publishes.total <= 95
    await until(lambda: layer.dropped_publishes.total == 100)
