"""Clients that stop reading: the real server buffers a bounded amount for each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import websockets
from django.contrib.sessions.models import Session
from websockets.asyncio.client import ClientConnection
from websockets.typing import Origin

from accounts import sockets
from accounts.models import User
from chat import protocol
from chat.models import Run
from chat.streaming import groups
from chat.streaming.log import entry_id, log_key
from chatproject.lib import db
from chatproject.lib.pubsub.layer import get_layer
from tests.support.people import session_key
from tests.support.runs import delta, send_running
from tests.support.stack import Stack

EVENTS = 20_000
TEXT = "x" * 1_000  # of each event: 20 MB in all
MAX_GROWTH = 10_000_000  # bytes by which the process may grow meanwhile

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


@pytest.fixture
async def stack(provider, valkey_url, server_folder: Path) -> AsyncIterator[Stack]:
    """A web process alone: the tests publish in place of a worker."""
    with Stack(server_folder, provider_url=provider.url) as stack:
        await asyncio.to_thread(stack.start, "web")
        yield stack


async def test_slow_reader_gets_long_reply_completely(stack, owner, conversation, valkey_client):
    run = await db.run(send_running, owner, conversation)
    async with connected(stack, owner) as client:
        await client.send(json.dumps({"type": "resume", "run": str(run.pk)}))
        await asyncio.to_thread(publish, valkey_client, run, 1, 2)
        assert await numbers(client, until=1) == [1]
        before = memory(stack)
        for first in range(2, EVENTS, 1_000):
            await asyncio.to_thread(publish, valkey_client, run, first, first + 1_000)
            assert memory(stack) - before < MAX_GROWTH
        assert await numbers(client, until=EVENTS) == list(range(2, EVENTS + 1))
        assert memory(stack) - before < MAX_GROWTH
        await client.send(json.dumps({"type": "ping"}))
        assert (await next_event(client))["type"] == "pong"


async def test_slow_socket_is_closed_with_1013(stack, owner, valkey_client):
    event = protocol.ConversationUpdated(
        conversation=UUID(int=0), title=TEXT, url="/", updated_at="now"
    )
    command = get_layer().raw_command(groups.user_group(owner.pk), event.encode())[1]
    async with connected(stack, owner) as client:
        before = memory(stack)
        for _ in range(EVENTS // 1_000):
            await asyncio.to_thread(publish_all, valkey_client, [command] * 1_000)
            assert memory(stack) - before < MAX_GROWTH
        with contextlib.suppress(websockets.ConnectionClosed):
            async for message in client:
                assert json.loads(message)["title"] == TEXT
        assert client.close_code == 1013


async def test_slow_socket_of_ended_session_is_closed(stack, owner, conversation, valkey_client):
    """The close waits for no reader, and only what was buffered before still arrives."""
    run = await db.run(send_running, owner, conversation)
    half = EVENTS // 2
    async with connected(stack, owner) as client:
        await client.send(json.dumps({"type": "resume", "run": str(run.pk)}))
        await asyncio.to_thread(publish, valkey_client, run, 1, half)
        await asyncio.sleep(1)
        await db.run(Session.objects.all().delete)
        await asyncio.sleep(sockets.RECHECK + 1)
        await asyncio.to_thread(publish, valkey_client, run, half, EVENTS)
        received: list[str | bytes] = []
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                received.append(await client.recv())
    assert client.close_code == 4401
    assert json.loads(received[-1])["code"] == "not_signed_in"
    assert len(received) < half


@contextlib.asynccontextmanager
async def connected(stack: Stack, user: User) -> AsyncIterator[ClientConnection]:
    """Connect with a small receive buffer, which is full soon after the client stops reading."""
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    narrow.connect(("127.0.0.1", stack.port))
    async with websockets.connect(
        f"{stack.base.replace('http', 'ws')}/ws/v1/",
        sock=narrow,
        origin=Origin(stack.base),
        additional_headers={"Cookie": f"sessionid={await db.run(session_key, user)}"},
        max_queue=1,
        ping_interval=None,
    ) as client:
        assert json.loads(await client.recv())["type"] == "ready"
        yield client


def publish(client: Any, run: Run, first: int, end: int) -> None:
    """Append events to the log and publish them to the followers, as a worker does."""
    commands: list[tuple[Any, ...]] = []
    for seq in range(first, min(end, EVENTS + 1)):
        data = delta(run, seq, TEXT).encode()
        commands.append(("XADD", log_key(run.pk), entry_id(seq), "e", data))
        commands.append(get_layer().raw_command(groups.run_group(run.pk), data)[1])
    publish_all(client, commands)


def publish_all(client: Any, commands: list[tuple[Any, ...]]) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        pipeline.execute()


async def numbers(client: ClientConnection, *, until: int) -> list[int]:
    """Return the numbers of the next events, up to this one; each has the text that was sent."""
    found = [0]
    async with asyncio.timeout(60):
        while found[-1] != until:
            event = await next_event(client)
            if event["type"] == "next.updated":
                continue
            assert event["text"] == TEXT
            found.append(event["seq"])
    return found[1:]


async def next_event(client: ClientConnection) -> dict[str, Any]:
    """Return the next event, past those for all tabs of the user, which may arrive late."""
    while True:
        event: dict[str, Any] = json.loads(await client.recv())
        if event["type"] not in ("run.queued", "balance", "conversation.updated"):
            return event


def memory(stack: Stack) -> int:
    """Return the resident memory of the web process, in bytes."""
    status = Path(f"/proc/{stack.pid('web')}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024
