"""Things that die in the middle of a reply: the browser's connection, web, worker, Valkey, Postgres."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import UUID

import pytest
import websockets

from accounts.models import User
from chat.models import LanguageModel, Run
from chat.streaming import log as run_log
from chatproject.lib import db
from chatproject.local.servers import PostgresServer, ValkeyServer
from tests.support.fake_llm import reply_text
from tests.support.people import session_key
from tests.support.reconnecting_client import LiveTab
from tests.support.stack import PROJECT, Stack

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("assistant", "valkey_url"),
    pytest.mark.timeout(180),
]

# Ten tokens, then a pause until the test lets go on.
TEXT = "[[tokens=60 rate=0 hold=10 key=fault]]"


@asynccontextmanager
async def talking(
    stack: Stack, owner: User, *names: str
) -> AsyncIterator[tuple[LiveTab, asyncio.Task[dict[str, Any]]]]:
    """Processes, a tab that got the first tokens of TEXT, and the task that follows the rest."""
    await asyncio.to_thread(stack.start, *names)
    tab = LiveTab(stack, await db.run(session_key, owner))
    async with asyncio.timeout(120):
        chat = asyncio.create_task(tab.chat(TEXT))
        await tab.until("text.delta")
        yield tab, chat


async def test_web_dies_and_the_client_comes_back_to_the_whole_reply(
    owner, provider, server_folder
):
    with Stack(server_folder, provider_url=provider.url) as stack:
        async with talking(stack, owner, "web", "worker") as (tab, chat):
            await asyncio.to_thread(stack.kill, "web")
            await asyncio.to_thread(stack.start, "web")
            await asyncio.to_thread(provider.release, "fault")
            end = await chat
    assert end["type"] == "run.done"
    assert end["text"] == reply_text(60, TEXT)
    assert tab.connections == 2


async def test_a_web_process_that_ends_says_that_it_restarts(owner, provider, server_folder):
    with Stack(server_folder, provider_url=provider.url) as stack:
        await asyncio.to_thread(stack.start, "web")
        tab = LiveTab(stack, await db.run(session_key, owner))
        async with asyncio.timeout(60):
            async with websockets.connect(tab._address, **tab._options) as socket:
                await socket.recv()
                await asyncio.to_thread(stack.terminate, "web")
                await socket.wait_closed()
            assert socket.close_code == 1012


@pytest.mark.parametrize("continuation", ["", "prefill"])
async def test_another_worker_finishes_what_a_killed_one_began(
    owner, provider, server_folder, continuation
):
    await db.run(lambda: LanguageModel.objects.update(continuation=continuation))
    with Stack(server_folder, provider_url=provider.url) as stack:
        async with talking(stack, owner, "web", "worker", "clock") as (tab, chat):
            await asyncio.to_thread(provider.wait, held=1)
            await asyncio.sleep(0.3)  # what the provider sent has been written by now
            await asyncio.to_thread(stack.kill, "worker")
            await asyncio.to_thread(provider.release, "fault")
            await tab.until("run.waiting", attempt=2)  # nobody is there to take it
            await asyncio.to_thread(stack.start, "worker")
            end = await chat
    assert (end["type"], end["attempt"]) == ("run.done", 2)
    assert end["text"] == tab.text == reply_text(60, TEXT)
    restart = next(event for event in tab.events if event["type"] == "run.restarted")
    assert bool(restart.get("text")) is bool(continuation)


async def test_without_attempts_a_killed_worker_ends_its_runs_with_the_partial_text(
    owner, provider, server_folder
):
    once = {"RUN_ATTEMPTS": "1"}
    with Stack(server_folder, provider_url=provider.url, environment=once) as stack:
        async with talking(stack, owner, "web", "worker", "clock") as (tab, chat):
            await asyncio.to_thread(provider.wait, held=1)
            await asyncio.sleep(0.3)  # what the provider sent has been written by now
            await asyncio.to_thread(stack.kill, "worker")
            end = await chat
            assert end["type"] == "run.failed"
            assert end["code"] == "unavailable"
            assert end["text"] == tab.text
            assert reply_text(60, TEXT).startswith(tab.text)
            assert tab.text
            # The conversation is free, and another worker takes the next message.
            await asyncio.to_thread(stack.start, "worker")
            again = LiveTab(stack, await db.run(session_key, owner))
            text = "[[tokens=5 rate=0]]"
            end = await again.chat(text, client_id="b", conversation=end["conversation"])
    assert (end["type"], end["text"]) == ("run.done", reply_text(5, text))


async def test_a_worker_that_is_told_to_end_finishes_what_it_makes(owner, provider, server_folder):
    with Stack(server_folder, provider_url=provider.url) as stack:
        async with talking(stack, owner, "web", "worker") as (_, chat):
            ending = asyncio.create_task(asyncio.to_thread(stack.terminate, "worker"))
            await asyncio.to_thread(provider.release, "fault")
            end = await chat
            await ending
    assert (end["type"], end["text"]) == ("run.done", reply_text(60, TEXT))


async def test_a_worker_that_must_end_too_soon_hands_its_runs_to_another(
    owner, provider, server_folder
):
    short = {"WORKER_DRAIN_SECONDS": "0"}
    with Stack(server_folder, provider_url=provider.url, environment=short) as stack:
        async with talking(stack, owner, "web", "worker") as (tab, chat):
            await asyncio.to_thread(stack.terminate, "worker")
            await asyncio.to_thread(provider.release, "fault")
            await asyncio.to_thread(stack.start, "worker")
            end = await chat
    assert (end["type"], end["attempt"]) == ("run.done", 2)
    assert end["text"] == tab.text == reply_text(60, TEXT)


async def test_a_worker_that_stood_still_says_nothing_more(
    owner, provider, server_folder, valkey_client
):
    once = {"RUN_ATTEMPTS": "1"}
    with Stack(server_folder, provider_url=provider.url, environment=once) as stack:
        async with talking(stack, owner, "web", "worker", "clock") as (tab, chat):
            await asyncio.to_thread(stack.pause, "worker")
            await asyncio.to_thread(provider.release, "fault")
            end = await chat
            assert end["type"] == "run.failed"
            told = valkey_client.xlen(run_log.log_key(UUID(end["run"])))
            await asyncio.to_thread(stack.go_on, "worker")
            # It takes the next message, and has dropped the old one.
            again = LiveTab(stack, await db.run(session_key, owner))
            text = "[[tokens=5 rate=0]]"
            end = await again.chat(text, client_id="b", conversation=end["conversation"])
            assert (end["type"], end["text"]) == ("run.done", reply_text(5, text))
            await asyncio.to_thread(provider.wait, active=0)
    assert valkey_client.xlen(run_log.log_key(UUID(tab.run))) == told
    first = await db.run(Run.objects.select_related("message").get, pk=tab.run)
    assert (first.status, first.message.text) == ("failed", tab.text)


async def test_a_run_whose_job_was_flushed_is_queued_again(
    owner, provider, server_folder, valkey_client
):
    text = "[[tokens=5 rate=0]]"
    with Stack(server_folder, provider_url=provider.url) as stack:
        await asyncio.to_thread(stack.start, "web", "clock")
        tab = LiveTab(stack, await db.run(session_key, owner))
        async with asyncio.timeout(90):
            chat = asyncio.create_task(tab.chat(text))
            await tab.until("run.queued")
            valkey_client.flushall()
            await asyncio.to_thread(stack.start, "worker")
            end = await chat
    assert (end["type"], end["text"]) == ("run.done", reply_text(5, text))


async def test_valkey_dies_for_a_while_and_running_and_queued_runs_go_on(
    owner, provider, server_folder, own_valkey: ValkeyServer
):
    own = {"REDIS_URL": own_valkey.url}
    with Stack(server_folder, provider_url=provider.url, environment=own) as stack:
        await asyncio.to_thread(stack.start, "web", "worker", "clock")
        session = await db.run(session_key, owner)
        tab = LiveTab(stack, session)
        async with asyncio.timeout(120):
            chat = asyncio.create_task(tab.chat(TEXT))
            await tab.until("text.delta")
            await asyncio.to_thread(own_valkey.kill)

            # Sends are refused meanwhile, with words, and store nothing.
            refused = LiveTab(stack, session)
            error = await refused_send(refused)
            assert error is None or error["code"] == "unavailable"
            assert await db.run(Run.objects.count) == 1

            # All that Redis knew is gone: this Valkey keeps nothing on disk.
            await asyncio.to_thread(own_valkey.start)
            await asyncio.to_thread(provider.release, "fault")
            end = await chat
    assert (end["type"], end["text"]) == ("run.done", reply_text(60, TEXT))
    assert await db.run(lambda: Run.objects.get().attempt) == 1


async def refused_send(tab: LiveTab) -> dict[str, object] | None:
    """Try to send while Redis is away; the error, or None when already the socket was refused."""
    try:
        async with websockets.connect(tab._address, **tab._options) as socket:
            await socket.send(json.dumps({"type": "chat.send", "client_id": "r", "text": "x"}))
            async with asyncio.timeout(30):
                event: dict[str, object] = json.loads(await socket.recv())
                return event
    except (OSError, websockets.WebSocketException):
        return None


async def test_postgres_restarts_and_the_running_reply_is_stored_when_it_is_back(
    provider, server_folder: Path, own_postgres: PostgresServer
):
    """Tokens keep flowing while the database is away, and the end waits for it."""
    own = {"DATABASE_URL": own_postgres.url}
    environment = {**os.environ, **own, "DEFAULT_MODEL": "stub-model"}

    def manage(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    await asyncio.to_thread(manage, "migrate", "--verbosity", "0")
    await asyncio.to_thread(manage, "create_catalogue")
    session = (await asyncio.to_thread(manage, "shell", "--verbosity", "0", "-c", SIGN_IN)).strip()
    with Stack(server_folder, provider_url=provider.url, environment=own) as stack:
        await asyncio.to_thread(stack.start, "web", "worker", "clock")
        tab = LiveTab(stack, session)
        async with asyncio.timeout(120):
            chat = asyncio.create_task(tab.chat(TEXT))
            await tab.until("text.delta")
            await asyncio.to_thread(own_postgres.kill)
            assert await asyncio.to_thread(status_of, f"{stack.base}/accounts/login/") == 200
            assert await asyncio.to_thread(status_of, f"{stack.base}/", session) == 503
            assert await refused_send(LiveTab(stack, session)) is None
            await asyncio.to_thread(provider.release, "fault")
            while tab.text != reply_text(60, TEXT):
                await asyncio.sleep(0.05)
            await asyncio.to_thread(own_postgres.start)
            end = await chat
        assert "Exception inside application" not in stack.log("web")
    assert (end["type"], end["text"]) == ("run.done", reply_text(60, TEXT))


def status_of(url: str, session: str = "") -> int:
    request = Request(url, headers={"Cookie": f"sessionid={session}"})
    try:
        with urlopen(request, timeout=30) as response:
            return int(response.status)
    except HTTPError as error:
        with error:
            return error.code


SIGN_IN = """
from django.test import Client
from accounts.models import User
client = Client()
client.force_login(User.objects.create_user("owner@example.org"))
print(client.cookies["sessionid"].value)
"""
