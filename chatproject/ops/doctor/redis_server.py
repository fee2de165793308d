"""Redis: its version, its memory and policy, its persistence, and other programs in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from chatproject.lib import loop_monitor
from chatproject.ops import readiness
from chatproject.ops.doctor.finding import Finding, ok, one_line, problem, warning

PART = "redis"
OLDEST = 7  # the major version of Redis or Valkey
FILLING, FULL = 0.75, 0.95  # shares of the memory
SAMPLE = 2_000  # keys, among which other programs are searched for

# Beginnings of our keys: docs/glossary.md lists them.
OURS = (
    "alert:",
    "cache:",
    "health:",
    "insights:",
    "limit:",
    "loop:",
    "loops",
    "metrics:",
    "places:",
    "queue:",
    "rq:",
    "run:",
)

UNREACHABLE = "Start Redis, or correct host and port in REDIS_URL."
RIGHTS = "Allow this user all commands, keys and channels (ACL): Parley has Redis for itself."
PRIMARY = "Name the primary server in REDIS_URL."
NO_REDIS = (
    "Another program answers there, or only one side uses TLS (rediss://): correct REDIS_URL."
)

# Parts of messages of Redis and its client, in lower case, and what to do about them.
ADVICE = (
    ("no permissions", RIGHTS),
    ("noperm", RIGHTS),
    ("db index", "Name a database that exists at the end of REDIS_URL: /0."),
    ("max number of clients", "Raise maxclients of Redis."),
    ("busy", "A script of another program runs: SCRIPT KILL ends it. Give Parley its own Redis."),
    ("loading", "Wait until Redis has read its data."),
    ("link with master", PRIMARY),
    ("read only replica", PRIMARY),
    ("not enough good replicas", "Start the replicas, or set min-replicas-to-write 0."),
    ("misconf", "See Redis' log: the disk is full, or its folder is not writable."),
    ("protected mode", "Set a password in Redis and in REDIS_URL, or bind it to an inner address."),
    ("protocol error", NO_REDIS),
    ("closed by server", NO_REDIS),
    ("reset by peer", NO_REDIS),
    ("ssl", NO_REDIS),
)


def connect(**options: Any) -> redis.Redis:
    """Return a client that tries each command once."""
    return redis.Redis.from_url(settings.REDIS_URL, retry=Retry(NoBackoff(), 0), **options)


def check() -> Iterator[Finding]:
    """Yield the findings about Redis; only one if it cannot be used at all."""
    try:
        with connect() as client:
            info = client.info("everything")
            yield from _server(info)
            yield from _memory(info)
            yield from _persistence(info)
            yield from _neighbours(client, info)
            if info.get("role") == "master":
                # One command of each kind, none of which changes anything.
                client.delete(*(f"{prefix}doctor" for prefix in OURS))
                client.eval("return 1", 0)
                client.publish("parley:doctor", "")
    except redis.AuthenticationError:
        yield problem(PART, "it refuses the password", "Correct user and password in REDIS_URL.")
    except redis.RedisError as error:
        text = str(error).lower()
        advice = next((advice for words, advice in ADVICE if words in text), UNREACHABLE)
        if advice is UNREACHABLE and settings.REDIS_URL.startswith("rediss:"):
            advice = f"{UNREACHABLE} Write redis:// for a Redis without TLS."
        yield problem(PART, one_line(error), advice)
    layers: Any = settings.CHANNEL_LAYERS
    others = [url for url in layers["default"]["CONFIG"]["hosts"] if url != settings.REDIS_URL]
    for number, url in enumerate(others, start=1):
        try:
            with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
                client.ping()
        except redis.RedisError as error:
            yield problem(
                "live events",
                f"server {number} of CHANNEL_LAYER_URLS: {one_line(error)}",
                "Start it, or correct CHANNEL_LAYER_URLS.",
            )
        else:
            yield ok("live events", f"server {number} of CHANNEL_LAYER_URLS answers")


def _server(info: dict[str, Any]) -> Iterator[Finding]:
    is_valkey = "valkey_version" in info
    name = "Valkey" if is_valkey else "Redis"
    version = str(info["valkey_version"] if is_valkey else info["redis_version"])
    if int(version.partition(".")[0]) < OLDEST:
        yield problem(PART, f"{name} {version} is too old", f"Upgrade to {OLDEST} or newer.")
    elif info.get("cluster_enabled"):
        yield problem(PART, f"{name} {version} is a cluster", "Use one server, or Sentinel.")
    elif info.get("role") != "master":
        yield problem(
            PART,
            f"{name} {version} is a replica, which accepts no writes",
            "Name the primary server in REDIS_URL.",
        )
    else:
        yield ok(PART, f"{name} {version}")


def _memory(info: dict[str, Any]) -> Iterator[Finding]:
    used, limit = info["used_memory"], info.get("maxmemory", 0)
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found = f"maxmemory-policy is {policy}: a full Redis drops jobs and replies without a word"
        advice = (
            "Set maxmemory-policy noeviction, and give caches of other programs their own Redis."
        )
        # Without a limit Redis never evicts, until the operator sets one.
        yield (problem if limit else warning)("redis memory", found, advice)
    total = limit or info.get("total_system_memory", 0)
    share = used / total if total else 0.0
    of = f"of maxmemory {_megabytes(limit)}" if limit else "without a maxmemory"
    found = f"{_megabytes(used)} used, {of}"
    advice = "Raise maxmemory, or remove the keys of other programs: a full Redis refuses messages."
    if share >= FULL:
        yield problem("redis memory", found, advice)
    elif share >= FILLING:
        yield warning("redis memory", found, advice)
    elif policy == "noeviction":
        yield ok("redis memory", f"{found}, noeviction")


def _megabytes(size: int) -> str:
    return f"{size / 1_048_576:,.0f} MB"


def _persistence(info: dict[str, Any]) -> Iterator[Finding]:
    failed = [
        kind
        for kind, field in (
            ("snapshot", "rdb_last_bgsave_status"),
            ("log", "aof_last_write_status"),
        )
        if info.get(field, "ok") != "ok"
    ]
    if failed:
        yield problem(
            "redis disk",
            f"its last {' and '.join(failed)} could not be written, so it may refuse writes",
            "See Redis' log: the disk is full, or its folder is not writable.",
        )
    elif info.get("aof_enabled"):
        yield ok("redis disk", "append-only file")
    else:
        yield ok("redis disk", "no append-only file: a lost queue is rebuilt from Postgres")


def _neighbours(client: redis.Redis, info: dict[str, Any]) -> Iterator[Finding]:
    """Find keys of other programs in our database, and another Parley in the other databases."""
    foreign: Counter[str] = Counter()
    keys: Iterator[bytes] = client.scan_iter(count=500)
    for key in islice(keys, SAMPLE):
        name = key.decode(errors="replace")
        if not name.startswith(OURS):
            foreign[name.partition(":")[0][:20]] += 1
    own = client.connection_pool.connection_kwargs.get("db", 0)
    numbers = [int(name[2:]) for name in info if name.startswith("db") and name[2:].isdecimal()]
    parleys = [number for number in numbers if number != own and _has_parley(number)]
    advice = "Give Parley a Redis of its own."
    if parleys:
        yield problem(
            "redis keys",
            f"another Parley uses database {parleys[0]} of this server, and would receive our live"
            " events: they do not belong to a database",
            advice,
        )
    if foreign:
        names = ", ".join(sorted(foreign)[:3])
        yield warning("redis keys", f"other programs have keys here: {names}", advice)
    if not parleys and not foreign:
        yield ok("redis keys", "no other program has keys here")


def _has_parley(number: int) -> bool:
    with connect() as other, other.client() as client:
        client.execute_command("SELECT", number)
        return bool(client.exists(loop_monitor.LOOPS, readiness.PROBE, "rq:workers:chat"))
