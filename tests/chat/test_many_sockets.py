"""200 tabs at once through one web and one worker process: everybody gets exactly the full text."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import websockets
from websockets.typing import Origin

from accounts.models import User
from chat.models import Message, Run
from chatproject.lib import db
from tests.chat.sockets import session_key
from tests.stack import Stack
from tests.stub import reply_text

SOCKETS = 200

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]


async def test_200_sockets_get_exactly_the_full_text(
    assistant, provider, valkey_url, server_folder: Path
):
    with Stack(server_folder, provider_url=provider.url) as stack:
        await asyncio.to_thread(stack.start, "web", "worker", "clock")
        keys = await db.run(sign_in, SOCKETS)
        texts = [f"[[tokens=60 rate=20]] tab {number}" for number in range(SOCKETS)]
        async with asyncio.timeout(120):
            replies = await asyncio.gather(
                *[chat(stack, key, text) for key, text in zip(keys, texts, strict=True)]
            )
    assert replies == [reply_text(60, text) for text in texts]
    stored = await db.run(
        lambda: sorted(Message.objects.filter(role="assistant").values_list("text", flat=True))
    )
    assert stored == sorted(replies)
    assert await db.run(Run.objects.filter(status="done", attempt=1).count) == SOCKETS


async def chat(stack: Stack, session: str, text: str) -> str:
    """Send one message and follow its reply; returns the text as it came in deltas."""
    async with websockets.connect(
        stack.base.replace("http", "ws") + "/ws/v1/",
        origin=Origin(stack.base),
        additional_headers={"Cookie": f"sessionid={session}"},
        open_timeout=60,
        max_size=None,
    ) as socket:
        assert json.loads(await socket.recv())["type"] == "ready"
        await socket.send(json.dumps({"type": "chat.send", "client_id": "a", "text": text}))
        parts: list[str] = []
        expected = 1
        async for frame in socket:
            event = json.loads(frame)
            if "seq" in event:
                assert event["seq"] == expected
                expected += 1
            if event["type"] == "text.delta":
                parts.append(event["text"])
            elif event["type"] == "run.done":
                assert event["text"] == "".join(parts)
                return "".join(parts)
            else:
                assert event["type"] in {"run.queued", "run.started", "conversation.updated"}, event
    raise AssertionError("the socket ended before the reply")


def sign_in(count: int) -> list[str]:
    """Sessions of so many new users."""
    users = User.objects.bulk_create(
        User(email=f"user{number}@example.org") for number in range(count)
    )
    return [session_key(user) for user in users]
