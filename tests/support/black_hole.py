"""A TCP proxy on loopback that can stop forwarding, like a network that loses packets silently."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Self
from urllib.parse import urlsplit

PART = 65_536


class BlackHole:
    """Forwards connections to the server at `url`; `self.url` is the same URL through the proxy.

    Runs in a thread of its own from the beginning to the end of the `with`. Clients can always
    connect and write to it, as far as the kernel's buffers reach.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self._target = parts.hostname, parts.port
        self._parts = parts
        self.url = ""

    def __enter__(self) -> Self:
        started: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        user, separator, _ = self._parts.netloc.rpartition("@")
        netloc = f"{user}{separator}127.0.0.1:{started.result(10)}"
        self.url = self._parts._replace(netloc=netloc).geturl()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def close(self) -> None:
        """Stop forwarding: nothing passes, on open connections and on new ones."""
        self._call(self._is_open.clear)

    def open(self) -> None:
        """Forward again, beginning with everything that was written meanwhile."""
        self._call(self._is_open.set)

    def lose_connections(self) -> None:
        """Forward only new connections: the open ones stay silent for ever, at both ends."""

        def lose() -> None:
            for pump in self._pumps:
                pump.cancel()

        self._call(lose)

    def _call(self, action: Callable[[], None]) -> None:
        """Call in the proxy's thread; return when it is done."""

        async def call() -> None:
            action()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    async def _serve(self, started: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended, self._is_open = asyncio.Event(), asyncio.Event()
        self._is_open.set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=500)
        started.set_result(server.sockets[0].getsockname()[1])
        await self._ended.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        self._writers.append(to_client)
        with contextlib.suppress(asyncio.CancelledError):  # at the end of the proxy
            await self._connect(from_client, to_client)

    async def _connect(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        await self._is_open.wait()
        from_server, to_server = await asyncio.open_connection(*self._target)
        self._writers.append(to_server)
        for reader, writer in ((from_client, to_server), (from_server, to_client)):
            pump = asyncio.create_task(self._forward(reader, writer))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PART):
                await self._is_open.wait()
                writer.write(data)
                await writer.drain()
        await self._is_open.wait()
        writer.close()
