"""200 tabs at once through one web and one worker process: each gets exactly its full text."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from accounts.models import User
from chat.models import Message, Run
from chatproject.lib import db
from tests.support.fake_llm import reply_text
from tests.support.people import session_key
from tests.support.reconnecting_client import LiveTab
from tests.support.stack import Stack

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
    """Send a message and follow its reply; returns the text of the deltas."""
    tab = LiveTab(stack, session)
    end = await tab.chat(text)
    assert end["type"] == "run.done"
    assert tab.connections == 1
    assert end["text"] == tab.text
    return tab.text


def sign_in(count: int) -> list[str]:
    """Return the sessions of new users."""
    users = User.objects.bulk_create(
        User(email=f"user{number}@example.org") for number in range(count)
    )
    return [session_key(user) for user in users]
