"""Frames of Socket.IO 5 on Engine.IO 4 over a WebSocket, as far as one client needs them.

A frame is text: Engine.IO's digit, for a message (4) Socket.IO's digit too, then JSON, before which
an event that requests an acknowledgement has a number. Only the root namespace is supported, and no
binary attachments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

OPEN = "0"  # the server's first frame, an object with sid, pingInterval and pingTimeout
PING = "2"
PONG = "3"
CONNECT = "40"  # sent with the session's data, answered with a sid
DISCONNECT = "41"
EVENT = "42"

DIGITS = "0123456789"


class Frame(NamedTuple):
    """`kind` is one of the names above or another of the protocol's; `data` the decoded JSON."""

    kind: str
    data: Any


def parse(text: str) -> Frame:
    """The frame in a text. Raises msgspec.DecodeError when its body is not JSON."""
    kind = text[:2] if text[:1] == "4" else text[:1]
    body = text[len(kind) :].lstrip(DIGITS)
    return Frame(kind, msgspec.json.decode(body) if body else None)


def frame(kind: str, data: Any) -> str:
    """The text of a frame with these data."""
    return kind + msgspec.json.encode(data).decode()


def event(name: str, *arguments: Any) -> str:
    """The text of an event without acknowledgement."""
    return frame(EVENT, [name, *arguments])
