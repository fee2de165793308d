"""Shared by both sides: ids, refusals, and answers kept by idempotency key."""

from __future__ import annotations

import copy
import itertools
import json
import time
from typing import Any

Json = dict[str, Any]

_numbers = itertools.count(1)


def new_id(prefix: str) -> str:
    """Return an id that is unique in this process."""
    return f"{prefix}_{time.time_ns():x}{next(_numbers):04d}"


class Refusal(Exception):
    """The answer is an error with this status and body."""

    def __init__(self, status: int, body: Json) -> None:
        self.status, self.body = status, body
        super().__init__(f"{status} {body}")


class Replays:
    """The first answer to each idempotency key, errors of every kind included, for a day."""

    SECONDS = 24 * 3600

    def __init__(self) -> None:
        self.later = 0.0  # seconds that the providers' clock is ahead, for tests
        self._kept: dict[str, tuple[str, int, Json]] = {}
        self._since: dict[str, float] = {}

    def find(self, key: str, request: Any) -> tuple[int, Json] | None:
        """Return the answer kept, or None. Raises ValueError when it answered another request."""
        if key not in self._kept or self._now() - self._since[key] >= self.SECONDS:
            return None
        asked, status, body = self._kept[key]
        if asked != _canonical(request):
            raise ValueError(key)
        return status, copy.deepcopy(body)

    def keep(self, key: str, request: Any, status: int, body: Json) -> None:
        """Keep an answer, to be repeated for the same key."""
        self._kept[key] = (_canonical(request), status, copy.deepcopy(body))
        self._since[key] = self._now()

    def forget(self) -> None:
        """Forget all answers, as the providers do after a day."""
        self._kept.clear()

    def _now(self) -> float:
        return time.monotonic() + self.later


def _canonical(request: Any) -> str:
    return json.dumps(request, sort_keys=True)
