"""The web server as a process, with Daphne and with Uvicorn, serving tests/serve_app.py."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from chatproject.lib import web
from tests.serve_app import SIZES

PATIENCE = 30  # seconds; long enough for a busy machine, and only a hang takes them
SERVERS = ("daphne", "uvicorn")
UPGRADE = (
    "GET /ws/echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class Server:
    """`python -m chatproject.serve` as a child process, with its log in a file."""

    def __init__(self, name: str, log: Path, *arguments: str, **variables: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "chatproject.serve", "--port", "0", *arguments]
        command += ["--application", "tests.serve_app:application"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env={**os.environ, "WEB_SERVER": name, **variables},
            )
        try:
            url: str = self.wait_for_log(r"listening on http://(\S+)$")[1]
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.host, _, port = url.rpartition(":")
        self.port = int(port)

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        found: re.Match[str] | None = until(
            lambda: re.search(pattern, self.log.read_text(), re.MULTILINE)
        )
        assert found, f"{pattern} is not in the log: {self.log.read_text()}"
        return found

    def connect(self, path: str, **options: Any) -> connect:
        return connect(f"ws://{self.host}:{self.port}{path}", **options)

    def get(self, path: str, **headers: str) -> bytes:
        status, body = self.request("GET", path, headers=headers)
        assert status == 200
        return body

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.get("/state"))
        return state

    def request(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        connection = self.http()
        with contextlib.closing(connection):
            connection.request(method, path, **options)
            response = connection.getresponse()
            return response.status, response.read()

    def http(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host.strip("[]"), self.port, timeout=PATIENCE)

    def raw(self) -> socket.socket:
        return socket.create_connection((self.host.strip("[]"), self.port), timeout=PATIENCE)

    def upgraded(self, path: str = "/ws/echo") -> socket.socket:
        """A connection after the opening handshake, for frames that no client library sends."""
        connection = self.raw()
        # Small, so that little disappears in the kernel where the client does not read; but not so
        # small that the kernel drops whole packets, and with them what they acknowledge.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.sendall(UPGRADE.replace("/ws/echo", path).encode() + b"\r\n")
        assert connection.recv(1_000).startswith(b"HTTP/1.1 101 ")
        return connection

    def memory(self) -> int:
        """Resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        return self.process.wait(timeout=PATIENCE)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def until(condition: Callable[[], Any]) -> Any:
    """The condition's value as soon as it is true, or the last one when patience is over."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


async def aio_until(condition: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(until, condition)


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    server = Server(request.param, tmp_path_factory.mktemp("serve") / "log")
    yield server
    server.stop()
    # Nothing that a client sends is an error of ours.
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(params=SERVERS)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of the test's own."""
    started: list[Server] = []

    def start_one(*arguments: str, **variables: str) -> Server:
        log = tmp_path / f"log{len(started)}"
        started.append(Server(request.param, log, *arguments, **variables))
        return started[-1]

    yield start_one
    for each in started:
        each.stop()


async def close_code(connection: ClientConnection) -> int:
    """The code with which the server closes the connection, past all messages before it."""
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionClosed):
            async for _ in connection:
                pass
    assert connection.close_code is not None
    return connection.close_code


