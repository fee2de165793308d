"""WebSockets of the web server: limits on input, order and backpressure on output."""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from chatproject.lib.server.limits import MAX_FRAGMENTS, MAX_FRAME_BYTES
from tests.support.programs import wait_until
from tests.support.serve_app import SIZES
from tests.support.web_server import (
    UPGRADE,
    WebServer,
    close_code,
    read_close_code,
    receive_all,
)

Start = Callable[..., WebServer]
INVALID_UTF8 = b"\x81\x82" + bytes(4) + b"\xc3\x28"

# --- Input ----------------------------------------------------------------------------------------


async def test_text_and_binary_frames_are_echoed(server: WebServer):
    async with server.connect("/ws/echo") as connection:
        await connection.send("grüße")
        assert await connection.recv() == "grüße"
        await connection.send(b"\x00\xff")
        assert await connection.recv() == b"\x00\xff"


@pytest.mark.parametrize("message", ["x" * MAX_FRAME_BYTES, ["x" * 1_000] * 65])
async def test_message_at_the_limit_is_echoed(server: WebServer, message: Any):
    async with server.connect("/ws/echo") as connection:
        await connection.send(message)
        assert await connection.recv() == "".join(message)


@pytest.mark.parametrize(
    "message",
    ["x" * (MAX_FRAME_BYTES + 1), "x" * 1_000_000, ["x" * 1_000] * 66, [""] * (MAX_FRAGMENTS + 1)],
    ids=["frame", "large frame", "fragments", "empty fragments"],
)
async def test_message_above_the_limit_closes_with_1009(server: WebServer, message: Any):
    async with server.connect("/ws/echo") as connection:
        with contextlib.suppress(ConnectionClosed):
            await connection.send(message)
        assert await close_code(connection) == 1009


def test_oversized_frame_takes_no_memory(server: WebServer):
    before = server.memory()
    with server.upgraded() as connection:
        connection.sendall(b"\x81\xff" + struct.pack("!Q", 1 << 40) + bytes(4))
        for _ in range(50):
            connection.sendall(b"x" * 1_000_000)
        assert server.memory() - before < 10_000_000
        assert read_close_code(connection) == 1009


@pytest.mark.parametrize(
    ("frames", "code"),
    [(INVALID_UTF8, 1007), (INVALID_UTF8 * 3, 1007), (b"\x81\x01a", 1002)],
    ids=["invalid UTF-8", "three times", "not masked"],
)
def test_violation_closes_with_its_own_code(server: WebServer, frames: bytes, code: int):
    with server.upgraded() as connection:
        connection.sendall(frames)
        assert read_close_code(connection) == code


@pytest.mark.parametrize(
    "handshake",
    [
        UPGRADE.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
        UPGRADE.replace("Sec-WebSocket-Key: dGhl", "Sec-WebSocket-Key: <script>"),
        UPGRADE.replace("Version: 13", "Version: 12"),
        UPGRADE.replace("GET", "POST"),
        UPGRADE + f"Cookie: {'x' * 12_000}\r\n" + "Sec-WebSocket-Key: twice\r\n",
    ],
    ids=["no key", "bad key", "bad version", "bad method", "two keys"],
)
def test_bad_handshake_is_answered_with_4xx(server: WebServer, handshake: str):
    with server.raw() as connection:
        connection.sendall(handshake.encode() + b"\r\n")
        answer = receive_all(connection)
    assert re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert b"script" not in answer.split(b"\r\n")[0]
    assert server.get("/health") == b"ok"


async def test_reading_pauses_when_the_application_falls_behind(start: Start):
    server = start()
    before = server.memory()
    count = 2_000  # of 64 KB
    async with server.connect("/ws/deaf") as connection:
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            for number in range(count):
                await connection.send(f"{number} ".ljust(64_000, "x"))
                sent += 1
            await connection.send("last")

        sending = asyncio.create_task(send_all())
        last = -1
        while last <= 0 or sent != last:
            last = sent
            await asyncio.sleep(0.5)
        assert sent < count / 2
        assert server.memory() - before < 20_000_000
        await asyncio.to_thread(server.get, "/wake")
        await sending
        assert await connection.recv() == f"{count} True"
    assert server.memory() - before < 30_000_000


