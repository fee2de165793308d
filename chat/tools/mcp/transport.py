"""The HTTP client that the package `mcp` is given: httpx2's interface on the guarded client of this project.

Each request is checked as those of chat.guarded.client: its address, and the IP addresses of its host. The address
that staff configured is exempt; one that a server names is not. Bodies are bounded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import aiohttp
import httpx2

from chat.guarded import client

KEPT_BYTES = 65_536  # of one read

# Set by aiohttp, or of no use beyond one connection.
LEFT_OUT = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "accept-encoding")
)


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Sends the requests of an httpx2.AsyncClient. `refused` is the last answer of status 401 or 403."""

    def __init__(self, policy: client.Policy) -> None:
        self._policy = policy
        self._session: aiohttp.ClientSession | None = None
        self.refused: httpx2.Response | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request. Raises httpx2.TransportError."""
        if self._session is None:
            self._session = client.open_session(self._policy)
        try:
            target = client.check(str(request.url), self._policy)
            answer = await self._session.request(
                request.method,
                target,
                data=await request.aread() or None,
                headers=self._headers(request.headers),
                allow_redirects=False,
            )
        except client.FetchError as error:
            raise httpx2.ConnectError(str(error), request=request) from error
        except TimeoutError as error:
            raise httpx2.ConnectTimeout(str(error), request=request) from error
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.ConnectError(type(error).__name__, request=request) from error
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            answer.close()
            raise httpx2.RemoteProtocolError("compressed without being asked", request=request)
        response = httpx2.Response(
            answer.status,
            headers=list(answer.headers.items()),
            stream=_Body(answer, self._policy.max_bytes),
            request=request,
        )
        if answer.status in (401, 403):
            self.refused = response
        return response

    def _headers(self, headers: httpx2.Headers) -> Mapping[str, str]:
        kept = {name: value for name, value in headers.items() if name.lower() not in LEFT_OUT}
        return {**kept, "Accept-Encoding": "identity", "User-Agent": client.AGENT}

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


class _Body(httpx2.AsyncByteStream):
    """The body of an answer, of at most so many bytes."""

    def __init__(self, answer: aiohttp.ClientResponse, most: int) -> None:
        self._answer = answer
        self._left = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while part := await self._answer.content.read(KEPT_BYTES):
                self._left -= len(part)
                if self._left < 0:
                    raise httpx2.ReadError("the answer is too large")
                yield part
        except TimeoutError as error:
            raise httpx2.ReadTimeout(str(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.ReadError(type(error).__name__) from error

    async def aclose(self) -> None:
        self._answer.close()