def receive_all(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            received += part
    return received


# --- WebSockets: what comes in ------------------------------------------------------------------


async def test_it_echoes_text_and_binary_frames(server: Server) -> None:
    async with server.connect("/ws/echo") as connection:
        await connection.send("grüße")
        assert await connection.recv() == "grüße"
        await connection.send(b"\x00\xff")
        assert await connection.recv() == b"\x00\xff"


async def test_it_takes_a_frame_of_the_greatest_size_and_closes_a_greater_one(
    server: Server,
) -> None:
    async with server.connect("/ws/echo") as connection:
        await connection.send("x" * web.MAX_FRAME_BYTES)
        assert await connection.recv() == "x" * web.MAX_FRAME_BYTES
        await connection.send("x" * (web.MAX_FRAME_BYTES + 1))
        assert await close_code(connection) == 1009


async def test_it_closes_a_frame_of_a_megabyte_with_1009(server: Server) -> None:
    async with server.connect("/ws/echo") as connection:
        with contextlib.suppress(ConnectionClosed):
            await connection.send("x" * 1_000_000)
        assert await close_code(connection) == 1009


def test_it_does_not_keep_what_comes_of_a_great_frame(server: Server) -> None:
    before = server.memory()
    with server.upgraded() as connection:
        connection.sendall(b"\x81\xff" + struct.pack("!Q", 1 << 40) + bytes(4))
        for _ in range(50):
            connection.sendall(b"x" * 1_000_000)
        assert server.memory() - before < 10_000_000
        assert read_close_code(connection) == 1009


async def test_it_closes_a_message_of_too_great_fragments_with_1009(server: Server) -> None:
    async with server.connect("/ws/echo") as connection:
        await connection.send(["x" * 1_000] * 65)
        assert await connection.recv() == "x" * 65_000
        with contextlib.suppress(ConnectionClosed):
            await connection.send(["x" * 1_000] * 66)
        assert await close_code(connection) == 1009


async def test_it_closes_a_message_of_endless_empty_fragments_with_1009(server: Server) -> None:
    async with server.connect("/ws/echo") as connection:
        with contextlib.suppress(ConnectionClosed):
            await connection.send([""] * (web.MAX_FRAGMENTS + 1))
        assert await close_code(connection) == 1009


@pytest.mark.parametrize("times", [1, 3])
def test_it_closes_invalid_utf8_with_1007(server: Server, times: int) -> None:
    with server.upgraded() as connection:
        connection.sendall((b"\x81\x82" + bytes(4) + b"\xc3\x28") * times)
        assert read_close_code(connection) == 1007


def test_it_closes_an_unmasked_frame_with_1002(server: Server) -> None:
    with server.upgraded() as connection:
        connection.sendall(b"\x81\x01a")
        assert read_close_code(connection) == 1002


def read_close_code(connection: socket.socket) -> int:
    """The code of the close frame that must be the next one."""
    closing = connection.recv(1_000)
    assert closing[0] == 0x88
    code: int = struct.unpack("!H", closing[2:4])[0]
    return code


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
def test_it_answers_a_bad_handshake_with_a_4xx_and_closes(server: Server, handshake: str) -> None:
    with server.raw() as connection:
        connection.sendall(handshake.encode() + b"\r\n")
        answer = receive_all(connection)
    assert re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert b"script" not in answer.split(b"\r\n")[0]
    assert server.get("/health") == b"ok"


async def test_it_stops_reading_from_a_socket_whose_application_is_behind(
    start: Callable[..., Server],
) -> None:
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
        await settled(lambda: sent)
        assert sent < count / 2
        assert server.memory() - before < 20_000_000
        await asyncio.to_thread(server.get, "/wake")
        async with asyncio.timeout(PATIENCE):
            await sending
            assert await connection.recv() == f"{count} True"
    assert server.memory() - before < 30_000_000


async def settled(number: Callable[[], int]) -> int:
    """The number as soon as it is not 0 and has not changed for half a second."""
    async with asyncio.timeout(PATIENCE):
        last = -1
        while last <= 0 or number() != last:
            last = number()
            await asyncio.sleep(0.5)
    return last


# --- WebSockets: what goes out ------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1003, 1011, 4401])
async def test_a_client_sees_the_close_code_of_the_application(server: Server, code: int) -> None:
    async with server.connect("/ws/echo") as connection:
        await connection.send(str(code))
        assert await close_code(connection) == code


async def test_a_socket_that_the_application_refuses_is_answered_with_403(server: Server) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        async with server.connect("/ws/refuse"):
            pass


async def test_the_limit_for_incoming_messages_does_not_bound_outgoing_ones(server: Server) -> None:
    async with server.connect("/ws/flood?count=1&size=300000") as connection:
        message = await connection.recv()
        assert len(message) == 300_000


async def test_encoded_texts_arrive_as_they_are_between_the_beginning_and_the_end(
    server: Server,
) -> None:
    expected = ["ü" * (size // 2) for size in SIZES]
    async with server.connect("/ws/sizes") as connection:
        for text in [*expected, *expected, "the last"]:
            assert await connection.recv() == text
        assert await close_code(connection) == 4000


@pytest.mark.parametrize("way", ["flood", "frames"])
async def test_a_slow_client_makes_the_application_wait_and_gets_everything_in_order(
    start: Callable[..., Server], way: str
) -> None:
    server = start()
    before = server.memory()
    count, size = 20_000, 5_000  # 100 MB
    async with server.connect(f"/ws/{way}?count={count}&size={size}", max_queue=1) as connection:
        sent = await asyncio.to_thread(stalled_count, server)
        assert 0 < sent < count / 4
        assert server.memory() - before < 20_000_000
        async with asyncio.timeout(2 * PATIENCE):
            for number in range(count):
                assert (await connection.recv()).split()[0] == str(number)
    assert await aio_until(lambda: server.state()["sent"]) == count
    assert server.memory() - before < 30_000_000


def stalled_count(server: Server) -> int:
    """The application's count of what it has sent, when that does not grow any more."""
    last, sent = -1, 0
    while sent != last or sent == 0:
        last, sent = sent, server.state()["sent"]
        time.sleep(0.5)
    return sent


@pytest.mark.parametrize("way", ["flood", "frames"])
def test_a_client_that_reads_nothing_is_dropped_and_the_application_hears_of_it(
    start: Callable[..., Server], way: str
) -> None:
    server = start(WEB_STALL_SECONDS="1")
    with server.upgraded(f"/ws/{way}?count=1000&size=60000"):
        assert until(lambda: server.state()["codes"])
    assert server.state()["sent"] == 1_000  # most of them to nobody


def test_a_client_that_reads_slowly_is_kept(start: Callable[..., Server]) -> None:
    server = start(WEB_STALL_SECONDS="1")
    with server.upgraded("/ws/flood?count=1000&size=60000") as connection:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            assert connection.recv(1_000)
            time.sleep(0.01)
        state = server.state()
    assert state["sent"] < 1_000
    assert state["codes"] == []


async def test_a_client_that_does_not_answer_pings_is_dropped(start: Callable[..., Server]) -> None:
    server = start(PING_INTERVAL="0.1", PING_TIMEOUT="0.5")
    with server.upgraded() as connection:
        received = await asyncio.to_thread(receive_all, connection)
    assert b"\x89" in received  # a ping
    assert await aio_until(lambda: server.state()["codes"])


def test_pings_of_a_client_that_does_not_read_do_not_fill_the_memory(
    start: Callable[..., Server],
) -> None:
    server = start()
    before = server.memory()
    pings = (b"\x89\xfd" + bytes(4) + b"x" * 125) * 1_000
    with server.upgraded() as connection:
        # 16 MB: enough to show, and over before the server's own pings find that nobody answers.
        for _ in range(120):
            connection.sendall(pings)
        assert server.memory() - before < 8_000_000
    assert server.get("/health") == b"ok"


# --- HTTP ---------------------------------------------------------------------------------------


def test_it_answers_several_requests_on_one_connection(server: Server) -> None:
    connection = server.http()
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b"ok"


def test_it_takes_a_body_of_the_greatest_size(server: Server) -> None:
    body = b"x" * (2 * 1024 * 1024)
    assert server.request("POST", "/count", body=body) == (200, b"2097152")
    chunks = [body[:1_000_000], body[1_000_000:]]
    answer = server.request(
        "POST",
        "/count",
        body=iter(chunks),
        encode_chunked=True,
        headers={"Transfer-Encoding": "chunked"},
    )
    assert answer == (200, b"2097152")


def test_it_answers_413_to_a_greater_length_and_the_application_never_sees_it(
    start: Callable[..., Server],
) -> None:
    server = start(MAX_BODY_BYTES="100000")
    status, _ = server.request("POST", "/count", body=b"x" * 5_000_000)
    assert status == 413
    assert server.state()["requests"] == 0


def test_it_answers_413_before_it_has_the_body(server: Server) -> None:
    with server.raw() as connection:
        connection.sendall(
            b"POST /count HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert receive_all(connection).startswith(b"HTTP/1.1 413 ")


def test_it_answers_413_to_chunks_that_add_up(server: Server) -> None:
    before = server.memory()
    chunks = iter([b"x" * 100_000] * 21)
    headers = {"Transfer-Encoding": "chunked"}
    status, _ = server.request("POST", "/count", body=chunks, encode_chunked=True, headers=headers)
    assert status == 413
    assert server.memory() - before < 10_000_000


@pytest.mark.parametrize(
    "head",
    [
        f"GET /{'x' * 20_000} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        f"GET /health HTTP/1.1\r\nHost: localhost\r\nCookie: {'x' * 20_000}\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: localhost\r\n" + "A: b\r\n" * 200 + "\r\n",
        "this is not HTTP\r\n\r\n",
    ],
    ids=["long path", "long header", "many headers", "garbage"],
)
def test_it_answers_a_bad_head_with_a_4xx_and_closes(server: Server, head: str) -> None:
    with server.raw() as connection:
        connection.sendall(head.encode())
        assert re.match(rb"HTTP/1.1 4\d\d ", receive_all(connection))


@pytest.mark.parametrize("beginning", ["GET /", "GET /health HTTP/1.1\r\nCookie: "])
def test_it_does_not_keep_a_head_that_does_not_end(server: Server, beginning: str) -> None:
    before = server.memory()
    with server.raw() as connection:
        connection.sendall(beginning.encode())
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(300):
                connection.sendall(b"x" * 100_000)
        assert server.memory() - before < 10_000_000
        assert receive_all(connection)[:10] in (b"HTTP/1.1 4", b"")


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET /health HT",
        b"POST /count HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
    ],
)
def test_a_request_that_takes_too_long_to_arrive_is_dropped(
    start: Callable[..., Server], beginning: bytes
) -> None:
    server = start(WEB_REQUEST_SECONDS="1")
    with server.raw() as connection:
        connection.sendall(beginning)
        assert receive_all(connection) == b""


def test_a_request_that_drips_in_is_dropped(start: Callable[..., Server]) -> None:
    server = start(WEB_REQUEST_SECONDS="1")
    connection = server.http()
    with contextlib.closing(connection):
        connection.request("GET", "/health")
        connection.getresponse().read()
        # The second request of a connection has no more time than the first.
        connection.sock.sendall(b"GET /health HTTP/1.1\r\nCookie: ")
        end = time.monotonic() + PATIENCE
        with pytest.raises(ConnectionError):  # noqa: PT012  whichever of the many sends it is
            while time.monotonic() < end:
                connection.sock.sendall(b"x")
                time.sleep(0.05)


def test_a_slow_download_makes_the_application_wait(start: Callable[..., Server]) -> None:
    server = start()
    before = server.memory()
    connection = server.http()
    with contextlib.closing(connection):
        connection.request("GET", "/download?count=2000&size=50000")  # 100 MB
        response = connection.getresponse()
        sent = stalled_count(server)
        assert sent < 1_000
        assert server.memory() - before < 20_000_000
        body = response.read()
    assert len(body) == 100_000_000
    assert [int(part) for part in body.replace(b"x", b"").split()] == list(range(2_000))


def test_it_answers_while_sockets_are_flooded(start: Callable[..., Server]) -> None:
    server = start()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(server.upgraded("/ws/flood?count=100000&size=1000"))
        for _ in range(20):
            assert server.get("/health") == b"ok"


def test_a_client_cannot_choose_the_root_path_or_its_own_address(server: Server) -> None:
    headers = {"Daphne-Root-Path": "/x", "X-Forwarded-For": "9.9.9.9", "X-Forwarded-Proto": "https"}
    scope = json.loads(server.get("/scope", **headers))
    assert scope["root_path"] == ""
    assert scope["client"][0] == "127.0.0.1"
    assert scope["scheme"] == "http"


def test_a_trusted_proxy_tells_the_address_that_it_saw_itself(start: Callable[..., Server]) -> None:
    server = start(TRUST_PROXY="1")
    headers = {"X-Forwarded-For": "6.6.6.6, 2001:db8::1", "X-Forwarded-Proto": "https"}
    scope = json.loads(server.get("/scope", **headers))
    assert scope["client"][0] == "2001:db8::1"
    assert scope["scheme"] == "https"
    scope = json.loads(server.get("/scope", **{"X-Forwarded-For": "nonsense"}))
    assert scope["client"][0] == "127.0.0.1"


# --- Applications that fail ---------------------------------------------------------------------


async def test_a_mistake_of_the_application_ends_its_connection_and_no_other(
    start: Callable[..., Server],
) -> None:
    server = start()
    async with server.connect("/ws/echo") as bystander:
        for _ in range(2):  # the first one must not keep the server from seeing to the second
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                await asyncio.to_thread(server.request, "GET", "/fail?begin=1")
            async with server.connect("/ws/fail?begin=1") as connection:
                assert await close_code(connection) == 1011
            with pytest.raises(InvalidStatus, match="500"):
                async with server.connect("/ws/fail"):
                    pass
            with pytest.raises(InvalidHandshake):
                async with server.connect("/ws/fail?begin=1&protocol=not-offered"):
                    pass
            status, _ = await asyncio.to_thread(server.request, "GET", "/fail")
            assert status == 500
        await bystander.send("still here")
        assert await bystander.recv() == "still here"
    assert "a mistake in the application" in server.log.read_text()


# --- The log ------------------------------------------------------------------------------------


async def test_the_access_log_has_no_query_no_cookie_and_no_line_breaks_of_the_client(
    start: Callable[..., Server],
) -> None:
    server = start()
    server.request("GET", "/state?token=secret1", headers={"Cookie": "session=secret2"})
    async with server.connect("/ws/echo?token=secret3") as connection:
        await connection.close(4000)
    server.request("GET", "/forged%0Aline")
    await asyncio.to_thread(server.wait_for_log, r"chatproject\.access: GET /state 200 \d+ ms$")
    await asyncio.to_thread(server.wait_for_log, r"chatproject\.access: WS /ws/echo 4000 \d+ ms$")
    await asyncio.to_thread(server.wait_for_log, r"chatproject\.access: GET /forged%0Aline 404 ")
    assert "secret" not in server.log.read_text()


def test_it_is_quiet_when_told_so(start: Callable[..., Server]) -> None:
    server = start("--quiet")
    server.get("/health")
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0
    assert "chatproject.access" not in server.log.read_text()


# --- Start and end ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_in_order_on_a_signal(
    start: Callable[..., Server], number: signal.Signals
) -> None:
    server = start(WEB_DRAIN_SECONDS="600")  # more than the test has
    held = server.http()
    held.request("GET", "/hold")
    response = held.getresponse()
    assert response.read(6) == b"begun "
    idle = server.http()
    idle.request("GET", "/health")
    idle.getresponse().read()
    async with server.connect("/ws/echo") as connection:
        server.signal(number)
        assert await close_code(connection) == 1012
    # The page is finished by the application when it has heard of the end of the socket.
    assert await asyncio.to_thread(response.read) == b"finished"
    assert await asyncio.to_thread(server.exit_code) == 0
    assert re.search(r"heard of the end: (1012|1000)$", server.log.read_text(), re.MULTILINE)
    assert "the background task was cancelled" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()
    for client in (held, idle):
        client.close()


async def test_it_asks_many_sockets_to_come_back(start: Callable[..., Server]) -> None:
    server = start()
    async with contextlib.AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(server.connect("/ws/echo")) for _ in range(45)
        ]
        server.signal(signal.SIGTERM)
        assert {await close_code(connection) for connection in connections} == {1012}
    assert await asyncio.to_thread(server.exit_code) == 0
    assert "Traceback" not in server.log.read_text()


