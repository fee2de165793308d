"""Named limits: the table RATE_LIMITS of the settings, counted as moving windows (rate limiting).

`hit` counts in Redis for all processes together. A `Window` counts in this process alone, for the
frames of sockets: a round trip for each frame would cost more than most frames do.

While Redis is unreachable, a limit that fails closed raises redis.RedisError, and any other accepts;
RATE_LIMITS_UNCOUNTED counts both.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import redis
from django.conf import settings
from limits import RateLimitItemPerSecond
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from redis.client import Pipeline

from chatproject.lib import metrics
from chatproject.lib.env import Limit
from chatproject.lib.redis.clients import sync_client

logger = logging.getLogger(__name__)

PREFIX = "limit"  # of the keys in Redis

_Call = Callable[..., bool]  # of a limiter, with a rate and the parts of a key


class RateLimited(Exception):
    """The limit `name` is used up; after `retry_after` whole seconds another use may be accepted."""

    def __init__(self, name: str, retry_after: int) -> None:
        self.name = name
        self.retry_after = retry_after
        metrics.RATE_LIMITED.labels(name).inc()
        super().__init__(f"{name}: try again in {retry_after} s")


def hit(name: str, *key: object) -> None:
    """Count one use of a limit by `key`: a user's id, or an address. Raises RateLimited.

    Synchronous: an event loop calls it in a database thread.
    """
    _each_rate(name, key, MovingWindowRateLimiter.hit)


def check(name: str, *key: object) -> None:
    """Raise RateLimited if `hit` would; count nothing."""
    _each_rate(name, key, MovingWindowRateLimiter.test)


def clear(name: str, *key: object) -> None:
    """Forget all uses of a limit by `key`."""
    # `clear` returns None, which would count as a refusal.
    _each_rate(name, key, lambda limiter, item, *key: limiter.clear(item, *key) is None)


def _each_rate(name: str, key: tuple[object, ...], call: _Call) -> None:
    limit = limit_of(name)
    try:
        for item in _items(limit):
            if not call(_limiter(), item, name, _digest(key)):
                raise RateLimited(name, retry_after(name, *key))
    except redis.RedisError as error:
        _note_uncounted(name, limit, error)


def _note_uncounted(name: str, limit: Limit, error: redis.RedisError) -> None:
    """Count a use that Redis did not; raises the error for a limit that fails closed."""
    logger.warning("the limit %s was not counted: %s", name, error)
    outcome = "refused" if limit.fails_closed else "accepted"
    metrics.RATE_LIMITS_UNCOUNTED.labels(name, outcome).inc()
    if limit.fails_closed:
        raise error


def retry_after(name: str, *key: object) -> int:
    """Return the whole seconds, at least one, after which the limit accepts another use."""
    resets = [
        stats.reset_time
        for item in _items(limit_of(name))
        for stats in [_limiter().get_window_stats(item, name, _digest(key))]
        if stats.remaining == 0
    ]
    return max(1, math.ceil(max(resets, default=0.0) - time.time()))


def hit_in_pipeline(pipeline: Pipeline, name: str, *key: object) -> None:
    """Add one use of a limit to a pipeline of redis-py, as one command for each rate.

    An answer of None means that the limit is used up. The script has to be in Redis, or the pipeline
    raises NoScriptError.
    """
    for item in _items(limit_of(name)):
        _storage().lua_acquire_moving_window(
            [_storage().prefixed_key(item.key_for(name, _digest(key)))],
            [time.time(), item.amount, item.get_expiry(), 1],
            client=pipeline,
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a key in a limit: uses of its tightest rate, and seconds until all of them are free.

    `amount` is None without a limit, or while it could not be counted.
    """

    amount: int | None = None
    remaining: int = 0
    reset: float = 0.0


def hit_and_read(name: str, limit: Limit, *key: object) -> Standing:
    """Count one use of a limit of the table, or of one with further rates, in one round trip for each rate.

    Raises RateLimited, and like `hit` redis.RedisError.
    """
    if not limit.rates:
        return Standing()
    try:
        answers = _hit_and_read(limit, name, key)
    except redis.RedisError as error:
        _note_uncounted(name, limit, error)
        return Standing()
    now = time.time()
    standings, waits = [], []
    for (amount, seconds), answer in zip(limit.rates, answers, strict=True):
        accepted, oldest, used = answer
        reset = max(0.0, float(oldest) + seconds - now)
        standings.append(Standing(amount, max(0, amount - used), reset))
        if not accepted:
            waits.append(reset)
    if waits:
        raise RateLimited(name, max(1, math.ceil(max(waits))))
    return min(standings, key=lambda one: one.remaining)


