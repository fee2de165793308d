"""What is left in Redis after a day's work: nothing that stays for ever but RQ's own lists."""

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

# RQ's lists, sets and registries: as long as there are queues, workers and jobs in them.
LASTING = re.compile(
    r"rq:(queues|workers(:.+)?|queue:\w+|queue:intermediate.*|wip:\w+|finished:\w+|failed:\w+"
    r"|scheduled:\w+|canceled:\w+|deferred:\w+|ready:\w+|rl-keys|rl:user:\d+(:\w+)?"
    r"|scheduler:.+|cron_schedulers?)$"
)


async def test_every_key_of_ours_has_its_time_and_nobody_asks_for_all_keys(
    owner, provider, server_folder, valkey_client
):
    before = commands(valkey_client)
    with Stack(server_folder, provider_url=provider.url) as stack:
        await asyncio.to_thread(stack.start, "web", "worker", "clock")
        session = await db.run(session_key, owner)
        async with asyncio.timeout(90):
            tabs = [LiveTab(stack, session) for _ in range(3)]
            ends = await asyncio.gather(
                *(
                    tab.chat("[[tokens=20 rate=0]]", client_id=f"n{number}")
                    for number, tab in enumerate(tabs)
                )
            )
        assert {end["type"] for end in ends} == {"run.done"}
        await asyncio.to_thread(stack.terminate, "worker")  # all that it did is written down then
        lasting = [
            key.decode()
            for key in valkey_client.scan_iter()
            if valkey_client.ttl(key) == -1
            and not LASTING.match(key.decode())
            and not is_waiting_job(valkey_client, key)
        ]
        assert lasting == []
        used = {
            name: count - before.get(name, 0) for name, count in commands(valkey_client).items()
        }
    assert used["xadd"] > 0
    assert used.get("keys", 0) == 0


def test_redis_may_not_evict_what_the_queue_needs(valkey_client):
    assert valkey_client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def is_waiting_job(client: redis.Redis, key: bytes) -> bool:
    """Whether it is a job that nobody has done yet (here the billing queue has no worker)."""
    status: Any = client.hget(key.decode(), "status")
    return key.startswith(b"rq:job:") and status == b"queued"


def commands(client: redis.Redis) -> dict[str, int]:
    """How often each command was called, by all clients."""
    return {
        name.removeprefix("cmdstat_"): int(figures["calls"])
        for name, figures in client.info("commandstats").items()
    }
