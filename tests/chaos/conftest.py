"""A reply in the middle, and the processes behind it, for tests that let something fail."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from accounts.models import User
from chatproject.lib import db
from chatproject.local.servers import BASE_DIR
from tests.support.fake_llm import FakeLLM, reply_pieces, reply_text
from tests.support.fake_llm.fixture import provider, provider_process
from tests.support.people import assistant, conversation, owner, session_key
from tests.support.reconnecting_client import LiveTab
from tests.support.stack import Stack

__all__ = ["assistant", "conversation", "owner", "provider", "provider_process"]

# Ten tokens, then a pause until `provider.release("fault")`.
TEXT = "[[tokens=60 rate=0 hold=10 key=fault]]"
WHOLE = reply_text(60, TEXT)
FIRST = "".join(reply_pieces(60, TEXT)[:10])


def output_of(module: str, *arguments: str) -> str:
    """The output of `python -m MODULE …`, which must succeed."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=BASE_DIR, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class Talk:
    """Processes, a tab that has received FIRST, and the task that follows the reply to its end."""

    stack: Stack
    session: str
    tab: LiveTab
    chat: asyncio.Task[dict[str, Any]]

    async def next_message_is_answered(self, conversation: str) -> None:
        """Send another message from a new tab, and check its reply."""
        text = "[[tokens=5 rate=0]]"
        tab = LiveTab(self.stack, self.session)
        end = await tab.chat(text, client_id="b", conversation=conversation)
        assert (end["type"], end["text"]) == ("run.done", reply_text(5, text))


StartTalk = Callable[..., AbstractAsyncContextManager[Talk]]


@pytest.fixture
def talking(owner: User, provider: FakeLLM, server_folder: Path) -> StartTalk:
    """Starts the named processes with more variables, and begins a reply."""

    @asynccontextmanager
    async def start(*names: str, **environment: str) -> AsyncIterator[Talk]:
        with Stack(server_folder, provider_url=provider.url, environment=environment) as stack:
            await asyncio.to_thread(stack.start, *names)
            session = await db.run(session_key, owner)
            tab = LiveTab(stack, session)
            async with asyncio.timeout(120):
                chat = asyncio.create_task(tab.chat(TEXT))
                while tab.text != FIRST:
                    await asyncio.sleep(0.02)
                yield Talk(stack, session, tab, chat)

    return start
