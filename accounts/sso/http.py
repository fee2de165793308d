"""Requests to identity providers: bounded in time, size and number, and without redirects.

A private address is legitimate: the operator names the issuer. Its own documents name the other addresses.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from accounts.sso.errors import SignInFailed

logger = logging.getLogger(__name__)

SECONDS = 6.0  # of one request
MAX_BYTES = 1_000_000  # of one answer
# Requests of this process at the same time: each holds a thread, and pages need the others.
AT_ONCE = 3
PATIENCE = 3.0  # seconds to wait for one of them
WAITING = 2  # requests that wait so; the next are refused at once

_places = threading.BoundedSemaphore(AT_ONCE + WAITING)
_slots = threading.BoundedSemaphore(AT_ONCE)


def get(url: str, *, token: str = "", accept: str = "application/json") -> Any:
    """Return the JSON at an address, with an access token if there is one. Raises SignInFailed."""
    headers = {"Accept": accept}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    status, answer = _request("GET", url, headers=headers)
    if status != 200:
        raise SignInFailed("unreachable" if status >= 500 else "refused", f"{url}: HTTP {status}")
    return answer


def post(
    url: str, form: dict[str, str], *, auth: tuple[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Post a form; return the status and the JSON object of the answer. Raises SignInFailed."""
    headers = {"Accept": "application/json"}
    if auth:
        headers["Authorization"] = f"Basic {b64encode(':'.join(auth).encode()).decode()}"
    status, answer = _request("POST", url, headers=headers, data=form)
    if status >= 500:
        raise SignInFailed("unreachable", f"{url}: HTTP {status}")
    return status, answer if isinstance(answer, dict) else {}


def reach(url: str) -> None:
    """Raise SignInFailed unless an address answers, with any status below 500."""
    status, _answer = _request("GET", url, is_json=False)
    if status >= 500:
        raise SignInFailed("unreachable", f"{url}: HTTP {status}")


def _request(method: str, url: str, *, is_json: bool = True, **options: Any) -> tuple[int, Any]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SignInFailed("invalid", "an address of the provider is not one of http or https")
    import aiohttp  # of the web processes, only those that use it: it takes time and memory

    try:
        with _slot():
            # The thread of a page has no event loop. The limit is on the whole request, unlike that
            # of clients with a limit on each read.
            status, body = asyncio.run(_send(method, url, options))
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise SignInFailed("unreachable", f"{parts.hostname}: {type(error).__name__}") from error
    if not is_json:
        return status, None
    try:
        return status, json.loads(body)
    except (ValueError, RecursionError) as error:
        if status != 200:
            return status, None
        raise SignInFailed("invalid", f"{parts.hostname}: the answer is not JSON") from error


@contextmanager
def _slot() -> Iterator[None]:
    """Take a slot, for which few requests wait at the same time. Raises SignInFailed."""
    busy = SignInFailed("unreachable", "requests to identity providers are waiting for answers")
    if not _places.acquire(blocking=False):
        raise busy
    try:
        if not _slots.acquire(timeout=PATIENCE):
            raise busy
        try:
            yield
        finally:
            _slots.release()
    finally:
        _places.release()


async def _send(method: str, url: str, options: dict[str, Any]) -> tuple[int, bytes]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
        session.request(method, url, allow_redirects=False, **options) as response,
    ):
        body = bytearray()
        async for part in response.content.iter_chunked(65_536):
            body += part
            if len(body) > MAX_BYTES:
                raise ValueError("the answer is too large")
        return response.status, bytes(body)