# --- Output ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1003, 1011, 4401])
async def test_close_code_of_the_application_arrives(server: WebServer, code: int):
    async with server.connect("/ws/echo") as connection:
        await connection.send(str(code))
        assert await close_code(connection) == code


async def test_refused_socket_is_answered_with_403(server: WebServer):
    with pytest.raises(InvalidStatus, match="403"):
        async with server.connect("/ws/refuse"):
            pass


async def test_incoming_limit_does_not_bound_outgoing_messages(server: WebServer):
    async with server.connect("/ws/flood?count=1&size=300000") as connection:
        assert len(await connection.recv()) == 300_000


async def test_encoded_texts_arrive_unchanged_until_the_end(server: WebServer):
    expected = ["ü" * (size // 2) for size in SIZES]
    async with server.connect("/ws/sizes") as connection:
        for text in [*expected, *expected, "the last"]:
            assert await connection.recv() == text
        assert await close_code(connection) == 4000


@pytest.mark.parametrize("way", ["", "&encoded=1"])
async def test_slow_client_blocks_sender_and_receives_everything(start: Start, way: str):
    server = start()
    before = server.memory()
    count, size = 20_000, 5_000  # 100 MB
    path = f"/ws/flood?count={count}&size={size}{way}"
    async with server.connect(path, max_queue=1) as connection:
        sent = await asyncio.to_thread(server.stalled_count)
        assert 0 < sent < count / 4
        assert server.memory() - before < 20_000_000
        for number in range(count):
            assert (await connection.recv()).split()[0] == str(number)
    assert await asyncio.to_thread(server.stalled_count) == count
    assert server.memory() - before < 30_000_000


@pytest.mark.parametrize("way", ["", "&encoded=1"])
def test_client_that_reads_nothing_is_dropped(start: Start, way: str):
    server = start(WEB_STALL_SECONDS="1")
    with server.upgraded(f"/ws/flood?count=1000&size=60000{way}"):
        wait_until(lambda: server.state()["codes"] != [], "the application received the end")
    assert server.state()["sent"] == 1_000  # most of them after the connection was lost


def test_client_that_reads_slowly_is_kept(start: Start):
    server = start(WEB_STALL_SECONDS="2")
    with server.upgraded("/ws/flood?count=1000&size=60000") as connection:
        for _ in range(40):
            # The whole buffer: for less the kernel may not open the window again, which the server's
            # kernel takes for a client that reads nothing.
            assert connection.recv(65_536)
            time.sleep(0.1)
        state = server.state()
    assert state["sent"] < 1_000
    assert state["codes"] == []


def test_client_that_answers_no_ping_is_dropped(start: Start):
    server = start(PING_INTERVAL="0.1", PING_TIMEOUT="0.5")
    with server.upgraded() as connection:
        assert b"\x89" in receive_all(connection)  # a ping
    wait_until(lambda: server.state()["codes"] != [], "the application received the end")


def test_unread_pongs_do_not_fill_the_memory(start: Start):
    server = start()
    before = server.memory()
    pings = (b"\x89\xfd" + bytes(4) + b"x" * 125) * 1_000
    with server.upgraded() as connection:
        # 16 MB: enough to show, and done before the server's own pings find the client silent.
        for _ in range(120):
            connection.sendall(pings)
        assert server.memory() - before < 8_000_000
    assert server.get("/health") == b"ok"


def test_requests_are_answered_while_sockets_are_flooded(start: Start):
    server = start()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(server.upgraded("/ws/flood?count=100000&size=1000"))
        for _ in range(20):
            assert server.get("/health") == b"ok"
