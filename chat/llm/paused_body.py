"""The body of a streamed response of httpx2, read from aiohttp's buffer and held back at will.

Between openai's client and the bytes lie four asynchronous generators, which cost more than all else
that is done with a token. `Body` reads the buffer itself. It can also `pause`: then the network's
data gathers in the kernel, and what came meanwhile is one read, one parse and one wake-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import httpx2


class Body:
    """Reads the body of a response whose headers are there. The caller closes the response."""

    def __init__(self, response: httpx2.Response) -> None:
        self._aiohttp = _aiohttp_response(response)
        self._chunks: AsyncGenerator[bytes] | None = None
        self._paused: asyncio.ReadTransport | None = None
        if self._aiohttp is None or "content-encoding" in response.headers:
            # What somebody compressed unasked is httpx2's to decompress.
            self._aiohttp = None
            self._chunks = response.aiter_bytes()

    async def read(self) -> bytes:
        """What has come since the last time; waits for it when that is nothing. Empty at the end.

        Raises aiohttp.ClientError or httpx2.HTTPError.
        """
        if self._aiohttp is not None:
            return await _read_any(self._aiohttp.content)
        assert self._chunks is not None
        return await anext(self._chunks, b"")

    def pause(self) -> None:
        """Let what comes in wait until `resume`, its end too. Only after `read`, which leaves nothing
        in the buffer. Without effect at the end of the body, and for one that is decompressed."""
        transport = self._transport()
        if transport is not None:
            transport.pause_reading()
            self._paused = transport

    def resume(self) -> None:
        """Undo `pause`. Without effect when the response is closed or was not paused."""
        transport, self._paused = self._paused, None
        # A body that is paused does not end, so that its connection is nobody else's yet.
        if transport is not None and not transport.is_closing():
            transport.resume_reading()

    async def close(self) -> None:
        """Give up reading, before the response is closed."""
        if self._chunks is not None:
            await self._chunks.aclose()

    def _transport(self) -> asyncio.ReadTransport | None:
        # At the end of the body aiohttp takes the connection away, for the next request.
        connection = self._aiohttp.connection if self._aiohttp is not None else None
        transport = connection.transport if connection is not None else None
        return None if transport is None or transport.is_closing() else transport


async def _read_any(content: aiohttp.StreamReader) -> bytes:
    """As `content.readany()`, which wakes its parser once more for each chunk of the answer."""
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


def _aiohttp_response(response: httpx2.Response) -> aiohttp.ClientResponse | None:
    """What the transport of openai's DefaultAioHttpClient wraps; None for another transport.

    Neither httpx2 nor that transport has a public way to it.
    """
    stream: Any = getattr(response.stream, "_stream", None)
    found = getattr(stream, "_aiohttp_response", None)
    return found if isinstance(found, aiohttp.ClientResponse) else None
