"""Bodies of the OpenAI-compatible API: read after the key was checked, in time, and within the process's memory."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accounts import api_keys
from accounts.models import User
from chat.api import memory as shared
from chat.api.errors import ApiError
from tests.support.people import assistant, owner
from tests.support.programs import PATIENCE
from tests.support.stack import Stack
from tests.support.web_server import receive_all

__all__ = ["assistant", "owner"]

MEGABYTE = 1_000_000
ASKED = b'{"model": "nothing", "messages": [{"role": "user", "content": "Hi"}]}'


@pytest.fixture
def stack(server_folder: Path) -> Iterator[Stack]:
    """A web process alone."""
    variables = {"API_BODY_SECONDS": "1"}
    with Stack(server_folder, provider_url="http://127.0.0.1:9", environment=variables) as running:
        running.start("web")
        yield running


class Upload:
    """A request that a test sends in parts."""

    def __init__(self, stack: Stack, secret: str, length: int | None) -> None:
        self.connection = socket.create_connection(("127.0.0.1", stack.port), timeout=PATIENCE)
        framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        self.send(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n"
            f"Authorization: Bearer {secret}\r\n\r\n".encode()
        )

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Return status and error of the answer, which ends the connection."""
        head, _, body = receive_all(self.connection).partition(b"\r\n\r\n")
        self.connection.close()
        assert b"\r\nx-request-id: " in head.lower()
        return int(head.split()[1]), json.loads(body)["error"]


def memory(pid: int) -> int:
    """Return the resident memory of a process in megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 // MEGABYTE


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("valkey_url", "assistant")
def test_key_is_checked_before_the_body(stack: Stack, owner: User):
    secret = api_keys.create(owner, api_keys.Terms(name="Test"))[1]
    limited = api_keys.create(owner, api_keys.Terms(name="Test", rate=1))[1]
    # No byte of these bodies is ever sent; the last two are of the same key.
    for key, length, status, code in (
        ("sk-parley-wrong", 20 * MEGABYTE, 401, "invalid_api_key"),
        ("sk-parley-wrong", 100, 401, "invalid_api_key"),
        ("sk-parley-wrong", None, 401, "invalid_api_key"),
        (secret, 20 * MEGABYTE + 1, 413, "body_too_large"),
        (secret, 10, 408, "request_timeout"),
        (limited, 20 * MEGABYTE, 408, "request_timeout"),
        (limited, 20 * MEGABYTE, 429, "rate_limit_exceeded"),
    ):
        began = time.monotonic()
        found = Upload(stack, key, length).answer()
        assert (found[0], found[1]["code"]) == (status, code)
        assert found[1]["type"] in ("invalid_request_error", "requests")
        assert (time.monotonic() - began > 0.8) == (status == 408)
    # Chunks above the limit.
    upload = Upload(stack, secret, None)
    for _ in range(20):
        upload.send(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
    assert upload.answer()[1]["code"] == "body_too_large"
    # Bodies in parts, and two requests by one connection.
    upload = Upload(stack, secret, len(ASKED))
    time.sleep(0.3)
    for part in (ASKED[:10], ASKED[10:]):
        upload.send(part)
        time.sleep(0.1)
    assert b"404 Not Found" in upload.connection.recv(10_000)
    upload.send(
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Authorization: Bearer " + secret.encode() + b"\r\n\r\n"
    )
    assert b"stub-model" in receive_all(upload.connection)
    upload.connection.close()
    # Parallel uploads take no more memory than one user may have; the rest waits in the kernel.
    before = memory(stack.pid("web"))
    stalled = [Upload(stack, secret, 15 * MEGABYTE) for _ in range(12)]
    for one in stalled:
        one.connection.setblocking(False)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        for one in stalled:
            try:
                one.connection.send(b" " * 65_536)
            except (BlockingIOError, ConnectionError):
                time.sleep(0.001)
    assert memory(stack.pid("web")) - before < 90
    for one in stalled:
        one.connection.close()
    assert "Traceback" not in stack.log("web")


@pytest.mark.asyncio
async def test_budget_gives_each_user_a_part(monkeypatch):
    budget = shared.Budget(100, 60)
    first = await budget.reserve(60, 1)
    monkeypatch.setattr(shared, "PATIENCE", 0.05)
    for size, user in ((1, 1), (41, 2)):
        with pytest.raises(ApiError) as refused:
            await budget.reserve(size, user)
        assert (refused.value.status, refused.value.code) == (503, "busy")
    monkeypatch.setattr(shared, "PATIENCE", 10.0)
    others = [asyncio.create_task(budget.reserve(50, user)) for user in (1, 2)]
    await asyncio.sleep(0)
    first.release()
    first.release()  # without effect
    for other in others:
        (await other).release()
    assert budget.free == 100
    assert not budget._of_users
