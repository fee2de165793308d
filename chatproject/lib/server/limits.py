"""Limits of the web server; README.md beside this file says where each of them applies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from chatproject.lib import env

# WebSockets
MAX_FRAME_BYTES = 65_536  # of one incoming frame, and of one incoming message
MAX_FRAGMENTS = 1_024  # of one incoming message: empty ones cost memory too
INBOX_MESSAGES = 16  # that wait for an application before reading from its socket is paused
PING_INTERVAL = 20  # seconds between pings
PING_TIMEOUT = 30  # seconds until a ping must be answered
CLOSE_TIMEOUT = 5  # seconds for a client to answer a close frame

# HTTP
MAX_HEADER_BYTES = 16_384  # of the request line and the headers together
MAX_HEADERS = 100
KEEP_ALIVE_SECONDS = 75  # more than the 60 s of usual proxies, so that the proxy closes first
LINGER_SECONDS = 5  # for a refused client to stop sending and read the response
BODY_BYTES = 262_144  # of a streamed body that wait for its application before reading is paused

# Connections
BACKLOG = 2_048  # that wait to be accepted
# Accepted or closed in one turn of the loop, when many arrive together or the server stops: all
# other work waits for as long as that takes.
AT_ONCE = 10
# Unsent bytes that the kernel buffers for one connection; its default is megabytes for a slow client.
KERNEL_BUFFER_BYTES = 131_072

# The end of the process
# Signals within this time count as one: `timeout`, for example, signals the process and its group.
SAME_STOP_SECONDS = 0.5
CANCEL_SECONDS = 2  # for cancelled applications to clean up


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that an operator can change, each by a variable named in `from_environment`."""

    max_body_bytes: int  # of a request's body; a larger one is answered with 413
    request_seconds: int  # from the first byte of a request to the last one of its body
    stall_seconds: int  # that a client may read nothing while data is waiting for it
    drain_seconds: int  # that requests in flight have to finish after SIGTERM
    # Paths with larger bodies as patterns, the largest body of each, and the seconds for such a request.
    uploads: tuple[tuple[re.Pattern[bytes], int], ...] = ()
    upload_seconds: int = 900
    # Paths whose application is called at once, and reads and limits the body itself.
    streamed: tuple[re.Pattern[bytes], ...] = ()

    @classmethod
    def from_environment(
        cls, uploads: Iterable[tuple[bytes, int]] = (), streamed: Iterable[bytes] = ()
    ) -> Limits:
        """Read the limits. Raises ImproperlyConfigured for a value that is no whole number."""
        return cls(
            max_body_bytes=env.integer("MAX_BODY_BYTES", 2 * 1024 * 1024),
            request_seconds=env.integer("WEB_REQUEST_SECONDS", 60, least=1),
            stall_seconds=env.integer("WEB_STALL_SECONDS", 30, least=1),
            drain_seconds=env.integer("WEB_DRAIN_SECONDS", 10),
            uploads=tuple((re.compile(path), size) for path, size in uploads),
            streamed=tuple(map(re.compile, streamed)),
        )

    def upload_bytes(self, target: bytes) -> int | None:
        """Return the limit of a body by the target of its first line; None for a path without its own."""
        path = target.partition(b"?")[0]
        return next((size for pattern, size in self.uploads if pattern.fullmatch(path)), None)

    def is_streamed(self, target: bytes) -> bool:
        """Return whether the application reads the body as it arrives, by the target of the first line."""
        path = target.partition(b"?")[0]
        return any(pattern.fullmatch(path) for pattern in self.streamed)
