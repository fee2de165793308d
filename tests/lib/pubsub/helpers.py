"""Callbacks, servers and proxies with which the tests watch and disturb the layer."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import redis

PATIENCE = 20.0  # seconds; only a test that hangs ever waits this long


class Inbox:
    """A callback that stores its arguments."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._changed = asyncio.Event()

    def __call__(self, item: Any = None) -> None:
        self.items.append(item)
        self._changed.set()

    async def wait(self, count: int) -> list[Any]:
        """Return all items so far, once there are that many."""
        async with asyncio.timeout(PATIENCE):
            while len(self.items) < count:
                await self._changed.wait()
                self._changed.clear()
        return self.items


async def until(condition: Callable[[], object]) -> None:
    """Poll until a condition holds, such as a server's state."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


class Server:
    """Inspects a Valkey and interferes with its clients."""

    def __init__(self, url: str) -> None:
        self._url = url

    def run(self, *command: str | bytes) -> Any:
        with redis.Redis.from_url(self._url, decode_responses=True) as client:
            return client.execute_command(*command)

    def publish(self, channel: str, data: bytes) -> int:
        """Publish; returns the number of connections that received it."""
        return int(self.run("PUBLISH", channel, data))

    def subscribers(self, channel: str) -> int:
        return int(self.run("PUBSUB NUMSUB", channel)[0][1])

    def channels(self) -> set[str]:
        return set(self.run("PUBSUB CHANNELS"))

    def info(self, name: str) -> Any:
        return self.run("INFO", "everything")[name]

    def kill_connections(self) -> None:
        """Kill all connections, subscribing and publishing ones."""
        self.run("CLIENT", "KILL", "TYPE", "pubsub")
        self.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


class Gate:
    """A proxy in front of a Valkey that can hold its replies back, optionally with TLS."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._tls = tls
        self._clients: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_holding = False
        self.held = bytearray()

    async def __aenter__(self) -> Gate:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{port}/0"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for client in self._clients:
            client.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        server_reader, server = await asyncio.open_connection(*self._address)
        self._clients.append(client)
        for pump in (self._pump(reader, server), self._pump_replies(server_reader, client)):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def _pump_replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.is_holding:
                    self.held += data
                else:
                    writer.write(data)
        writer.close()

    def let_through(self, size: int) -> None:
        """Send the first bytes held to the newest connection."""
        self.send(bytes(self.held[:size]))
        del self.held[:size]

    def send(self, data: bytes) -> None:
        """Send any bytes to the newest connection."""
        self._clients[-1].write(data)
