"""attach and publish: bytes, their order, and the callbacks that receive them."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from chatproject.lib.pubsub.layer import PubSubChannelLayer
from chatproject.lib.pubsub.raw import DropCount
from tests.lib.pubsub.conftest import MakeLayer
from tests.lib.pubsub.helpers import Gate, Inbox, Server, until


@pytest.mark.parametrize(
    "data", [b"", b"\x00\xff\r\n$3\r\n", b'{"text":"caf\xc3\xa9"}', b"x" * 10**6]
)
async def test_bytes_arrive_unchanged(
    layer: PubSubChannelLayer, other_layer: PubSubChannelLayer, data: bytes
):
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    layer.publish("run.1", data)
    other_layer.publish("run.1", data)
    assert await inbox.wait(2) == [data, data]


async def test_every_callback_receives_the_bytes_in_order(
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


async def test_first_publish_waits_for_its_connection(
    layer: PubSubChannelLayer, other_layer: PubSubChannelLayer
):
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    other_layer.publish("run.1", b"first")
    assert await inbox.wait(1) == [b"first"]
    assert other_layer.dropped_publishes.total == 0


async def test_publishes_of_one_turn_share_a_write(layer: PubSubChannelLayer, valkey_url: str):
    server = Server(valkey_url)
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    layer.publish("run.1", b"connects")
    await inbox.wait(1)
    before = server.info("total_reads_processed")
    for number in range(1_000):
        layer.publish("run.1", b"%d" % number)
    await inbox.wait(1_001)
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


async def test_detach_works_at_once_and_can_be_repeated(layer: PubSubChannelLayer):
    gone, later = Inbox(), Inbox()
    attachment = await layer.attach("run.1", gone)
    await layer.attach("run.1", later)
    layer.publish("run.1", b"on its way")
    await attachment.detach()
    await attachment.detach()
    await later.wait(1)
    assert gone.items == []


async def test_group_can_be_attached_again_while_being_left(
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


async def test_attach_waits_for_its_own_answer(make_layer: MakeLayer, valkey_url: str):
    """Joined, left and joined again: of the three answers of Redis only the last one counts."""
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


async def test_failing_callback_is_logged_and_isolated(
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


async def test_callbacks_do_not_run_in_the_callers_context(
    layer: PubSubChannelLayer, valkey_url: str
):
    user: ContextVar[str] = ContextVar("user", default="none")
    seen, reconnects = Inbox(), Inbox()
    user.set("ann")
    await layer.attach("run.1", lambda data: seen(user.get()), lambda: reconnects(user.get()))
    layer.publish("run.1", b"data")
    assert await seen.wait(1) == ["none"]
    Server(valkey_url).kill_connections()
    assert await reconnects.wait(1) == ["none"]


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


async def test_cancelled_attach_leaves_nothing(layer: PubSubChannelLayer, valkey_url: str):
    await layer.attach("keeps.connected", Inbox())
    attaching = [asyncio.create_task(layer.attach("run.1", Inbox())) for _ in range(2)]
    await asyncio.sleep(0)
    for task in attaching:
        task.cancel()
    await asyncio.gather(*attaching, return_exceptions=True)
    await layer.attach("later", Inbox())  # Redis has answered all that came before
    assert Server(valkey_url).subscribers("asgi:raw:run.1") == 0


async def test_cancelled_attach_does_not_disturb_the_others(layer: PubSubChannelLayer):
    inbox = Inbox()
    cancelled = asyncio.create_task(layer.attach("run.1", Inbox()))
    kept = asyncio.create_task(layer.attach("run.1", inbox))
    await asyncio.sleep(0)
    cancelled.cancel()
    await kept
    layer.publish("run.1", b"data")
    assert await inbox.wait(1) == [b"data"]


async def test_flush_writes_pending_publishes(
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
async def test_closing_loop_writes_pending_publishes(
    layer: PubSubChannelLayer, valkey_url: str, is_connected: bool
):
    server = Server(valkey_url)
    inbox = Inbox()
    await layer.attach("run.1", inbox)
    before = server.info("total_connections_received")

    async def publish_and_end() -> None:
        if is_connected:
            layer.publish("run.2", b"connects")
            await until(lambda: not layer._get_layer().publishers[0].is_needed())
        layer.publish("run.1", b"last words")

    await asyncio.to_thread(asyncio.run, publish_and_end())
    assert await inbox.wait(1) == [b"last words"]
    # The end of a loop interrupts connecting, which then starts again. (`info` opens one.)
    most = 1 if is_connected else 2
    assert server.info("total_connections_received") - before <= most + 1


async def test_cancelling_all_tasks_keeps_the_connections(
    layer: PubSubChannelLayer, valkey_url: str
):
    """The end of a loop cancels all tasks before it flushes the layer."""
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
    assert server.info("total_connections_received") - before == 1  # opened by `info`


async def test_flush_forgets_attachments(layer: PubSubChannelLayer, valkey_url: str):
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


def test_drops_are_logged_once_a_second(caplog: pytest.LogCaptureFixture):
    drops = DropCount()
    drops.add(1, "a reason")
    drops.add(2, "a reason")
    drops._next_log = 0.0  # the second has passed
    drops.add(4, "another reason")
    assert [record.message for record in caplog.records] == [
        "Dropped 1 published messages (1 in all): a reason",
        "Dropped 6 published messages (7 in all): another reason",
    ]
