"""Places at the providers that have a concurrency limit, counted in Redis for all workers together.

A run takes a place before its claim. Without a free one it waits, in a fair order over users (start-time
fair queueing, each run of the same size); a place that becomes free is given to the first waiting run.
A place is a lease: its worker renews it with the run's lease, and that of a dead worker expires.

places:<provider>        sorted set: run → time at which its place expires, in milliseconds
places:<provider>:queue  sorted set: waiting run → its turn
places:<provider>:turns  hash: user → the user's next turn; `clock` → the turn of the last run served
places:waiting           hash: waiting run → provider

All of it may be lost at any time: workers renew the places of running runs, and the sweeper enqueues
waiting runs again. Functions raise redis.RedisError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from redis.client import Pipeline

from chatproject.lib.redis.clients import sync_client

LEASE_MILLISECONDS = 15_000
KEY_SECONDS = 24 * 60 * 60
WAITING = "places:waiting"

NO_LIMIT = 2**31

_BEGIN = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expiry = now + tonumber(ARGV[1])
"""

# KEYS: places, queue, turns, waiting. ARGV: lease, limit, run, user, provider, 1 to wait, key seconds.
# Answers 0 when the run has a place, else its position among the waiting runs, or -1.
_TAKE = (
    _BEGIN
    + """
local limit, run, user = tonumber(ARGV[2]), ARGV[3], ARGV[4]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local waiting = redis.call('ZCARD', KEYS[2])
local free = limit - redis.call('ZCARD', KEYS[1])
local is_mine = redis.call('ZSCORE', KEYS[1], run)
if not is_mine and free <= waiting then
  if ARGV[6] ~= '1' then return -1 end
  local turn = redis.call('ZSCORE', KEYS[2], run)
  if not turn then
    local clock = tonumber(redis.call('HGET', KEYS[3], 'clock') or '0')
    turn = math.max(clock, tonumber(redis.call('HGET', KEYS[3], user) or '0'))
    redis.call('ZADD', KEYS[2], turn, run)
    redis.call('HSET', KEYS[3], user, turn + 1)
    redis.call('HSET', KEYS[4], run, ARGV[5])
    for i = 2, 4 do redis.call('EXPIRE', KEYS[i], ARGV[7]) end
  end
  local rank = redis.call('ZRANK', KEYS[2], run)
  if rank >= free then return rank + 1 end
  redis.call('HSET', KEYS[3], 'clock', turn)
end
redis.call('ZADD', KEYS[1], expiry, run)
redis.call('PEXPIRE', KEYS[1], 2 * tonumber(ARGV[1]))
redis.call('ZREM', KEYS[2], run)
redis.call('HDEL', KEYS[4], run)
return 0
"""
)

# KEYS as above. ARGV: lease, limit, then the runs to free the places of. Answers the runs served.
_SERVE = (
    _BEGIN
    + """
for i = 3, #ARGV do redis.call('ZREM', KEYS[1], ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local free = tonumber(ARGV[2]) - redis.call('ZCARD', KEYS[1])
local served = {}
while free > 0 do
  local first = redis.call('ZPOPMIN', KEYS[2])
  if #first == 0 then
    redis.call('DEL', KEYS[3])
    break
  end
  redis.call('ZADD', KEYS[1], expiry, first[1])
  redis.call('PEXPIRE', KEYS[1], 2 * tonumber(ARGV[1]))
  redis.call('HDEL', KEYS[4], first[1])
  redis.call('HSET', KEYS[3], 'clock', first[2])
  redis.call('EXPIRE', KEYS[3], 86400)
  served[#served + 1] = first[1]
  free = free - 1
end
return served
"""
)

# KEYS: the places of each run's provider. ARGV: lease, then the runs.
RENEW = (
    _BEGIN
    + """
for i, key in ipairs(KEYS) do
  redis.call('ZADD', key, expiry, ARGV[i + 1])
  redis.call('PEXPIRE', key, 2 * tonumber(ARGV[1]))
end
return #KEYS
"""
)


def places_key(provider_id: int) -> str:
    return f"places:{provider_id}"


def queue_key(provider_id: int) -> str:
    return f"places:{provider_id}:queue"


def _keys(provider_id: int) -> list[str]:
    turns = f"places:{provider_id}:turns"
    return [places_key(provider_id), queue_key(provider_id), turns, WAITING]


def take(provider_id: int, limit: int, *, run_id: UUID, user_id: int, waits: bool) -> int:
    """Take a place for a run, or keep the one that it has; return 0 if it has one.

    Else the run's position among the waiting ones (`waits`), or -1.
    """
    arguments: list[str | int]
    arguments = [LEASE_MILLISECONDS, limit, str(run_id), user_id, provider_id, int(waits)]
    keys = _keys(provider_id)
    answer = sync_client().eval(_TAKE, len(keys), *keys, *arguments, KEY_SECONDS)
    return int(answer)  # type: ignore[arg-type] # the client's types include its asynchronous form


def serve(provider_id: int, limit: int | None, *, ended: Iterable[UUID] = ()) -> list[UUID]:
    """Free the places of runs that have ended; give each free place to a waiting run, and return these."""
    arguments: list[str | int] = [LEASE_MILLISECONDS, NO_LIMIT if limit is None else limit]
    arguments += map(str, ended)
    keys = _keys(provider_id)
    served: Sequence[bytes] = sync_client().eval(_SERVE, len(keys), *keys, *arguments)  # type: ignore[assignment]
    return [UUID(run_id.decode()) for run_id in served]


def waiting_at(run_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return the providers at which runs wait for a place."""
    if not run_ids:
        return {}
    found: Sequence[bytes | None] = sync_client().hmget(WAITING, [*map(str, run_ids)])  # type: ignore[assignment]
    return {one: int(at) for one, at in zip(run_ids, found, strict=True) if at is not None}


def positions(waiting: Mapping[UUID, int]) -> dict[UUID, int]:
    """Return the positions (1: the next) of waiting runs, by the providers of `waiting_at`."""
    pipeline: Pipeline = sync_client().pipeline(transaction=False)
    for run_id, provider_id in waiting.items():
        pipeline.zrank(queue_key(provider_id), str(run_id))
    ranks = pipeline.execute() if waiting else []
    return {
        run_id: rank + 1 for run_id, rank in zip(waiting, ranks, strict=True) if rank is not None
    }


def leave(run_id: UUID) -> None:
    """Take a run that ended while it waited out of the queue of its provider."""
    provider_id = waiting_at([run_id]).get(run_id)
    if provider_id is not None:
        pipeline: Pipeline = sync_client().pipeline()
        pipeline.zrem(queue_key(provider_id), str(run_id))
        pipeline.hdel(WAITING, str(run_id))
        pipeline.execute()


def providers_with_waiting_runs() -> set[int]:
    """Return the providers at which any run waits."""
    return {int(at) for at in sync_client().hvals(WAITING)}  # type: ignore[union-attr]
