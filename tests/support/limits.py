"""Named limits, for tests: Redis unreachable for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from chatproject.lib import rate_limits


@pytest.fixture
def limits_without_redis(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Redis is unreachable for the limits, and only for them."""
    monkeypatch.setattr(
        rate_limits, "sync_client", lambda: redis.Redis(port=9, retry=Retry(NoBackoff(), 0))
    )
    _forget_clients()
    yield
    monkeypatch.undo()
    _forget_clients()


def _forget_clients() -> None:
    rate_limits._storage.cache_clear()
    rate_limits._limiter.cache_clear()
