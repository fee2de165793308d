"""Database connections of the web process: no request keeps one longer than it works.

Each test sends three requests per connection of the pool, of every kind at a time, as slow readers or
cut off in the middle, to a served web process.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Origin

from accounts.models import User
from billing.management.commands import seed_ledger
from chat.models import Assistant, Message
from chatproject.lib import db
from tests.support.conversations import begin
from tests.support.people import session_key
from tests.support.stack import Stack

POOL = 4
REQUESTS = 3 * POOL
LINES = 6_000  # of the statement: three parts of the file, 1 MB
MESSAGES = 60  # of the conversation, each of 20 kB
PATIENCE = 60.0  # seconds: only so that a hang fails
TRIES = 8  # of pages that are refused while the pool is busy with the requests before them

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url"),
    pytest.mark.timeout(240),
]


@dataclass(frozen=True, slots=True)
class Site:
    """A web process with a pool of POOL connections, and a superuser's session."""

    stack: Stack
    session: str
    conversation: str

    @property
    def kinds(self) -> dict[str, bytes]:
        """A whole request of each kind, by its name."""
        form = f"csrfmiddlewaretoken={'t' * 32}&title=Renamed".encode()
        return {
            "page": self.head("GET", f"/c/{self.conversation}/"),
            "statement": self.head("GET", "/billing/history.csv"),
            "usage": self.head("GET", "/billing/usage.csv"),
            "admin": self.head("GET", "/admin/billing/ledgerentry/"),
            "json": self.head("GET", "/billing/balance"),
            "static": self.head("GET", "/static/big.js"),
            "missing": self.head("GET", "/nothing-here"),
            "readiness": self.head("GET", "/health/ready"),
            "webhook": self.head("POST", "/billing/webhooks/stripe/", body=b"{}"),
            "form": self.head("POST", f"/c/{self.conversation}/rename/", body=form),
            "sign-in": self.head("POST", "/accounts/login/", body=form),
        }

    def head(self, method: str, path: str, body: bytes = b"") -> bytes:
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: localhost",
            f"Cookie: sessionid={self.session}; csrftoken={'t' * 32}",
            "Content-Type: application/x-www-form-urlencoded",
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection with a receive buffer that a response of 1 MB fills."""
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        narrow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", self.stack.port))
        return await asyncio.open_connection(sock=narrow, limit=1_024)

    async def status(self, path: str = "/billing/") -> int:
        """Return the status of a page that uses the database."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.stack.port)
        writer.write(self.head("GET", path))
        async with asyncio.timeout(PATIENCE):
            status = int((await reader.readline()).split()[1])
        writer.close()
        return status

    async def answers(self) -> None:
        """Assert that as many pages at once as the pool has connections are answered.

        A slow machine still works on the requests before them: then pages wait five seconds, and are refused.
        """
        for _ in range(TRIES):
            found = await asyncio.gather(*(self.status() for _ in range(POOL)))
            if found == [200] * POOL:
                return
            assert set(found) == {200, 503} or set(found) == {503}
        raise AssertionError(found)

    async def has_all_connections(self) -> None:
        """Assert that all connections are back in the pool, within PATIENCE."""
        for _ in range(int(PATIENCE / 0.1)):
            stats = await asyncio.to_thread(self.stats)
            if stats["pool_size"] == stats["pool_available"]:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(stats)

    def stats(self) -> dict[str, int]:
        with urlopen(f"{self.stack.base}/pool", timeout=PATIENCE) as response:  # loopback
            found: dict[str, int] = json.load(response)
        return found


@pytest.fixture
async def site(assistant: Assistant, provider, server_folder: Path) -> AsyncIterator[Site]:
    def prepare() -> tuple[str, str]:
        seed_ledger.seed(1, LINES)
        user = User.objects.get()
        User.objects.update(is_staff=True, is_superuser=True)
        conversation, parent = begin(user, assistant), None
        for number in range(MESSAGES):
            parent = Message.objects.create(
                conversation=conversation,
                parent=parent,
                role=(Message.Role.USER, Message.Role.ASSISTANT)[number % 2],
                text="word " * 4_000,
                html=f"<p>{'word ' * 4_000}</p>",
            )
        conversation.leaf = parent
        conversation.save()
        return session_key(user), str(conversation.pk)

    session, conversation = await db.run(prepare)
    static = server_folder / "static"
    static.mkdir()
    (static / "big.js").write_bytes(os.urandom(2_000_000))
    environment = {
        "DB_POOL_SIZE": str(POOL),
        "DB_THREADS": "2",
        "STATIC_ROOT": str(static),
        "LIMIT_EXPORTS": "off",
    }
    with Stack(
        server_folder,
        provider_url=provider.url,
        environment=environment,
        application="tests.support.pool_app:application",
    ) as stack:
        await asyncio.to_thread(stack.start, "web")
        yield Site(stack, session, conversation)


async def test_slow_readers_leave_connections_to_others(site: Site):
    for request in site.kinds.values():
        clients = [await site.connect() for _ in range(REQUESTS)]
        for _, writer in clients:
            writer.write(request)
        await asyncio.gather(*(first_bytes(reader) for reader, _ in clients))
        await site.answers()
        await site.has_all_connections()
        for _, writer in clients:
            writer.transport.abort()
        await site.answers()


async def first_bytes(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(PATIENCE):
        assert (await reader.read(12)).startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize(
    "cut",
    [
        lambda request: request[: len(request) // 2],
        lambda request: request[:-1],
        lambda request: request,
    ],
    ids=["amid the head", "before the last byte", "amid the response"],
)
async def test_requests_cut_off_cost_no_connection(site: Site, cut: Callable[[bytes], bytes]):
    for request in site.kinds.values():
        for delay in (0.0, 0.02, 0.2):
            await asyncio.gather(*(cut_off(site, cut(request), delay) for _ in range(REQUESTS)))
        await site.answers()
        await site.has_all_connections()


async def cut_off(site: Site, part: bytes, delay: float) -> None:
    """Send a part of a request, and reset the connection a little later."""
    _, writer = await site.connect()
    writer.write(part)
    await writer.drain()
    await asyncio.sleep(delay)
    reset = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    writer.transport.abort()


@pytest.mark.long
async def test_simultaneous_statements_are_all_complete(site: Site):
    """Each is a stream of several parts, each of which needs a connection."""

    async def lines() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.stack.port)
        writer.write(site.kinds["statement"].replace(b"HTTP/1.1", b"HTTP/1.0"))
        async with asyncio.timeout(60):
            body = await reader.read(-1)
        writer.close()
        assert body.startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 "))
        return body.count(b"\n")

    counts = await asyncio.gather(*(lines() for _ in range(REQUESTS)))
    assert min(counts) == max(counts) >= LINES
    await site.answers()
    await site.has_all_connections()


async def test_sockets_keep_no_connection(site: Site):
    headers = {"Cookie": f"sessionid={site.session}"}
    address = f"{site.stack.base.replace('http', 'ws')}/ws/v1/"
    unknown = {"type": "resume", "run": "00000000-0000-4000-8000-000000000000"}
    clients = [
        await connect(address, origin=Origin(site.stack.base), additional_headers=headers)
        for _ in range(REQUESTS)
    ]
    for client in clients:
        assert json.loads(await client.recv())["type"] == "ready"
        await client.send(json.dumps(unknown))
        client.transport.pause_reading()
    await site.answers()
    await site.has_all_connections()
    for client in clients:
        client.transport.abort()
    await site.answers()
    await site.has_all_connections()