# As the scripts of `limits`: a list of the times of uses, newest first. Returns whether the use was accepted, the
# time of the oldest use in the window, and the number of uses.
HIT_AND_READ = """
local now, amount, seconds = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local last = redis.call('lindex', KEYS[1], amount - 1)
local accepted = (not last or tonumber(last) < now - seconds) and 1 or 0
if accepted == 1 then
  redis.call('lpush', KEYS[1], ARGV[1])
  redis.call('ltrim', KEYS[1], 0, amount - 1)
  redis.call('expire', KEYS[1], seconds)
end
local low, high = 0, redis.call('llen', KEYS[1]) - 1
while low < high do
  local middle = math.ceil((low + high) / 2)
  if tonumber(redis.call('lindex', KEYS[1], middle)) >= now - seconds then
    low = middle
  else
    high = middle - 1
  end
end
return {accepted, redis.call('lindex', KEYS[1], low), low + 1}
"""


def _hit_and_read(limit: Limit, name: str, key: tuple[object, ...]) -> list[tuple[int, bytes, int]]:
    # Without a pipeline, for which redis-py asks first whether Redis has the script.
    script = sync_client().register_script(HIT_AND_READ)
    now = time.time()
    return [
        script(
            [_storage().prefixed_key(item.key_for(name, _digest(key)))],
            [now, item.amount, item.get_expiry()],
        )
        for item in _items(limit)
    ]


def limit_of(name: str) -> Limit:
    """Return a limit of the table."""
    limit: Limit = settings.RATE_LIMITS[name]
    return limit


@cache
def _storage() -> RedisStorage:
    return RedisStorage(
        settings.REDIS_URL, connection_pool=sync_client().connection_pool, key_prefix=PREFIX
    )


@cache
def _limiter() -> MovingWindowRateLimiter:
    return MovingWindowRateLimiter(_storage())


def _items(limit: Limit) -> list[RateLimitItemPerSecond]:
    return [RateLimitItemPerSecond(amount, seconds, "of") for amount, seconds in limit.rates]


def _digest(key: tuple[object, ...]) -> str:
    # Addresses and e-mail addresses do not belong in the names of keys.
    return hashlib.blake2b(repr(key).encode(), digest_size=12).hexdigest()


class Window:
    """A moving window in this process, for one key; not for several threads."""

    def __init__(self, limit: Limit) -> None:
        self._rates = limit.rates
        self._hits: list[deque[float]] = [deque(maxlen=amount) for amount, _ in limit.rates]

    def hit(self) -> float:
        """Count one use and return 0, or return the seconds after which the next is accepted."""
        wait = self.wait()
        if not wait:
            now = time.monotonic()
            for hits in self._hits:
                hits.append(now)
        return wait

    def wait(self) -> float:
        """Return the seconds after which the next use is accepted; 0 for now."""
        now = time.monotonic()
        waits = [
            hits[0] + seconds - now
            for hits, (amount, seconds) in zip(self._hits, self._rates, strict=True)
            if len(hits) == amount
        ]
        return max(0.0, *waits) if waits else 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no use is within the window."""
        now = time.monotonic()
        return all(
            not hits or hits[-1] + seconds <= now
            for hits, (_, seconds) in zip(self._hits, self._rates, strict=True)
        )


class Windows:
    """The windows of a limit in this process, by key; not for several threads."""

    FORGET_EVERY = 60.0  # seconds

    def __init__(self, name: str) -> None:
        self._name = name
        self._windows: dict[str, Window] = {}
        self._forgotten_at = 0.0

    def __contains__(self, key: str) -> bool:
        return key in self._windows

    def hit(self, key: str) -> float:
        """`Window.hit` of a key."""
        self._forget_idle()
        if key not in self._windows:
            self._windows[key] = Window(limit_of(self._name))
        return self._windows[key].hit()

    def wait(self, key: str) -> float:
        """`Window.wait` of a key."""
        window = self._windows.get(key)
        return window.wait() if window is not None else 0.0

    def _forget_idle(self) -> None:
        now = time.monotonic()
        if now - self._forgotten_at >= self.FORGET_EVERY:
            self._forgotten_at = now
            self._windows = {key: one for key, one in self._windows.items() if not one.is_idle}
