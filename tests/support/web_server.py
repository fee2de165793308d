"""`python -m chatproject.serve` as a child process, and clients that send raw bytes to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from chatproject.local.servers import BASE_DIR
from tests.support.programs import PATIENCE, Program, environment

APPLICATION = ("--application", "tests.support.serve_app:application")
UPGRADE = (
    "GET /ws/echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class WebServer(Program):
    """The process, serving tests/support/serve_app.py on a free port."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        command = [sys.executable, "-m", "chatproject.serve", "--port", "0", *arguments]
        super().__init__([*command, *APPLICATION], cwd=BASE_DIR, env=environment(**variables))
        try:
            url = self.wait_for("listening on http://").partition("http://")[2]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.host, _, port = url.rpartition(":")
        self.address = self.host.strip("[]"), int(port)

    def connect(self, path: str, **options: Any) -> connect:
        return connect(f"ws://{self.host}:{self.address[1]}{path}", **options)

    def raw(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE)

    def upgraded(self, path: str = "/ws/echo") -> socket.socket:
        """A connection after its opening handshake, for frames that client libraries never send."""
        connection = self.raw()
        # Small, so that the kernel buffers little for a client that does not read; yet large enough
        # that it drops no packet, and no acknowledgement with it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.sendall(UPGRADE.replace("/ws/echo", path).encode() + b"\r\n")
        assert connection.recv(1_000).startswith(b"HTTP/1.1 101 ")
        return connection

    def client(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.address, timeout=PATIENCE)

    @contextlib.contextmanager
    def begun(self, path: str) -> Iterator[http.client.HTTPResponse]:
        """A request, the head of whose response has arrived."""
        with contextlib.closing(self.client()) as connection:
            connection.request("GET", path)
            yield connection.getresponse()

    def request(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        with contextlib.closing(self.client()) as connection:
            connection.request(method, path, **options)
            response = connection.getresponse()
            return response.status, response.read()

    def get(self, path: str, **headers: str) -> bytes:
        status, body = self.request("GET", path, headers=headers)
        assert status == 200
        return body

    def state(self, **headers: str) -> dict[str, Any]:
        """The application's counts, and the client of this request as its scope has it."""
        state: dict[str, Any] = json.loads(self.get("/state", **headers))
        return state

    def stalled_count(self) -> int:
        """The number of parts that the application has sent, once it no longer grows."""
        last, sent = -1, 0
        while sent != last or sent == 0:
            last, sent = sent, self.state()["sent"]
            time.sleep(0.5)
        return sent

    def memory(self) -> int:
        """Resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024

    def terminate(self) -> None:
        """Send SIGTERM; return when the server has begun to stop."""
        self.signal(signal.SIGTERM)
        self.wait_for("SIGTERM: closing connections")


async def close_code(connection: ClientConnection) -> int:
    """The code with which the server closes the connection, after any messages."""
    with contextlib.suppress(ConnectionClosed):
        async for _ in connection:
            pass
    assert connection.close_code is not None
    return connection.close_code


def read_close_code(connection: socket.socket) -> int:
    """The code of the next frame, which must be a close frame."""
    closing = connection.recv(1_000)
    assert closing[0] == 0x88
    code: int = struct.unpack("!H", closing[2:4])[0]
    return code


def receive_all(connection: socket.socket) -> bytes:
    """Everything that the server sends until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            received += part
    return received
