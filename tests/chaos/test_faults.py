"""Faults in the middle of a reply: the browser's connection, web, worker, Valkey, Postgres."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import UUID

import pytest
import websockets

from accounts.models import User
from billing.models import Account
from chat.models import LanguageModel, Run
from chat.streaming import log as run_log
from chat.web.consumer import RECHECK
from chatproject.lib import db
from chatproject.local.servers import PostgresServer, ValkeyServer
from tests.chaos.conftest import TEXT, WHOLE
from tests.support.conversations import send
from tests.support.fake_llm import reply_text
from tests.support.locks import locked, wait_for_blocked_session
from tests.support.people import session_key
from tests.support.reconnecting_client import LiveTab
from tests.support.runs import mark_done
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("assistant", "valkey_url"),
    pytest.mark.timeout(180),
]


async def test_client_of_a_killed_web_process_reconnects(talking, provider):
    async with talking("web", "worker") as talk:
        await asyncio.to_thread(talk.stack.kill, "web")
        await asyncio.to_thread(talk.stack.start, "web")
        await asyncio.to_thread(provider.release, "fault")
        end = await talk.chat
    assert (end["type"], end["text"]) == ("run.done", WHOLE)
    assert talk.tab.connections == 2


async def test_ending_web_process_closes_with_1012(owner, provider, server_folder):
    with Stack(server_folder, provider_url=provider.url) as stack:
        await asyncio.to_thread(stack.start, "web")
        tab = LiveTab(stack, await db.run(session_key, owner))
        async with asyncio.timeout(60):
            async with websockets.connect(tab._address, **tab._options) as socket:
                await socket.recv()
                await asyncio.to_thread(stack.terminate, "web")
                await socket.wait_closed()
            assert socket.close_code == 1012


@pytest.mark.parametrize("continuation", ["", pytest.param("prefill", marks=pytest.mark.long)])
async def test_reply_of_a_killed_worker_is_finished(talking, provider, continuation):
    await db.run(lambda: LanguageModel.objects.update(continuation=continuation))
    async with talking("web", "worker", "clock") as talk:
        await asyncio.to_thread(talk.stack.kill, "worker")
        await asyncio.to_thread(provider.release, "fault")
        await talk.tab.until("run.waiting", attempt=2)  # there is no worker to take it
        await asyncio.to_thread(talk.stack.start, "worker")
        end = await talk.chat
    assert (end["type"], end["attempt"]) == ("run.done", 2)
    assert end["text"] == talk.tab.text == WHOLE
    restart = next(event for event in talk.tab.events if event["type"] == "run.restarted")
    assert bool(restart.get("text")) is bool(continuation)


async def test_last_attempt_of_a_killed_worker_fails(talking):
    """The partial text stays, the conversation is free, and another worker takes the next message."""
    async with talking("web", "worker", "clock", RUN_ATTEMPTS="1") as talk:
        await asyncio.to_thread(talk.stack.kill, "worker")
        end = await talk.chat
        assert (end["type"], end["code"]) == ("run.failed", "unavailable")
        assert end["text"] == talk.tab.text
        assert WHOLE.startswith(talk.tab.text)
        assert talk.tab.text
        await asyncio.to_thread(talk.stack.start, "worker")
        await talk.next_message_is_answered(end["conversation"])


async def test_terminated_worker_finishes_its_replies(talking, provider):
    async with talking("web", "worker") as talk:
        ending = asyncio.create_task(asyncio.to_thread(talk.stack.terminate, "worker"))
        await asyncio.to_thread(provider.release, "fault")
        end = await talk.chat
        await ending
    assert (end["type"], end["text"]) == ("run.done", WHOLE)


@pytest.mark.long
async def test_worker_without_drain_time_hands_runs_over(talking, provider):
    async with talking("web", "worker", WORKER_DRAIN_SECONDS="0") as talk:
        await asyncio.to_thread(talk.stack.terminate, "worker")
        await asyncio.to_thread(provider.release, "fault")
        await asyncio.to_thread(talk.stack.start, "worker")
        end = await talk.chat
    assert (end["type"], end["attempt"]) == ("run.done", 2)
    assert end["text"] == talk.tab.text == WHOLE


async def test_frozen_worker_writes_nothing_after_waking(talking, provider, valkey_client):
    async with talking("web", "worker", "clock", RUN_ATTEMPTS="1") as talk:
        await asyncio.to_thread(talk.stack.pause, "worker")
        await asyncio.to_thread(provider.release, "fault")
        end = await talk.chat
        assert end["type"] == "run.failed"
        written = valkey_client.xlen(run_log.log_key(UUID(end["run"])))
        await asyncio.to_thread(talk.stack.go_on, "worker")
        # It takes the next message, and has dropped the old one.
        await talk.next_message_is_answered(end["conversation"])
        await asyncio.to_thread(provider.wait, active=0)
    assert valkey_client.xlen(run_log.log_key(UUID(talk.tab.run))) == written
    first = await db.run(Run.objects.select_related("message").get, pk=talk.tab.run)
    assert (first.status, first.message.text) == ("failed", talk.tab.text)


async def test_flushed_job_is_queued_again(owner, provider, server_folder, valkey_client):
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


async def test_run_survives_an_outage_of_valkey(talking, provider, own_valkey: ValkeyServer):
    async with talking("web", "worker", "clock", REDIS_URL=own_valkey.url) as talk:
        await asyncio.to_thread(own_valkey.kill)
        # Sends are refused meanwhile, with words, and store nothing.
        error = await refused_send(LiveTab(talk.stack, talk.session))
        assert error is None or error["code"] == "unavailable"
        assert await db.run(Run.objects.count) == 1
        # Everything in Redis is lost: this Valkey stores nothing on disk.
        await asyncio.to_thread(own_valkey.start)
        await asyncio.to_thread(provider.release, "fault")
        end = await talk.chat
    assert (end["type"], end["text"]) == ("run.done", WHOLE)
    assert await db.run(lambda: Run.objects.get().attempt) == 1


@pytest.mark.parametrize(
    "command",
    [
        "chat.send",
        "resume",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("run.regenerate", "message.edit")
        ),
    ],
)
async def test_accepted_command_survives_death_of_valkey(
    command, owner, conversation, provider, server_folder, own_valkey: ValkeyServer
):
    """Valkey dies between the COMMIT and the follower's subscription: no error, and the whole reply."""
    old = await db.run(send, owner, conversation, "[[tokens=3 rate=0]]")
    frames = {
        "chat.send": {"client_id": "a", "conversation": str(conversation.pk), "text": TEXT},
        "run.regenerate": {"client_id": "a", "message": str(old.message_id)},
        "message.edit": {"client_id": "a", "message": str(old.message.parent_id), "text": TEXT},
        "resume": {"run": str(old.pk)},
    }
    if command != "resume":
        await db.run(mark_done, old)
    with Stack(
        server_folder, provider_url=provider.url, environment={"REDIS_URL": own_valkey.url}
    ) as stack:
        await asyncio.to_thread(stack.start, "web")
        tab = LiveTab(stack, await db.run(session_key, owner))
        async with asyncio.timeout(90), websockets.connect(tab._address, **tab._options) as socket:
            assert json.loads(await socket.recv())["type"] == "ready"
            async with account_locked(owner):
                await socket.send(json.dumps({"type": command, **frames[command]}))
                if command != "resume":
                    await db.run(wait_for_blocked_session)
                await asyncio.to_thread(own_valkey.kill)
            queued = json.loads(await socket.recv())
            assert (queued["type"], queued.get("ref")) == ("run.queued", None)
            await asyncio.to_thread(own_valkey.start)
            await asyncio.to_thread(stack.start, "worker", "clock")
            await asyncio.to_thread(provider.release, "fault")
            events = [queued]
            while events[-1]["type"] != "run.done":
                events.append(json.loads(await socket.recv()))
    assert "error" not in {event["type"] for event in events}
    assert events[-1]["run"] == queued["run"]


