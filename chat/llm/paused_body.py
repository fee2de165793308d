"""The body of a streamed httpx2 response, read directly from aiohttp's buffer, with backpressure.

Four asynchronous generators between openai's client and the bytes cost more than all other work per
token, so `Body` reads the buffer itself. It can also `pause`: the kernel then buffers the data, and
all of it takes one read, one parse and one wake-up. The private names that this needs are checked
by tests/chat/llm/test_contract.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import httpx2


class Body:
    """Reads the body of a response whose headers have arrived. The caller closes the response."""

    def __init__(self, response: httpx2.Response) -> None:
        self._aiohttp = aiohttp_response(response)
        self._chunks: AsyncGenerator[bytes] | None = None
        self._paused: asyncio.ReadTransport | None = None
        if self._aiohttp is None or "content-encoding" in response.headers:
            # Compression that was not asked for is httpx2's to undo.
            self._aiohttp = None
            self._chunks = response.aiter_bytes()

    async def read(self) -> bytes:
        """Return all bytes since the last read, after waiting for some; empty at the end.

        Raises aiohttp.ClientError or httpx2.HTTPError.
        """
        if self._aiohttp is None:
            assert self._chunks is not None
            return await anext(self._chunks, b"")
        # As `content.readany()`, which wakes its parser once more for each chunk.
        content = self._aiohttp.content
        fault = content.exception()
        if fault is not None:
            raise fault
        buffer = content._buffer
        while not buffer and not content.is_eof():
            await content._wait("read")
        if len(buffer) > 1:
            whole = b"".join(buffer)
            buffer.clear()
            buffer.append(whole)
        return content.read_nowait()

    async def drain(self) -> None:
        """Read the rest of the body and drop it."""
        while await self.read():
            pass

    def pause(self) -> None:
        """Leave arriving data, and the end, in the kernel until `resume`. Call it after `read`.

        Without effect at the end of the body, and for a body that is decompressed.
        """
        # At the end of the body aiohttp detaches the connection, for the next request.
        connection = self._aiohttp.connection if self._aiohttp is not None else None
        transport = connection.transport if connection is not None else None
        if transport is not None and not transport.is_closing():
            transport.pause_reading()
            self._paused = transport

    def resume(self) -> None:
        """Undo `pause`. Without effect when the response is closed or was not paused."""
        transport, self._paused = self._paused, None
        # A paused body does not end, so its connection cannot serve another request yet.
        if transport is not None and not transport.is_closing():
            transport.resume_reading()

    async def close(self) -> None:
        """Stop reading, before the response is closed."""
        if self._chunks is not None:
            await self._chunks.aclose()


def aiohttp_response(response: httpx2.Response) -> aiohttp.ClientResponse | None:
    """Return the response that openai's DefaultAioHttpClient wraps; None for another transport.

    Neither httpx2 nor that transport has a public way to it.
    """
    stream: Any = getattr(response.stream, "_stream", None)
    found = getattr(stream, "_aiohttp_response", None)
    return found if isinstance(found, aiohttp.ClientResponse) else None
