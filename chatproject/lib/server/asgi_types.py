"""Types of ASGI, and its extension for text that is encoded already."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# A socket's `TextFrames` are at this key of `scope["extensions"]`. Other servers have no such key,
# so an application must be able to do without.
TEXT_FRAMES = "chatproject.text_frames"


class TextFrames(Protocol):
    """Sends encoded text to a WebSocket directly, past every wrapper around `send`.

    Before the socket is accepted and after its end it does nothing, as `send` does then.
    """

    @property
    def is_full(self) -> bool:
        """Whether so much waits for the client that a sender should `drain` first."""

    def write(self, texts: Sequence[bytes]) -> None:
        """Send each text, encoded as UTF-8, in a frame of its own; never waits."""

    async def drain(self) -> None:
        """Return when the connection takes more, or is lost."""
