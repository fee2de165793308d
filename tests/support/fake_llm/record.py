"""The provider's record of requests and calls, for tests to compare with the replies received."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

# The newest of each are kept; a load run sends many more.
REQUESTS_KEPT = 2000
CALLS_KEPT = 20_000


class Call(msgspec.Struct):
    """The outcome of one request for a completion."""

    message: str  # the last of the user
    prefix: int = 0  # characters of the reply that the request brought along, to be continued
    sent: int = 0  # tokens of the reply
    reasoned: int = 0  # tokens of reasoning
    # active; finished (the whole reply); refused; broken (by a directive, `cut` or `away`); aborted
    # (by its client)
    ended: str = "refused"
    usage: dict[str, Any] | None = None  # as it was sent
    key: str = ""  # the directives of this name
    group: str = ""
    ended_at: int = 0  # time.time_ns() of the end of a stream


class Record:
    """Everything since the start or the last reset."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("active", "finished", "aborted", "failed", "held"), 0)
        self.peak = 0  # the most streams at the same time
        # Body, headers, and the peer address of the connection.
        self.requests: deque[dict[str, Any]] = deque(maxlen=REQUESTS_KEPT)
        self.calls: deque[Call] = deque(maxlen=CALLS_KEPT)
        self.attempts: Counter[str] = Counter()
        self.released: set[str] = set()  # keys
        self._waiting: list[tuple[Mapping[str, int], Callable[[], None]]] = []

    def add(self, **changes: int) -> None:
        """Change counters, and call the functions that wait for their new values."""
        for name, change in changes.items():
            self.counts[name] += change
        self.peak = max(self.peak, self.counts["active"])
        waiting, self._waiting = self._waiting, []
        for counts, call in waiting:
            self.wait(counts, call)

    def wait(self, counts: Mapping[str, int], call: Callable[[], None]) -> None:
        """Call the function when the counters have these values, which may be now."""
        if counts.items() <= self.counts.items():
            call()
        else:
            self._waiting.append((counts, call))

    def reset(self) -> None:
        """Forget everything but the streams under way."""
        self.counts |= {"finished": 0, "aborted": 0, "failed": 0}
        self.peak = self.counts["active"]
        for kept in (self.requests, self.calls, self.attempts, self.released):
            kept.clear()