async def test_socket_answers_while_valkey_is_frozen(talking, provider, own_valkey: ValkeyServer):
    """A follower that waits for Redis delays other answers by seconds, and then follows the run."""
    async with talking("web", "worker", "clock", REDIS_URL=own_valkey.url) as talk:
        tab = LiveTab(talk.stack, talk.session)
        async with websockets.connect(tab._address, **tab._options) as socket:
            assert json.loads(await socket.recv())["type"] == "ready"
            os.kill(own_valkey.pid, signal.SIGSTOP)
            try:
                await socket.send(json.dumps({"type": "resume", "run": talk.tab.run}))
                await socket.send('{"type": "ping"}')
                async with asyncio.timeout(10):
                    assert json.loads(await socket.recv())["type"] == "next.updated"
                    assert json.loads(await socket.recv())["type"] == "pong"
            finally:
                os.kill(own_valkey.pid, signal.SIGCONT)
            await asyncio.to_thread(provider.release, "fault")
            events = [{"type": ""}]
            while events[-1]["type"] != "run.done":
                events.append(json.loads(await socket.recv()))
        assert "error" not in {event["type"] for event in events}
        assert (await talk.chat)["text"] == events[-1]["text"] == WHOLE


@asynccontextmanager
async def account_locked(user: User) -> AsyncIterator[None]:
    """Keep the user's account locked, so that a message is stored only after this block."""
    lock = locked(await db.run(lambda: Account.objects.get(user=user)))
    await asyncio.to_thread(lock.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(lock.__exit__, None, None, None)


async def refused_send(tab: LiveTab) -> dict[str, object] | None:
    """Try to send while Redis is unreachable; the error, or None when the socket was refused."""
    try:
        async with websockets.connect(tab._address, **tab._options) as socket:
            await socket.send(json.dumps({"type": "chat.send", "client_id": "r", "text": "x"}))
            async with asyncio.timeout(30):
                event: dict[str, object] = json.loads(await socket.recv())
                return event
    except (OSError, websockets.WebSocketException):
        return None


@pytest.mark.long
async def test_reply_survives_an_outage_of_postgres(
    provider, server_folder, own_postgres: PostgresServer
):
    """Tokens keep flowing while the database is unreachable, and the end waits for it."""
    own = {"DATABASE_URL": own_postgres.url}
    with Stack(server_folder, provider_url=provider.url, environment=own) as stack:
        await asyncio.to_thread(stack.manage, "migrate", "--verbosity", "0")
        await asyncio.to_thread(stack.manage, "create_catalogue")
        signed_in = await asyncio.to_thread(
            stack.manage, "shell", "--verbosity", "0", "-c", SIGN_IN
        )
        session = signed_in.strip()
        await asyncio.to_thread(stack.start, "web", "worker", "clock")
        tab = LiveTab(stack, session)
        async with asyncio.timeout(120):
            chat = asyncio.create_task(tab.chat(TEXT))
            await tab.until("text.delta")
            await asyncio.to_thread(own_postgres.kill)
            assert await asyncio.to_thread(status_of, f"{stack.base}/accounts/login/") == 200
            assert await asyncio.to_thread(status_of, f"{stack.base}/", session) == 503
            assert await refused_send(LiveTab(stack, session)) is None
            await asyncio.sleep(1.5 * RECHECK)  # the socket asks the database for the run meanwhile
            await asyncio.to_thread(provider.release, "fault")
            while tab.text != WHOLE:
                await asyncio.sleep(0.05)
            await asyncio.to_thread(own_postgres.start)
            end = await chat
        assert "Exception inside application" not in stack.log("web")
    assert (end["type"], end["text"]) == ("run.done", WHOLE)


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
