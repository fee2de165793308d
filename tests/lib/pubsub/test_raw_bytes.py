"""attach and publish: ready-made bytes, and when they are delivered to whom."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest
import redis
import redis.asyncio
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from chatproject.lib.pubsub import layer as channel_layer
from chatproject.lib.pubsub.layer import PubSubChannelLayer
from tests.lib.pubsub.conftest import MakeLayer
from tests.lib.pubsub.helpers import Gate, Inbox, Server, until


@pytest.mark.parametrize(
    "data", [b"", b"\x00\xff\r\n$3\r\n", b'{"text":"caf\xc3\xa9"}', b"x" * 10**6]
)
async def test_the_bytes_arrive_as_they_were(
    layer: PubSubChannelLayer, other_layer: PubSubChannelLayer, data: bytes
):
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    layer.publish("run.1", data)
    other_layer.publish("run.1", data)
    assert await inbox.wait(2) == [data, data]


async def test_everybody_attached_gets_the_bytes_in_order(
    layer: PubSubChannelLayer, other_layer: PubSubChannelLayer
):
    inboxes = [Inbox() for _ in range(4)]
    for number, inbox in enumerate(inboxes):
        await (layer, other_layer)[number % 2].attach("run.1", inbox)
    expected = [b"%d" % number for number in range(100)]
    for data in expected:
        layer.publish("run.1", data)
    for inbox in inboxes:
        assert await inbox.wait(100) == expected


async def test_the_first_publish_of_a_process_waits_for_its_connection(
    layer: PubSubChannelLayer, other_layer: PubSubChannelLayer
):
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    other_layer.publish("run.1", b"first")
    assert await inbox.wait(1) == [b"first"]
    assert other_layer.dropped_publishes.total == 0


async def test_publishes_of_one_turn_leave_together(layer: PubSubChannelLayer, valkey_url: str):
    server = Server(valkey_url)
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    await layer.group_send("nobody", {})  # connects
    before = server.info("total_reads_processed")
    for number in range(500):
        layer.publish("run.1", b"%d" % number)
    await asyncio.gather(*(layer.group_send("nobody", {}) for _ in range(500)))
    await inbox.wait(500)
    assert server.info("total_reads_processed") - before < 50


async def test_attachments_share_one_subscription(layer: PubSubChannelLayer, valkey_url: str):
    server = Server(valkey_url)
    server.run("CONFIG RESETSTAT")
    inboxes = [Inbox() for _ in range(10)]
    attachments = await asyncio.gather(*(layer.attach("run.1", inbox) for inbox in inboxes))
    assert server.info("cmdstat_subscribe")["calls"] == 1
    assert server.subscribers("asgi:raw:run.1") == 1
    layer.publish("run.1", b"to all")
    for inbox in inboxes:
        await inbox.wait(1)

    for attachment in attachments[:-1]:
        await attachment.detach()
    assert server.subscribers("asgi:raw:run.1") == 1
    layer.publish("run.1", b"to the last one")
    assert await inboxes[-1].wait(2) == [b"to all", b"to the last one"]
    assert [inbox.items for inbox in inboxes[:-1]] == [[b"to all"]] * 9

    await attachments[-1].detach()
    await until(lambda: server.subscribers("asgi:raw:run.1") == 0)


async def test_detaching_is_over_at_once_and_can_be_repeated(layer: PubSubChannelLayer):
    gone, later = Inbox(), Inbox()
    attachment = await layer.attach("run.1", gone)
    await layer.attach("run.1", later)
    layer.publish("run.1", b"on its way")
    await attachment.detach()
    await attachment.detach()
    await later.wait(1)
    assert gone.items == []


async def test_a_group_can_be_attached_again_while_it_is_being_left(
    layer: PubSubChannelLayer, valkey_url: str
):
    inbox = Inbox()
    for number in range(20):
        attachment = await layer.attach("run.1", inbox)
        assert Server(valkey_url).publish("asgi:raw:run.1", b"%d" % number) == 1
        await attachment.detach()
        again = await layer.attach("run.1", inbox)
        assert Server(valkey_url).publish("asgi:raw:run.1", b"%d again" % number) == 1
        await inbox.wait(2 * number + 2)
        await again.detach()


async def test_attach_waits_for_the_answer_to_its_own_subscription(
    make_layer: MakeLayer, valkey_url: str
):
    """Joined, left and joined again: Redis answers three times, and only the last one counts."""
    async with Gate(valkey_url) as gate:
        layer = make_layer([gate.url])
        probe, inbox = Inbox(), Inbox()
        await layer.attach("probe", probe)

        gate.is_holding = True
        first = asyncio.create_task(layer.attach("run.1", Inbox()))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(layer.attach("run.1", inbox))
        await until(lambda: gate.held.count(b"asgi:raw:run.1") == 3)

        gate.let_through(gate.held.index(b"*3", 1))
        gate.send(b"*3\r\n$7\r\nmessage\r\n$14\r\nasgi:raw:probe\r\n$2\r\nup\r\n")
        assert await probe.wait(1) == [b"up"]  # so the first answer has been read too
        await asyncio.sleep(0.01)
        assert not second.done()

        gate.let_through(len(gate.held))
        gate.is_holding = False
        await second
        layer.publish("run.1", b"after it")
        assert await inbox.wait(1) == [b"after it"]
        await layer.flush()


async def test_a_callback_that_fails_is_logged_and_disturbs_nobody(
    layer: PubSubChannelLayer, caplog: pytest.LogCaptureFixture
):
    def fail(data: bytes) -> None:
        raise ZeroDivisionError("a bug of the callback")

    inbox = Inbox()
    await layer.attach("run.1", fail)
    await layer.attach("run.1", inbox)
    layer.publish("run.1", b"one")
    layer.publish("run.1", b"two")
    assert await inbox.wait(2) == [b"one", b"two"]
    assert "a bug of the callback" in caplog.text
    assert layer.dropped_publishes.total == 0


async def test_callbacks_do_not_run_in_the_context_of_whoever_connected(
    layer: PubSubChannelLayer, valkey_url: str
):
    user: ContextVar[str] = ContextVar("user", default="nobody")
    seen, reconnects = Inbox(), Inbox()
    user.set("ann")
    await layer.attach("run.1", lambda data: seen(user.get()), lambda: reconnects(user.get()))
    layer.publish("run.1", b"data")
    assert await seen.wait(1) == ["nobody"]
    Server(valkey_url).kill_connections()
    assert await reconnects.wait(1) == ["nobody"]


async def test_callbacks_may_attach_and_detach(layer: PubSubChannelLayer):
    attached: list[asyncio.Task[object]] = []
    second = Inbox()

    def swap(data: bytes) -> None:
        attached.append(asyncio.create_task(first_attachment.detach()))
        attached.append(asyncio.create_task(layer.attach("run.1", second)))

    first_attachment = await layer.attach("run.1", swap)
    layer.publish("run.1", b"swap")
    await until(lambda: len(attached) == 2 and all(task.done() for task in attached))
    layer.publish("run.1", b"next")
    assert await second.wait(1) == [b"next"]
    assert len(attached) == 2


async def test_raw_bytes_do_not_reach_channels_groups_of_the_same_name(
    layer: PubSubChannelLayer,
):
    inbox = Inbox()
    channel = await layer.new_channel()
    await layer.group_add("run.1", channel)
    await layer.attach("run.1", inbox)
    layer.publish("run.1", b"\xc1 is no msgpack")
    await layer.group_send("run.1", {"number": 1})
    assert await layer.receive(channel) == {"number": 1}
    assert await inbox.wait(1) == [b"\xc1 is no msgpack"]


async def test_a_cancelled_attach_leaves_nothing(layer: PubSubChannelLayer, valkey_url: str):
    await layer.attach("keeps.connected", Inbox())
    attaching = [asyncio.create_task(layer.attach("run.1", Inbox())) for _ in range(2)]
    await asyncio.sleep(0)
    for task in attaching:
        task.cancel()
    await asyncio.gather(*attaching, return_exceptions=True)
    await layer.attach("later", Inbox())  # Redis has answered all that came before
    assert Server(valkey_url).subscribers("asgi:raw:run.1") == 0


async def test_a_cancelled_attach_does_not_disturb_the_others(layer: PubSubChannelLayer):
    inbox = Inbox()
    cancelled = asyncio.create_task(layer.attach("run.1", Inbox()))
    kept = asyncio.create_task(layer.attach("run.1", inbox))
    await asyncio.sleep(0)
    cancelled.cancel()
    await kept
    layer.publish("run.1", b"data")
    assert await inbox.wait(1) == [b"data"]


async def test_a_flush_lets_leave_what_was_published(
    layer: PubSubChannelLayer, other_layer: PubSubChannelLayer
):
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    other_layer.publish("run.1", b"before it is connected")
    await other_layer.flush()
    other_layer.publish("run.1", b"and again")
    await other_layer.flush()
    assert await inbox.wait(2) == [b"before it is connected", b"and again"]


@pytest.mark.parametrize("is_connected", [True, False])
async def test_a_loop_that_ends_lets_leave_what_was_published(
    layer: PubSubChannelLayer, valkey_url: str, is_connected: bool
):
    server = Server(valkey_url)
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    before = server.info("total_connections_received")

    async def publish_and_end() -> None:
        if is_connected:
            await layer.send("nobody", {})
        layer.publish("run.1", b"last words")

    await asyncio.to_thread(asyncio.run, publish_and_end())
    assert await inbox.wait(1) == [b"last words"]
    # The end of a loop interrupts connecting, which then starts again. (One asks for the number.)
    most = 1 if is_connected else 2
    assert server.info("total_connections_received") - before <= most + 1


async def test_cancelling_everything_does_not_cost_it_its_connections(
    layer: PubSubChannelLayer, valkey_url: str
):
    """As the end of a loop does, before the layer is flushed."""
    server = Server(valkey_url)
    first, second = Inbox(), Inbox()
    await layer.attach("run.1", first)
    layer.publish("run.1", b"connects")
    await first.wait(1)
    before = server.info("total_connections_received")
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    await layer.attach("run.2", second)
    layer.publish("run.1", b"data")
    layer.publish("run.2", b"data")
    await second.wait(1)
    assert await first.wait(2) == [b"connects", b"data"]
    assert server.info("total_connections_received") - before == 1  # asks for it


async def test_a_flush_forgets_attachments(layer: PubSubChannelLayer, valkey_url: str):
    forgotten, inbox, reconnects = Inbox(), Inbox(), Inbox()
    attachment = await layer.attach("run.1", forgotten, forgotten)
    await layer.flush()
    await layer.attach("run.1", inbox, reconnects)
    Server(valkey_url).kill_connections()
    await reconnects.wait(1)
    await attachment.detach()
    layer.publish("run.1", b"data")
    assert await inbox.wait(1) == [b"data"]
    assert forgotten.items == []


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
    assert server.info("total_connections_received") - before <= 4 + 1  # one asks for it


async def test_synchronous_publishing_refuses_to_block_an_event_loop(layer: PubSubChannelLayer):
    with pytest.raises(RuntimeError, match=r"get_layer\(\).publish\(\)"):
        layer.publish_sync("run.1", b"data")


def test_synchronous_publishing_drops_and_counts_when_redis_is_away(
    caplog: pytest.LogCaptureFixture,
):
    layer = PubSubChannelLayer(hosts=["redis://127.0.0.1:1"])
    for _ in range(5):
        layer.publish_sync("run.1", b"data")
    assert layer.dropped_publishes.total == 5
    assert len([record for record in caplog.records if "Dropped" in record.message]) == 1


# The project's layer

BACKEND = "chatproject.lib.pubsub.layer.PubSubChannelLayer"


def settings(hosts: list[object], backend: str = BACKEND) -> override_settings:
    config = {"hosts": hosts} if backend == BACKEND else {}
    return override_settings(CHANNEL_LAYERS={"default": {"BACKEND": backend, "CONFIG": config}})


async def test_the_projects_layer_is_published_to_from_everywhere(valkey_url: str):
    with settings([valkey_url]):
        layer = channel_layer.get_layer()
        assert layer is channel_layer.get_layer()
        inbox = Inbox()
        await layer.attach("run.1", inbox)
        await asyncio.to_thread(channel_layer.publish, "run.1", b"from a thread")
        await inbox.wait(1)

        host, command = channel_layer.raw_command("run.1", b"from a pipeline")
        url = channel_layer.host_urls()[host]
        async with redis.asyncio.Redis.from_url(url) as client, client.pipeline() as pipeline:
            pipeline.set("something", "else")
            pipeline.execute_command(*command)
            await pipeline.execute()
        assert await inbox.wait(2) == [b"from a thread", b"from a pipeline"]
        await layer.flush()


def test_it_names_its_hosts_in_order():
    with settings(["redis://one:1/0", ("two", 2), {"address": "rediss://three"}]):
        assert channel_layer.host_urls() == ["redis://one:1/0", "redis://two:2", "rediss://three"]
    with (
        settings([{"sentinels": [("one", 1)], "master_name": "main"}]),
        pytest.raises(ImproperlyConfigured, match="URL"),
    ):
        channel_layer.host_urls()


def test_another_backend_is_a_wrong_setting():
    with (
        settings([], backend="channels.layers.InMemoryChannelLayer"),
        pytest.raises(ImproperlyConfigured, match="PubSubChannelLayer"),
    ):
        channel_layer.get_layer()


def test_drops_are_logged_once_a_second_with_their_number(caplog: pytest.LogCaptureFixture):
    drops = channel_layer.DropCount("things")
    drops.add(1, "a reason")
    drops.add(2, "a reason")
    drops._next_log = 0.0  # the second is over
    drops.add(4, "another reason")
    assert [record.message for record in caplog.records] == [
        "Dropped 1 things (1 in all): a reason",
        "Dropped 6 things (7 in all): another reason",
    ]