def test_a_request_that_is_still_arriving_is_answered_before_it_ends(
    start: Callable[..., Server],
) -> None:
    server = start(WEB_DRAIN_SECONDS="600")
    with server.raw() as connection:
        connection.sendall(
            b"POST /count HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n12345"
        )
        server.get("/health")  # the bytes before it have been read
        server.signal(signal.SIGTERM)
        server.wait_for_log("SIGTERM: closing connections")
        connection.sendall(b"6789")
        assert receive_all(connection).endswith(b"\r\n\r\n9")
    assert server.exit_code() == 0


async def test_it_takes_no_new_connection_while_it_ends(start: Callable[..., Server]) -> None:
    server = start(WEB_DRAIN_SECONDS="600")
    held = server.http()
    held.request("GET", "/hang")
    held.getresponse()
    server.signal(signal.SIGTERM)

    def refused() -> bool:
        try:
            server.raw().close()
        except ConnectionError:
            return True
        return False

    assert await aio_until(refused)
    assert server.process.poll() is None
    held.close()


def test_a_second_signal_ends_it_at_once(start: Callable[..., Server]) -> None:
    server = start(WEB_DRAIN_SECONDS="600")
    held = server.http()
    held.request("GET", "/hang")
    held.getresponse()
    server.signal(signal.SIGTERM)
    server.wait_for_log("SIGTERM: closing connections")
    time.sleep(web.SAME_STOP_SECONDS)
    assert server.process.poll() is None

    def ended() -> bool:
        server.signal(signal.SIGTERM)
        return server.process.poll() is not None

    assert until(ended)
    assert server.exit_code() == -signal.SIGTERM
    held.close()


