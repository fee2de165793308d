"""The network to Postgres or Redis loses everything silently, for a while or for ever.

Every socket and page answers within ten seconds, and the site works again fifteen seconds after the
network does.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import websockets
from django.conf import settings
from websockets.typing import Origin

from accounts.models import User
from chatproject.lib import db
from tests.support.black_hole import BlackHole
from tests.support.fake_llm import FakeLLM, reply_text
from tests.support.people import session_key
from tests.support.reconnecting_client import LiveTab
from tests.support.stack import Stack, database_url

TABS = 24  # three for each thread of lib.db
PAGES = 40  # more than a process has threads for them
FRAMES = 3  # that one socket sends at once
ANSWER = 10.0  # seconds in which sockets and pages answer
RECOVERY = 15.0  # seconds from the network's return to the next reply
TEXT = "[[tokens=5 rate=0]]"

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("assistant", "valkey_url"),
    pytest.mark.timeout(240),
]


@dataclass
class Site:
    """All processes, whose connections to Postgres and Redis go through the holes."""

    stack: Stack
    session: str
    postgres: BlackHole
    redis: BlackHole

    def socket(self) -> websockets.connect:
        return websockets.connect(
            f"ws://127.0.0.1:{self.stack.port}/ws/v1/",
            origin=Origin(self.stack.base),
            additional_headers={"Cookie": f"sessionid={self.session}"},
            open_timeout=30,
        )

    async def new_socket(self) -> str | int | None:
        """Return the type of a new socket's first event; without one, its close code."""
        async with self.socket() as client:
            try:
                return str(json.loads(await client.recv())["type"])
            except websockets.ConnectionClosed:
                return client.close_code

    async def request(self, method: str, path: str, **form: str) -> int:
        """Return the status of a page's answer."""

        def ask() -> int:
            connection = http.client.HTTPConnection("127.0.0.1", self.stack.port, timeout=60)
            token = "t" * 32
            headers = {
                "Cookie": f"csrftoken={token}" + ("" if form else f"; sessionid={self.session}"),
                "Content-Type": "application/x-www-form-urlencoded",
            }
            body = urlencode({"csrfmiddlewaretoken": token, **form})
            connection.request(method, path, body=body if form else None, headers=headers)
            status = connection.getresponse().status
            connection.close()
            return status

        return await asyncio.to_thread(ask)

    def sign_in(self) -> Any:
        return self.request(
            "POST", "/accounts/login/", login="owner@example.org", password="correct horse battery"
        )


@pytest.fixture
async def site(owner: User, provider: FakeLLM, server_folder: Path) -> AsyncIterator[Site]:
    with BlackHole(database_url()) as postgres, BlackHole(settings.REDIS_URL) as redis:
        environment = {"DATABASE_URL": postgres.url, "REDIS_URL": redis.url}
        with Stack(server_folder, provider_url=provider.url, environment=environment) as stack:
            await asyncio.to_thread(stack.start, "web", "worker", "clock")
            session = await db.run(session_key, owner)
            await LiveTab(stack, session).chat(TEXT, client_id="first")  # the worker is ready
            began = time.monotonic()
            yield Site(stack, session, postgres, redis)
            outage = time.monotonic() - began
            for hole in (postgres, redis):
                hole.open()
            for name in ("web", "worker", "clock"):
                log = stack.log(name)
                print(f"--- {name}\n{log}")  # noqa: T201 # shown when a test fails
                assert "Traceback" not in log
                warnings = [line.split()[3] for line in log.splitlines() if " WARNING " in line]
                # These report single runs and requests, or the machine.
                about = ("loop_monitor", "ticker", "sweeper", "waiting_runs", "pubsub", "serve")
                warnings = [name for name in warnings if not any(word in name for word in about)]
                # One line for each logger, again after some seconds.
                assert all(warnings.count(one) <= 2 + outage / 5 for one in warnings), warnings


async def in_time(what: str, answer: Any) -> Any:
    """Await an answer, which must come within ANSWER seconds."""
    began = time.monotonic()
    async with asyncio.timeout(60):
        result = await answer
    took = time.monotonic() - began
    assert took < ANSWER, f"{what}: {result} after {took:.1f} s"
    return result


async def send(
    client: websockets.ClientConnection, client_id: str, text: str = TEXT
) -> dict[str, Any]:
    """Send a message; return the `error` or `run.queued` that answers it."""
    frame = {"type": "chat.send", "client_id": client_id, "text": text}
    await client.send(json.dumps(frame))
    while True:
        event: dict[str, Any] = json.loads(await client.recv())
        is_own = client_id in (event.get("ref"), event.get("client_id"))
        if is_own and event["type"] in ("error", "run.queued"):
            return event


