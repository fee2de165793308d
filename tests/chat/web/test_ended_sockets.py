"""Ended sockets: nothing of them stays behind, at whatever stage they end."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec
import pytest

from accounts import sockets
from chat.models import Run
from chatproject.asgi import application
from chatproject.lib import db
from chatproject.lib.pubsub.layer import get_layer
from tests.support.conversations import send
from tests.support.people import session_key
from tests.support.runs import generate_until_hold, until
from tests.support.sockets import open_tab

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("socket_loop", "worker_loop"),
]

TEXT = "[[tokens=40 rate=0 hold=20 key=ended]]"


def subscriptions() -> list[bytes]:
    """The Redis channels that this event loop is subscribed to."""
    return [
        name
        for subscriber in get_layer()._get_layer().subscribers
        for name in subscriber._subscriptions
    ]


class Socket:
    """The application for one socket, as a server runs it: a task that may be cancelled."""

    def __init__(self, session: str, *frames: dict[str, Any]) -> None:
        self.sent: list[Any] = []
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"})
        for frame in frames:
            self.put(msgspec.json.encode(frame).decode())
        scope = {
            "type": "websocket",
            "path": "/ws/v1/",
            "query_string": b"",
            "headers": [
                (b"host", b"localhost"),
                (b"origin", b"http://localhost"),
                (b"cookie", f"sessionid={session}".encode()),
            ],
        }
        self.task = asyncio.create_task(application(scope, self._inbox.get, self._send))

    def put(self, text: str) -> None:
        """Let a frame arrive."""
        self._inbox.put_nowait({"type": "websocket.receive", "text": text})

    async def _send(self, message: Any) -> None:
        await asyncio.sleep(0)
        self.sent.append(message)

    def has_sent(self, kind: str) -> bool:
        return any(f'"type":"{kind}"' in message.get("text", "") for message in self.sent)

    async def cancel(self) -> None:
        """Cancel the task as a stopping server does, and again before it has ended."""
        self.task.cancel()
        await asyncio.sleep(0)
        self.task.cancel()
        await asyncio.wait([self.task])


async def expect_nothing_left(tasks: set[asyncio.Task[Any]]) -> None:
    """No subscription, watched session or task is left beside these tasks."""
    assert subscriptions() == []
    assert sockets.session_watch()._watched == {}
    await until(lambda: asyncio.all_tasks() - tasks <= shared_tasks())


def shared_tasks() -> set[asyncio.Task[Any]]:
    """The connections to Redis that all sockets of a loop share."""
    return {
        task
        for task in asyncio.all_tasks()
        if any(word in repr(task.get_coro()) for word in ("Link._run", "Connection."))
    }


async def test_cancelled_socket_leaves_nothing_behind(owner, conversation, provider):
    """Cancelled after each of many delays: while it connects, handles frames and streams."""
    run = await db.run(send, owner, conversation, TEXT)
    generating = await generate_until_hold(run, provider)
    key = await db.run(session_key, owner)
    stages = set()
    tasks = asyncio.all_tasks()
    for delay in range(0, 120, 3):
        socket = Socket(
            key,
            {"type": "resume", "run": str(run.pk)},
            {"type": "chat.send", "client_id": f"c{delay}", "text": "[[tokens=1 rate=0]]"},
        )
        await asyncio.sleep(delay / 1_000)
        stages.add(
            (bool(socket.sent), socket.has_sent("text.delta"), socket.has_sent("run.queued"))
        )
        await socket.cancel()
        await expect_nothing_left(tasks)
    assert len(stages) >= 3, "the delays reach several stages"
    await asyncio.to_thread(provider.release, "ended")
    await generating


async def test_stages_of_a_socket_leave_nothing_behind(owner, conversation, provider):
    """Cancelled when it is open, in the middle of a reply, and after an error."""
    run = await db.run(send, owner, conversation, TEXT)
    generating = await generate_until_hold(run, provider)
    key = await db.run(session_key, owner)
    tasks = asyncio.all_tasks()
    for frame, kind in (
        ({"type": "ping"}, "ready"),
        ({"type": "resume", "run": str(run.pk)}, "text.delta"),
        ({"type": "run.stop", "run": "x"}, "error"),
    ):
        socket = Socket(key, frame)
        await until(partial(socket.has_sent, kind))
        await socket.cancel()
        await expect_nothing_left(tasks)
    await asyncio.to_thread(provider.release, "ended")
    await generating


async def test_failing_handler_leaves_nothing_behind(owner, conversation, provider):
    """The server's `send` raises in the middle of a reply, as after a fault in the server."""
    run = await db.run(send, owner, conversation, TEXT)
    generating = await generate_until_hold(run, provider)
    tasks = asyncio.all_tasks()
    socket = Socket(await db.run(session_key, owner), {"type": "resume", "run": str(run.pk)})
    await until(lambda: socket.has_sent("text.delta"))
    socket._inbox.put_nowait({"type": "websocket.unknown"})  # no handler has this name
    await asyncio.wait([socket.task])
    assert isinstance(socket.task.exception(), AttributeError)
    await expect_nothing_left(tasks)
    await asyncio.to_thread(provider.release, "ended")
    await generating


