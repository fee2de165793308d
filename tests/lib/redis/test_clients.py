from __future__ import annotations

import asyncio

from chatproject.lib.redis.clients import async_client


async def test_calls_wait_for_a_free_connection(valkey_url, settings):
    settings.REDIS_URL = valkey_url
    client = async_client(max_connections=2)
    try:
        answers = await asyncio.gather(*[client.incr("calls") for _ in range(200)])
    finally:
        await client.aclose()
    assert sorted(answers) == list(range(1, 201))
