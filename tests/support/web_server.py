"""`python -m chatproject.serve` as a child process, and raw clients for it."""

from __future__ import annotations

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PATIENCE = 30  # seconds; long enough for a busy machine: only a hang takes them
APPLICATION = ("--application", "tests.support.serve_app:application")
UPGRADE = (
    "GET /ws/echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class WebServer:
    """The process, serving tests/support/serve_app.py, with its log in a file."""

    def __init__(self, log: Path, *arguments: str, **variables: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "chatproject.serve", "--port", "0", *arguments]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *APPLICATION],
                stdout=output,
                stderr=output,
                env={**os.environ, **variables},
            )
        try:
            url: str = self.wait_for_log(r"listening on http://(\S+)$")[1]
        except BaseException:
            self.stop()
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
        """The application's counts."""
        state: dict[str, Any] = json.loads(self.get("/state"))
        return state

    def stalled_count(self) -> int:
        """The number of parts that the application has sent, once it no longer grows."""
        last, sent = -1, 0
        while sent != last or sent == 0:
            last, sent = sent, self.state()["sent"]
            time.sleep(0.5)
        return sent

    def request(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        with contextlib.closing(self.http()) as connection:
            connection.request(method, path, **options)
            response = connection.getresponse()
            return response.status, response.read()

    def begin(self, path: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a request; the response's head has arrived."""
        connection = self.http()
        connection.request("GET", path)
        return connection, connection.getresponse()

    def http(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host.strip("[]"), self.port, timeout=PATIENCE)

    def raw(self) -> socket.socket:
        return socket.create_connection((self.host.strip("[]"), self.port), timeout=PATIENCE)

    def upgraded(self, path: str = "/ws/echo") -> socket.socket:
        """A connection after the opening handshake, for frames that no client library sends."""
        connection = self.raw()
        # Small, so that the kernel hides little where the client does not read; but not so small
        # that it drops whole packets, and with them the acknowledgements in them.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.sendall(UPGRADE.replace("/ws/echo", path).encode() + b"\r\n")
        assert connection.recv(1_000).startswith(b"HTTP/1.1 101 ")
        return connection

    def memory(self) -> int:
        """Resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024

    def terminate(self) -> None:
        """Send SIGTERM; returns when the server has begun to stop."""
        self.process.send_signal(signal.SIGTERM)
        self.wait_for_log("SIGTERM: closing connections")

    def exit_code(self) -> int:
        return self.process.wait(timeout=PATIENCE)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def until(condition: Callable[[], Any]) -> Any:
    """The condition's value as soon as it is true, or the last one after PATIENCE."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


async def close_code(connection: ClientConnection) -> int:
    """The code with which the server closes the connection, past all messages before it."""
    with contextlib.suppress(ConnectionClosed):
        async for _ in connection:
            pass
    assert connection.close_code is not None
    return connection.close_code


def read_close_code(connection: socket.socket) -> int:
    """The code of the close frame that must be the next one."""
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