# --- Frames -----------------------------------------------------------------------------------

NESTED = "[" * 20_000 + "]" * 20_000
HALF = "\\ud83d"  # half of an emoji, as a browser's JSON.stringify writes it


@pytest.mark.parametrize(
    ("frame", "code", "ref"),
    [
        ("[" * 1_000, "bad_json", None),
        ("[" * 60_000, "bad_json", None),
        ('{"type":' * 1_000, "bad_json", None),
        (NESTED, "bad_json", None),
        ('{"type":"ping","more":' + NESTED + "}", "bad_json", None),
        ('{"type":"chat.send","client_id":"a","text":"' + HALF + '"}', "bad_text", "a"),
        ('{"type":"chat.send","client_id":"a","text":"x' + HALF + 'y"}', "bad_text", "a"),
        ('{"type":"chat.send","client_id":"a","text":"x\\ude00y"}', "bad_text", "a"),
        ('{"type":"chat.send","client_id":"a","text":"x\ud83dy"}', "bad_text", "a"),
        ('{"type":"chat.send","client_id":"a","text":"x\\u0000y"}', "bad_text", "a"),
        ('{"type":"chat.send","client_id":"' + HALF + '","text":"x"}', "bad_text", None),
        ('{"type":"chat.send","client_id":"\\u0000","text":"x"}', "bad_json", None),
        ('{"type":"chat.send","client_id":"a","text":"x","conversation":"' + HALF + '"}', "bad_text", "a"),
        ('{"type":"chat.send","client_id":"a","text":"x","parent":"\\u0000"}', "bad_json", "a"),
        ('{"type":"' + HALF + '","client_id":"a"}', "bad_text", "a"),
        ('{"type":"chat.send","client_id":"a","' + HALF + '":1}', "bad_text", "a"),
        ('{"type":"message.edit","client_id":"a","message":"x","text":"\\u0000"}', "bad_json", "a"),
        ('{"type":"run.stop","run":"' + HALF + '"}', "bad_text", None),
        ('{"type":"resume","run":"01a20233-4297-7324-b834-bda0617df291","after":1e999}', "bad_json", "01a20233-4297-7324-b834-bda0617df291"),
        ('{"type":"resume","run":"01a20233-4297-7324-b834-bda0617df291","after":' + "9" * 5_000 + "}", "bad_json", ...),
        ('{"type":"resume","run":"01a20233-4297-7324-b834-bda0617df291","after":1.5}', "bad_json", ...),
        ('{"type":"resume","run":"01a20233-4297-7324-b834-bda0617df291","after":-1}', "bad_json", ...),
        ('{"type":"resume","run":"01a20233-4297-7324-b834-bda0617df291","after":true}', "bad_json", ...),
        ('{"type":"resume","run":"01a20233-4297-7324-b834-bda0617df291","after":99999999999999999}', "bad_json", ...),
        ('{"type":"resume","run":"{01a20233-4297-7324-b834-bda0617df291}"}', "bad_json", ...),
        ('{"type":"ping","type":"chat.whistle"}', "unknown_type", None),
    ],
    ids=range(26),
)  # fmt: skip
async def test_no_frame_ends_the_socket(owner, conversation, frame, code, ref):
    async with open_tab(owner) as tab:
        await tab.send_text(frame)
        error = await tab.receive()
        assert (error["type"], error["code"]) == ("error", code)
        if ref is not ...:
            assert error.get("ref") == ref
        assert await tab.is_silent()
    assert not await db.run(Run.objects.exists)


@pytest.mark.parametrize("frame", ['{"after":NaN}', '{"after":Infinity}', "[" * 500, '"\ud800"'])
async def test_other_text_than_json_closes_the_socket(owner, frame):
    async with open_tab(owner) as tab:
        await tab.send_text(frame)
        assert (await tab.receive())["code"] == "bad_json"
        assert await tab.close_code() == 1003


async def test_edit_with_unstorable_text_is_refused(owner, conversation):
    run = await db.run(send, owner, conversation, TEXT)
    async with open_tab(owner) as tab:
        await tab.send(
            type="message.edit", client_id="a", message=str(run.message.parent_id), text="x\0y"
        )
        error = await tab.receive()
        assert (error["code"], error["ref"]) == ("bad_text", "a")
        assert await tab.is_silent()