def test_signals_that_come_together_are_one(start: Callable[..., Server]) -> None:
    server = start()
    with server.upgraded() as connection:
        server.signal(signal.SIGINT)
        server.signal(signal.SIGTERM)
        assert read_close_code(connection) == 1012
    assert server.exit_code() == 0


def test_what_hangs_does_not_keep_it(start: Callable[..., Server]) -> None:
    server = start(WEB_DRAIN_SECONDS="0")
    held = server.http()
    held.request("GET", "/hang")
    held.getresponse()
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 1
    assert "leaving without it" in server.log.read_text()
    held.close()


def test_it_listens_on_ipv6(start: Callable[..., Server]) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    server = start("--host", "::1")
    assert server.host == "[::1]"
    assert server.get("/health") == b"ok"


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("name", SERVERS)
def test_a_port_that_is_taken_is_one_line_and_exit_code_1(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = run_to_its_end("--port", str(port), WEB_SERVER=name)
    assert failed.returncode == 1
    assert (
        failed.stderr == f"serve: cannot listen on 127.0.0.1, port {port}: Address already in use\n"
    )


def test_a_wrong_variable_is_one_line_and_exit_code_1() -> None:
    for variable, value in [("WEB_SERVER", "nginx"), ("MAX_BODY_BYTES", "2 MB"), ("PORT", "99999")]:
        failed = run_to_its_end(**{variable: value})
        assert failed.returncode == 1
        assert failed.stderr.startswith(f"serve: {variable}=")
        assert failed.stderr.count("\n") == 1


def test_it_can_be_imported_without_django_settings() -> None:
    code = "import chatproject.serve, chatproject.lib.web_uvicorn, chatproject.lib.web_daphne"
    environment = {name: value for name, value in os.environ.items() if "DJANGO" not in name}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=PATIENCE)


def run_to_its_end(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "chatproject.serve", *arguments]
    command += ["--application", "tests.serve_app:application"]
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
