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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
    """The limit `name` is used up; after `retry_after` whole seconds another use may be accepted.

    `amount` is the number of uses that it permits, where that is known.
    """

    def __init__(self, name: str, retry_after: int, amount: int | None = None) -> None:
        self.name = name
        self.retry_after = retry_after
        self.amount = amount
        metrics.RATE_LIMITED.labels(name).inc()
        super().__init__(f"{name}: try again in {retry_after} s")


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a key in a limit: uses of its tightest rate, and seconds until all of them are free.

    `amount` is None without a limit, or while it could not be counted.
    """

    amount: int | None = None
    remaining: int = 0
    reset: float = 0.0

    def headers(self) -> dict[str, str]:
        """Return the headers about it (IETF draft-ietf-httpapi-ratelimit-headers, three fields)."""
        if self.amount is None:
            return {}
        return {
            "RateLimit-Limit": str(self.amount),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(math.ceil(self.reset)),
        }


_reported: ContextVar[list[Standing] | None] = ContextVar("reported", default=None)


@contextmanager
def reporting() -> Iterator[list[Standing]]:
    """Collect the state of each limit that is counted in the block, for the headers of a response."""
    found: list[Standing] = []
    token = _reported.set(found)
    try:
        yield found
    finally:
        _reported.reset(token)


def report(standing: Standing) -> None:
    """Add a state to the list of the enclosing `reporting`, if any."""
    reported = _reported.get()
    if reported is not None and standing.amount is not None:
        reported.append(standing)


def hit(name: str, *key: object, limit: Limit | None = None, reported: bool = True) -> Standing:
    """Count one use of a limit by `key`: a user's id, or an address; return its state. Raises RateLimited.

    `limit` replaces the one of the table. A use is counted by all rates or by none, in one round trip. The state is
    `reported` (see `reporting`), except for a key that other people use up, too.

    Synchronous: an event loop calls it in a database thread.
    """
    limit = limit_of(name) if limit is None else limit
    if not limit.rates:
        return Standing()
    try:
        answers = _count(limit, name, key)
    except redis.RedisError as error:
        _note_uncounted(name, limit, error)
        return Standing()
    now = time.time()
    standings, refused = [], []
    for (amount, seconds), (is_free, oldest, used) in zip(limit.rates, answers, strict=True):
        reset = max(0.0, float(oldest or now) + seconds - now)
        standing = Standing(amount, max(0, amount - used), reset)
        standings.append(standing)
        if not is_free:
            refused.append(standing)
    if refused:
        longest = max(refused, key=lambda one: one.reset)
        if reported:
            report(longest)
        raise RateLimited(name, max(1, math.ceil(longest.reset)), longest.amount)
    tightest = min(standings, key=lambda one: one.remaining)
    if reported:
        report(tightest)
    return tightest


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
                wait = retry_after(name, *key)
                report(Standing(item.amount, 0, wait))
                raise RateLimited(name, wait, item.amount)
    except redis.RedisError as error:
        _note_uncounted(name, limit, error)


def _note_uncounted(name: str, limit: Limit, error: redis.RedisError) -> None:
    """Count a use that Redis did not; raises the error for a limit that fails closed."""
    logger.warning("the limit %s was not counted: %s", name, error)
    outcome = "refused" if limit.fails_closed else "accepted"
    metrics.RATE_LIMITS_UNCOUNTED.labels(name, outcome).inc()
    if limit.fails_closed:
        raise error


def retry_after(name: str, *key: object, limit: Limit | None = None) -> int:
    """Return the whole seconds, at least one, after which the limit accepts another use."""
    resets = [
        stats.reset_time
        for item in _items(limit_of(name) if limit is None else limit)
        for stats in [_limiter().get_window_stats(item, name, _digest(key))]
        if stats.remaining == 0
    ]
    return max(1, math.ceil(max(resets, default=0.0) - time.time()))


def hit_in_pipeline(pipeline: Pipeline, name: str, limit: Limit, *key: object) -> None:
    """Add one use of a limit to a pipeline of redis-py, as one command for each rate.

    An answer of None means that the limit is used up. The script has to be in Redis, or the pipeline
    raises NoScriptError.
    """
    for item in _items(limit):
        _storage().lua_acquire_moving_window(
            [_storage().prefixed_key(item.key_for(name, _digest(key)))],
            [time.time(), item.amount, item.get_expiry(), 1],
            client=pipeline,
        )


# As the scripts of `limits`: a list of the times of uses for each rate, newest first. Returns for each rate whether
# it accepts the use, the time of the oldest use in the window, and the number of uses.
COUNT = """
local now = tonumber(ARGV[1])
local free, is_accepted = {}, true
for at, key in ipairs(KEYS) do
  local last = redis.call('lindex', key, ARGV[2 * at] - 1)
  free[at] = (not last or tonumber(last) < now - ARGV[2 * at + 1]) and 1 or 0
  is_accepted = is_accepted and free[at] == 1
end
local answers = {}
for at, key in ipairs(KEYS) do
  local amount, seconds = ARGV[2 * at], ARGV[2 * at + 1]
  if is_accepted then
    redis.call('lpush', key, ARGV[1])
    redis.call('ltrim', key, 0, amount - 1)
    redis.call('expire', key, seconds)
  end
  local low, high = 0, redis.call('llen', key) - 1
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if tonumber(redis.call('lindex', key, middle)) >= now - seconds then
      low = middle
    else
      high = middle - 1
    end
  end
  answers[at] = {free[at], redis.call('lindex', key, low), math.min(low, high) + 1}
end
return answers
"""


def _count(limit: Limit, name: str, key: tuple[object, ...]) -> list[tuple[int, bytes | None, int]]:
    # Without a pipeline, for which redis-py asks first whether Redis has the script.
    script = sync_client().register_script(COUNT)
    items, digest = _items(limit), _digest(key)
    keys = [_storage().prefixed_key(item.key_for(name, digest)) for item in items]
    rates = [number for item in items for number in (item.amount, item.get_expiry())]
    answers: list[tuple[int, bytes | None, int]] = script(keys, [time.time(), *rates])
    return answers


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