async def recovered(site: Site, client_id: str) -> None:
    """Assert that a page, a sign-in and a reply work within RECOVERY seconds from now."""
    async with asyncio.timeout(RECOVERY):
        while await site.request("GET", "/chats/") != 200:
            await asyncio.sleep(0.2)
        tab = LiveTab(site.stack, site.session)
        end, _ = await asyncio.gather(tab.chat(TEXT, client_id=client_id), signed_in(site))
    assert (end["type"], end["text"]) == ("run.done", reply_text(5, TEXT))


async def signed_in(site: Site) -> None:
    while await site.sign_in() not in (200, 302):
        await asyncio.sleep(0.2)


async def answers_in_the_hole(site: Site, tabs: list[websockets.ClientConnection]) -> list[Any]:
    """Return the answers to a message of each tab, a page, a sign-in and a new socket.

    Meanwhile all other pages are answered in time, too, and several messages of one tab.
    """
    others = asyncio.gather(
        *(in_time("a page", site.request("GET", "/billing/")) for _ in range(PAGES)),
        in_time("a page without database", site.request("GET", "/health")),
        in_time("the last of several messages", send_at_once(tabs[0])),
    )
    answers = await asyncio.gather(
        *(in_time("a message", send(tab, f"in-{n}")) for n, tab in enumerate(tabs[1:])),
        in_time("a page", site.request("GET", "/chats/")),
        in_time("a sign-in", site.sign_in()),
        in_time("a new socket", site.new_socket()),
    )
    await others
    return answers


async def send_at_once(client: websockets.ClientConnection) -> None:
    """Send several messages before the first is answered; return when all are."""
    for number in range(FRAMES):
        frame = {"type": "chat.send", "client_id": f"at-once-{number}", "text": TEXT}
        await client.send(json.dumps(frame))
    answered: set[str] = set()
    while len(answered) < FRAMES:
        event: dict[str, Any] = json.loads(await client.recv())
        if event["type"] in ("error", "run.queued"):
            answered.add(event.get("ref") or event["client_id"])


# In `make ci` one service each, in `make ci-long` both.
@pytest.mark.parametrize("service", ["postgres", pytest.param("redis", marks=pytest.mark.long)])
async def test_silent_network_is_reported_and_recovered_from(site: Site, service: str):
    hole: BlackHole = getattr(site, service)
    async with contextlib.AsyncExitStack() as sockets:
        tabs = [await sockets.enter_async_context(site.socket()) for _ in range(TABS)]
        for tab in tabs:
            assert json.loads(await tab.recv())["type"] == "ready"
        hole.close()
        for _ in range(2):
            *messages, page, sign_in, socket = await answers_in_the_hole(site, tabs)
            assert {message["code"] for message in messages} == {"unavailable"}
            assert {message["retry_after"] > 0 for message in messages} == {True}
            assert page == (503 if service == "postgres" else 200)
            assert sign_in == 503
            # Another socket of the same user may have subscribed to the user's group before.
            assert socket in ((1013,) if service == "postgres" else ("error", "ready"))
        hole.open()
        await recovered(site, "after")
    await asyncio.to_thread(site.stack.terminate, "worker")
    await asyncio.to_thread(site.stack.terminate, "clock")


async def until(client: websockets.ClientConnection, run: str, kind: str) -> dict[str, Any]:
    """Return the next event of this type that has or names the run."""
    while True:
        event: dict[str, Any] = json.loads(await client.recv())
        if event["type"] == kind and run in (event.get("run"), event.get("ref")):
            return event


async def test_resume_in_silence_is_reported_and_followed(site: Site, provider: FakeLLM):
    text = "[[tokens=20 rate=0 hold=10 key=silence]]"
    async with site.socket() as tab:
        run = (await send(tab, "followed", text))["run"]
        await until(tab, run, "text.delta")
        site.redis.close()
        await tab.send(json.dumps({"type": "resume", "run": run, "after": 0}))
        delayed = await in_time("the resumption", until(tab, run, "delayed"))
        assert delayed["code"] == "still_trying"
        site.redis.open()
        provider.release("silence")
        async with asyncio.timeout(RECOVERY):
            assert (await until(tab, run, "run.done"))["text"] == reply_text(20, text)


@pytest.mark.parametrize("service", [pytest.param("postgres", marks=pytest.mark.long), "redis"])
async def test_lost_connections_are_all_replaced_soon(site: Site, service: str):
    """As after a move of the server: the open connections stay silent, new ones work."""
    hole: BlackHole = getattr(site, service)
    await asyncio.gather(*(site.request("GET", "/chats/") for _ in range(12)))
    async with site.socket() as tab:
        assert json.loads(await tab.recv())["type"] == "ready"
        hole.lose_connections()
        await answers_in_the_hole(site, [tab])
        await recovered(site, "after")
