"""A WebSocket client for load: text frames, pings and closes, for a few microseconds each.

Clients share the machine with the measured processes; the usual libraries' clients cost several times
as much per frame as the servers under test.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable, Mapping
from typing import cast

FINAL = 0x80
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
NO_STATUS = 1005  # close code of a close frame without one
ABNORMAL = 1006  # and of a connection that ended without a close frame


class Refused(ConnectionError):
    """The server did not open a socket; the message has its status line."""


class Socket(asyncio.Protocol):
    """An open socket. `on_text` gets each message; `on_close`, once, the code it was closed with."""

    def __init__(
        self, request: bytes, on_text: Callable[[bytes], None], on_close: Callable[[int], None]
    ) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = False
        self._request = request
        self._on_text = on_text
        self._on_close = on_close
        self._received = b""
        self._fragments: list[bytes] = []

    def send(self, text: bytes) -> None:
        """Send a text message. Raises ConnectionError when the socket is closed."""
        if self.closed:
            raise ConnectionError("the socket is closed")
        self._transport.write(frame(TEXT, text))

    def close(self) -> None:
        """Send a close frame and close the connection."""
        if not self.closed:
            self._transport.write(frame(CLOSE, (1000).to_bytes(2, "big")))
            self._end(1000)

    # --- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(ABNORMAL)

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
            self._received = b""
        if not self.opened.done():
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._received = head
                return
            status, _, _ = head.partition(b"\r\n")
            if b" 101 " not in status + b" ":
                self.opened.set_exception(Refused(status.decode("latin-1")))
                self._end(ABNORMAL)
                return
            self.opened.set_result(None)
        at = 0
        while not self.closed and (until := self._take_frame(data, at)):
            at = until
        self._received = data[at:]

    def _take_frame(self, data: bytes, at: int) -> int:
        """Handle the frame that begins at `at`; return its end, or 0 when it is not complete."""
        if len(data) < at + 2:
            return 0
        length = data[at + 1]  # servers do not mask, so the first bit is 0
        begin = at + 2
        if length >= 126:
            begin += 2 if length == 126 else 8
            length = int.from_bytes(data[at + 2 : begin], "big")
        if len(data) < begin + length:
            return 0
        payload = data[begin : begin + length]
        if data[at] == FINAL | TEXT:
            self._on_text(payload)
        else:
            self._take_other(data[at], payload)
        return begin + length

    def _take_other(self, kind: int, payload: bytes) -> None:
        if kind == FINAL | PING:
            self._transport.write(frame(PONG, payload))
        elif kind == FINAL | CLOSE:
            self._transport.write(frame(CLOSE, payload[:2]))
            self._end(int.from_bytes(payload[:2], "big") if payload else NO_STATUS)
        elif kind in (TEXT, CONTINUATION, FINAL | CONTINUATION):
            self._fragments.append(payload)
            if kind & FINAL:
                whole, self._fragments = b"".join(self._fragments), []
                self._on_text(whole)

    def _end(self, code: int) -> None:
        if self.closed:
            return
        self.closed = True
        if not self.opened.done():
            self.opened.set_exception(Refused("the connection was closed without an answer"))
        self._transport.close()
        self._on_close(code)


def frame(kind: int, payload: bytes) -> bytes:
    """A client's frame: masked, as the protocol wants it, with a mask that changes nothing."""
    size = len(payload)
    if size < 126:
        head = bytes((FINAL | kind, FINAL | size))
    elif size < 65_536:
        head = bytes((FINAL | kind, FINAL | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((FINAL | kind, FINAL | 127)) + size.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload


async def connect(
    port: int,
    path: str,
    headers: Mapping[str, str],
    on_text: Callable[[bytes], None],
    on_close: Callable[[int], None],
) -> Socket:
    """Open a socket to a server on loopback. Raises Refused, or another ConnectionError."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    request = ("\r\n".join(lines) + "\r\n\r\n").encode()
    _, socket = await asyncio.get_running_loop().create_connection(
        lambda: Socket(request, on_text, on_close), "127.0.0.1", port
    )
    await socket.opened
    return socket
