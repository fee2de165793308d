"""Limits of the sockets of a user: sockets at a time, frames, and `resume`; and of streams of the REST API.

Each web process counts for itself and in its memory: with several processes a user has as many times
the limit. Used in one event loop only, but for `check_streams`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy

from chat import protocol
from chat.errors import ChatError
from chat.web.outgoing import Outgoing
from chatproject.lib import metrics
from chatproject.lib.env import Limit
from chatproject.lib.rate_limits import Window, limit_of

# Frames beyond the limit that a user may still send within a minute, one per PAUSE, before the socket
# is closed. None of them is dropped while the socket is open: its sender would wait for an answer.
EXCESS = Limit(((20, 60),))
PAUSE = 0.05

SOCKETS_RETRY_AFTER = 30.0  # seconds; another tab may be closed by then
STREAMS_RETRY_AFTER = 5.0  # seconds
FORGET_EVERY = 60.0  # seconds

TOO_MANY_SOCKETS = gettext_lazy(
    "You have too many tabs open. Close some, and this one connects again."
)
TOO_MANY_HANDSHAKES = gettext_lazy("Your browser connects too often. It tries again in a moment.")
TOO_MANY_STREAMS = gettext_lazy("You follow too many replies at once. Close some of the requests.")
TOO_MANY_FRAMES = gettext_lazy("Your tabs are sending too much. Wait a moment.")


@dataclass(slots=True)
class _Usage:
    """The sockets and windows of a user."""

    sockets: int = 0
    frames: Window = field(default_factory=lambda: Window(limit_of("frames")))
    excess: Window = field(default_factory=lambda: Window(EXCESS))
    resumes: Window = field(default_factory=lambda: Window(limit_of("resumes")))

    @property
    def is_idle(self) -> bool:
        return not self.sockets and all(
            window.is_idle for window in (self.frames, self.excess, self.resumes)
        )


_usages: dict[int, _Usage] = {}
_forgotten_at = 0.0


class Allowance:
    """The share of one open socket in the limits of its user; `end` returns it.

    Raises ChatError `rate_limited` for a socket that may not be opened now.
    """

    def __init__(self, user_id: int) -> None:
        _forget_idle()
        usage = _usages.setdefault(user_id, _Usage())
        if wait := usage.frames.wait():
            raise _refusal("frames", TOO_MANY_FRAMES, wait)
        rates = limit_of("sockets").rates
        if rates and usage.sockets >= rates[0][0]:
            raise _refusal("sockets", TOO_MANY_SOCKETS, SOCKETS_RETRY_AFTER)
        usage.sockets += 1
        self._usage: _Usage | None = usage

    def end(self) -> None:
        """Return the share; further calls do nothing."""
        if self._usage is not None:
            self._usage.sockets -= 1
            self._usage = None

    async def count_frame(self, outgoing: Outgoing) -> bool:
        """Count a frame; return whether to handle it. If not, the socket has been closed.

        The first frame beyond the limit is announced by an error. Each of them delays its sender:
        meanwhile the server reads nothing from the socket (backpressure).
        """
        usage = self._usage
        if usage is None:
            return False
        wait = usage.frames.hit()
        if not wait:
            return True
        refusal = _refusal("frames", TOO_MANY_FRAMES, wait)
        is_first = usage.excess.is_idle
        if usage.excess.hit():
            await outgoing.close(protocol.TOO_MANY, refusal)
            return False
        if is_first:
            outgoing.put(protocol.Error.of(refusal).encode())
        await asyncio.sleep(PAUSE)
        return outgoing.is_open

    def count_resume(self) -> None:
        """Count a `resume`. Raises ChatError `rate_limited`."""
        if self._usage is not None and (wait := self._usage.resumes.hit()):
            raise _refusal("resumes", TOO_MANY_FRAMES, wait)


_streams: Counter[int] = Counter()


def check_streams(user_id: int) -> None:
    """Raise ChatError `rate_limited` if a user follows as many runs by HTTP as the limit `streams` permits.

    Requests that arrive at the same time may exceed it by their number.
    """
    rates = limit_of("streams").rates
    if rates and _streams[user_id] >= rates[0][0]:
        raise _refusal("streams", TOO_MANY_STREAMS, STREAMS_RETRY_AFTER)


@contextmanager
def stream_of(user_id: int) -> Iterator[None]:
    """Count a stream of a user while the context lasts."""
    _streams[user_id] += 1
    try:
        yield
    finally:
        _streams[user_id] -= 1
        if not _streams[user_id]:
            del _streams[user_id]


def refuse_handshake(wait: float) -> ChatError:
    """Return the error of a socket that was opened too often; again after `wait` seconds."""
    return _refusal("handshakes", TOO_MANY_HANDSHAKES, wait)


def _refusal(name: str, message: str | Promise, wait: float) -> ChatError:
    metrics.RATE_LIMITED.labels(name).inc()
    return ChatError("rate_limited", message, retry_after=math.ceil(wait))


def _forget_idle() -> None:
    """Forget users without sockets and recent frames, now and then."""
    global _forgotten_at
    now = time.monotonic()
    if now - _forgotten_at < FORGET_EVERY:
        return
    _forgotten_at = now
    for user_id in [user_id for user_id, usage in _usages.items() if usage.is_idle]:
        del _usages[user_id]
