"""What the two web servers share: their limits, and how they are told to stop.

The limits hold for both servers alike, so that `WEB_SERVER` is a choice of speed and not of safety.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import struct
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import FrameType
from typing import Any, Protocol

from chatproject.lib import env

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# The extension of ASGI by which both servers give an application a socket's `TextFrames`.
TEXT_FRAMES = "chatproject.text_frames"

# Of WebSockets
MAX_FRAME_BYTES = 65_536  # of one incoming frame, and of one incoming message
MAX_FRAGMENTS = 1_024  # of one incoming message: empty ones cost memory too
PING_INTERVAL = 20  # seconds between pings
PING_TIMEOUT = 30  # seconds until a ping must be answered
CLOSE_TIMEOUT = 5  # seconds for a client to answer a close frame
RESTARTING = 1012  # close code that tells clients to come back

# Of HTTP
MAX_HEADER_BYTES = 16_384  # of the request line and the headers together
MAX_HEADERS = 100
KEEP_ALIVE_SECONDS = 75  # more than the 60 s of usual proxies, so that they close first
LINGER_SECONDS = 5  # for a refused client to stop sending and read why

# Signals that come together are one: `timeout`, for example, sends each to the process and its group.
SAME_STOP_SECONDS = 0.5
BACKLOG = 2_048  # connections that wait to be accepted
# Connections that begin or are closed in one turn of the loop, when many come or all have to go: all
# others wait for as long as that takes.
AT_ONCE = 10
# Unsent bytes that the kernel holds for one connection; without it, megabytes for a slow client.
KERNEL_BUFFER_BYTES = 131_072


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that an installation can change, each by a variable of its name below."""

    max_body_bytes: int  # of a request's body; a larger one is answered with 413
    request_seconds: int  # from the first byte of a request to the last one of its body
    stall_seconds: int  # that a client may read nothing while data is waiting for it
    drain_seconds: int  # that requests in flight have to finish after SIGTERM

    @classmethod
    def from_environment(cls) -> Limits:
        """Read the limits. Raises ImproperlyConfigured for a value that is no whole number."""
        return cls(
            max_body_bytes=env.integer("MAX_BODY_BYTES", 2 * 1024 * 1024),
            request_seconds=env.integer("WEB_REQUEST_SECONDS", 60, least=1),
            stall_seconds=env.integer("WEB_STALL_SECONDS", 30, least=1),
            drain_seconds=env.integer("WEB_DRAIN_SECONDS", 10),
        )


class TextFrames(Protocol):
    """Sends text that is encoded already to a WebSocket, past all that is wrapped around `send`.

    It stands in `scope["extensions"][TEXT_FRAMES]`. Before the socket is accepted and after its end
    it does nothing, as `send` does then.
    """

    @property
    def is_full(self) -> bool:
        """Whether a sender should `drain` first: so much waits for the client already."""

    def write(self, texts: Sequence[bytes]) -> None:
        """Send each text, encoded as UTF-8, in a frame of its own; never waits."""

    async def drain(self) -> None:
        """Return when the connection takes more, or is lost."""


def text_frame(text: bytes) -> bytes:
    """A text as the server's frame of RFC 6455: whole, not masked, not compressed."""
    size = len(text)
    if size < 126:
        return b"\x81%c%b" % (size, text)
    if size < 1 << 16:
        return struct.pack("!BBH", 0x81, 126, size) + text
    return struct.pack("!BBQ", 0x81, 127, size) + text


def refusal(status: HTTPStatus) -> bytes:
    """The whole response to a request that no application gets to see."""
    body = f"{status.phrase}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


def on_stop_signal(
    loop: asyncio.AbstractEventLoop, limits: Limits, stop: Callable[[], None]
) -> None:
    """Call `stop` in the loop on the first SIGTERM or SIGINT; a second one ends the process at once.

    Whatever hangs (a view in a thread, a loop that is stuck) cannot keep the process: some seconds
    after the time for draining it is ended with code 1.
    """
    signals = (signal.SIGTERM, signal.SIGINT)

    def first(number: signal.Signals) -> None:
        began = time.monotonic()

        def again(number: int, frame: FrameType | None) -> None:
            if time.monotonic() - began > SAME_STOP_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        for each in signals:
            loop.remove_signal_handler(each)
            signal.signal(each, again)
        logger.info("%s: closing connections", number.name)
        last_resort = threading.Timer(limits.drain_seconds + CLOSE_TIMEOUT, end_process)
        last_resort.daemon = True
        last_resort.start()
        stop()

    for number in signals:
        loop.add_signal_handler(number, first, number)


def end_process() -> None:
    """End the process without waiting for anything in it."""
    logger.error("something did not stop in time: leaving without it")
    logging.shutdown()
    os._exit(1)
