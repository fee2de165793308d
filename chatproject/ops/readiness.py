"""Parts that a running site needs, as a probe can check them: within milliseconds, and often.

A part that works has an empty reason, any other one a sentence for the log and for staff.
"""

from __future__ import annotations

import redis
from django.utils import timezone

from chat.runs import queue
from chatproject.lib import db
from chatproject.lib.leadership import lease
from chatproject.lib.redis.clients import sync_client
from chatproject.ops import migrations

# The key that a probe writes: a full Redis and a replica refuse it.
PROBE = "health:probe"
PROBE_SECONDS = 10

CLOCK = "clock"  # the name of its leadership

# Without these a web process cannot do its work. Another web process lacks the worker and the clock
# just as much, and pages, history and the queue work without them.
REQUIRED = frozenset({"database", "migrations", "redis"})

NO_ANSWER = "no answer within {seconds:g} s"
NO_CLOCK = "No clock works: lost workers are not noticed. Start manage.py clock."
NO_WORKER = (
    "No worker takes messages: they stay queued. Start manage.py rqworker chat"
    " --serializer rq.serializers.JSONSerializer."
)
FULL = "It is full and refuses writes. Raise maxmemory, or remove the keys of other programs."
REPLICA = "It is a replica and refuses writes. Name the primary server in REDIS_URL."
OLD_SCHEMA = "{count} migrations are missing. Run manage.py migrate."


def database_parts() -> dict[str, str]:
    """Return the reasons of `database`, `migrations` and `clock`; without Postgres only the first."""
    try:
        missing = migrations.compare().missing
        if missing:
            return {"database": "", "migrations": OLD_SCHEMA.format(count=len(missing))}
        clock = lease.leader(CLOCK)
        return {
            "database": "",
            "migrations": "",
            "clock": "" if clock and clock.is_alive else NO_CLOCK,
        }
    except db.UNREACHABLE as error:
        return {"database": f"Postgres is unreachable: {error}"}


def redis_parts() -> dict[str, str]:
    """Return the reasons of `redis` and `worker`; without Redis only the first."""
    try:
        try:
            sync_client().set(PROBE, "1", ex=PROBE_SECONDS)
            reason = ""
        except redis.OutOfMemoryError:
            reason = FULL
        except redis.ReadOnlyError:
            reason = REPLICA
        except redis.ResponseError as error:
            reason = f"It refuses writes: {error}"
        takes = any(worker.is_taking for worker in queue.workers(timezone.now()))
        return {"redis": reason, "worker": "" if takes else NO_WORKER}
    except redis.RedisError as error:
        return {"redis": f"Redis is unreachable: {error}"}
