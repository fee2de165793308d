"""Keys in Redis after some work: all expire, except RQ's own lists."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
import redis

from chatproject.lib import db
from tests.support.fake_llm.fixture import provider, provider_process
from tests.support.people import assistant, owner, session_key
from tests.support.reconnecting_client import LiveTab
from tests.support.stack import Stack

__all__ = ["assistant", "owner", "provider", "provider_process"]

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("assistant", "valkey_url"),
]

# RQ's lists, sets and registries, which exist while they have queues, workers or jobs in them.
LASTING = re.compile(
    r"rq:(queues|workers(:.+)?|queue:\w+|queue:intermediate.*|wip:\w+|finished:\w+|failed:\w+"
    r"|scheduled:\w+|canceled:\w+|deferred:\w+|ready:\w+|rl-keys|rl:user:\d+(:\w+)?"
    r"|scheduler:.+|cron_schedulers?)$"
)


async def test_own_keys_expire_without_any_scan(owner, provider, server_folder, valkey_client):
    """No process asks Redis for all of its keys."""
    before = commands(valkey_client)
    with Stack(server_folder, provider_url=provider.url) as stack:
        await asyncio.to_thread(stack.start, "web", "worker", "clock")
        session = await db.run(session_key, owner)
        async with asyncio.timeout(90):
            tabs = [LiveTab(stack, session) for _ in range(3)]
            chats = [
                tab.chat("[[tokens=20 rate=0]]", client_id=f"n{n}") for n, tab in enumerate(tabs)
            ]
            ends = await asyncio.gather(*chats)
        assert {end["type"] for end in ends} == {"run.done"}
        await asyncio.to_thread(stack.terminate, "worker")  # by its end it has stored everything
        lasting = [
            key.decode()
            for key in valkey_client.scan_iter()
            if valkey_client.ttl(key) == -1
            and not LASTING.match(key.decode())
            and not is_waiting_job(valkey_client, key)
        ]
        assert lasting == []
        after = commands(valkey_client)
    assert after["xadd"] > before.get("xadd", 0)
    assert after.get("keys", 0) == before.get("keys", 0)


def is_waiting_job(client: redis.Redis, key: bytes) -> bool:
    """Whether it is a job that still waits: the billing queue has no worker here."""
    status: Any = client.hget(key.decode(), "status")
    return key.startswith(b"rq:job:") and status == b"queued"


def commands(client: redis.Redis) -> dict[str, int]:
    """Calls of each command so far, by all clients."""
    return {
        name.removeprefix("cmdstat_"): int(figures["calls"])
        for name, figures in client.info("commandstats").items()
    }
