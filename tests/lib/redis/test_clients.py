from __future__ import annotations

import asyncio

from chatproject.lib.redis.clients import async_client


async def test_more_calls_at_once_than_connections_wait_for_their_turn(valkey_url, settings):
    settings.REDIS_URL = valkey_url
    client = async_client(max_connections=2)
    try:
        answers = await asyncio.gather(*[client.incr("calls") for _ in range(200)])
    finally:
        await client.aclose()
    assert sorted(answers) == list(range(1, 201))
