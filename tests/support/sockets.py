"""The socket of a tab: the real application in this process, without a server around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from channels.testing import WebsocketCommunicator

from accounts.models import User
from chatproject.asgi import application
from chatproject.lib import db
from tests.support.people import session_key

PATIENCE = 10.0  # seconds


class Closed(Exception):
    """The server closed the socket with this code."""

    def __init__(self, code: int | str | None) -> None:
        self.code = code
        super().__init__(str(code))


ANNOUNCEMENTS = {"balance", "conversation.updated", "run.queued"}


class Tab:
    """A connected socket; all events that it received are in `received`, in order."""

    def __init__(self, communicator: WebsocketCommunicator) -> None:
        self._communicator = communicator
        self.received: list[dict[str, Any]] = []

    async def send(self, **fields: Any) -> None:
        await self.send_text(msgspec.json.encode(fields).decode())

    async def send_text(self, text: str) -> None:
        await self._communicator.send_input({"type": "websocket.receive", "text": text})

    async def send_bytes(self, data: bytes) -> None:
        await self._communicator.send_to(bytes_data=data)

    async def receive(self) -> dict[str, Any]:
        """Return the next event. Raises Closed when the server has closed the socket."""
        output = await self._communicator.receive_output(PATIENCE)
        if output["type"] == "websocket.close":
            raise Closed(output["code"])
        event: dict[str, Any] = msgspec.json.decode(output["text"])
        self.received.append(event)
        return event

    async def close_code(self) -> int | str | None:
        """Return the code with which the server closes the socket, before any further event."""
        try:
            event = await self.receive()
        except Closed as closed:
            return closed.code
        raise AssertionError(f"not closed, but {event}")

    async def until(self, *types: str) -> dict[str, Any]:
        """Return the next event of one of the types, past all others."""
        async with asyncio.timeout(PATIENCE):
            while True:
                event = await self.receive()
                if event["type"] in types:
                    return event

    async def end(self) -> dict[str, Any]:
        """Return the event that ends a run, past all others."""
        return await self.until("run.done", "run.stopped", "run.failed")

    async def is_silent(self) -> bool:
        """Return whether no event was pending when a ping was sent.

        Announcements of earlier commands do not count: they leave a moment after their COMMIT.
        """
        await self.send(type="ping")
        while (event := await self.receive())["type"] in ANNOUNCEMENTS:
            pass
        return bool(event["type"] == "pong")

    async def is_quiet(self) -> bool:
        """Return whether the server sends nothing, also without an answer to a ping."""
        return bool(await self._communicator.receive_nothing())

    def text(self) -> str:
        """Return the text of all deltas received so far."""
        return "".join(event["text"] for event in self.received if event["type"] == "text.delta")

    def blocks(self) -> list[str]:
        """Return the HTML of all blocks received so far."""
        blocks: list[str] = []
        for event in self.received:
            if event["type"] == "reply.blocks":
                first = event["first"]
                blocks[first : first + len(event["blocks"])] = event["blocks"]
        return blocks

    def seqs(self) -> list[int]:
        """Return the numbers of all numbered events received so far."""
        return [event["seq"] for event in self.received if "seq" in event]


@asynccontextmanager
async def open_tab(
    user: User | None, *, session: str | None = None, query: str = "", **headers: bytes
) -> AsyncIterator[Tab]:
    """Open a socket and read its `ready`; without a user, the server is about to close it.

    `session` is the key of the user's session, by default a new one; `query` belongs to the address.
    """
    sent = {b"host": b"localhost", b"origin": b"http://localhost"} | {
        name.encode(): value for name, value in headers.items()
    }
    if user is not None:
        key = session or await db.run(session_key, user)
        sent[b"cookie"] = f"sessionid={key}".encode()
    await db.run_deferred()  # events of earlier steps would arrive in between
    communicator = WebsocketCommunicator(application, f"/ws/v1/{query}", headers=list(sent.items()))
    connected, code = await communicator.connect(PATIENCE)
    if not connected:
        raise Closed(code)
    tab = Tab(communicator)
    try:
        if user is not None:
            assert (await tab.receive())["type"] == "ready"
            tab.received.clear()
        yield tab
    finally:
        await communicator.disconnect(timeout=PATIENCE)


async def refusal(
    user: User | None, *, session: str | None = None
) -> tuple[dict[str, Any], int | str | None]:
    """Open a socket that the server refuses; return its error and the close code."""
    headers = [(b"host", b"localhost"), (b"origin", b"http://localhost")]
    if user is not None:
        key = session or await db.run(session_key, user)
        headers.append((b"cookie", f"sessionid={key}".encode()))
    communicator = WebsocketCommunicator(application, "/ws/v1/", headers=headers)
    connected, code = await communicator.connect(PATIENCE)
    if not connected:
        raise Closed(code)
    tab = Tab(communicator)
    error = await tab.receive()
    code = await tab.close_code()
    await communicator.disconnect(timeout=PATIENCE)
    return error, code
