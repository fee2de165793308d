from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import redis
from redis.exceptions import ResponseError

from chatproject.lib.redis.pipeline import Pipeline, bulk, head, pack
from tests.support.programs import is_open


@pytest_asyncio.fixture
async def pipeline(valkey_url: str) -> AsyncIterator[Pipeline]:
    made = Pipeline(valkey_url, connect_timeout=5, timeout=5)
    yield made
    await made.close()


async def test_answers_keep_the_order_of_commands(pipeline):
    commands = pack("SET", "a", 1) + pack("INCR", "a") + pack("GET", "missing") + pack("GET", "a")

    assert await pipeline.execute(commands, 4) == [b"OK", 2, None, b"2"]


async def test_command_of_head_and_bulk_is_valid(pipeline):
    data = "naïve\r\n".encode()

    await pipeline.execute(head(3, "SET", "key") + bulk(data), 1)

    assert await pipeline.command("GET", "key") == data


async def test_concurrent_batches_get_their_own_answers(pipeline):
    async def count(name: str, times: int) -> list[int]:
        return await pipeline.execute(pack("INCR", name) * times, times)  # type: ignore[no-any-return]

    names = [f"n{number}" for number in range(50)]
    answers = await asyncio.gather(*[count(name, 7) for name in names])

    assert answers == [[1, 2, 3, 4, 5, 6, 7]] * 50


async def test_answers_in_pieces_are_joined(pipeline):
    big = b"x" * 3_000_000
    await pipeline.command("SET", "big", big)

    assert await pipeline.execute(pack("GET", "big") + pack("INCR", "n"), 2) == [big, 1]


async def test_error_answers_keep_their_place(pipeline):
    answers = await pipeline.execute(pack("SET", "a", "x") + pack("INCR", "a") + pack("PING"), 3)

    assert answers[0] == b"OK"
    assert isinstance(answers[1], ResponseError)
    assert answers[2] == b"PONG"
    with pytest.raises(ResponseError):
        await pipeline.command("INCR", "a")


async def test_cancelled_caller_takes_no_other_answers(pipeline):
    await pipeline.command("PING")
    waiting = asyncio.create_task(pipeline.command("DEBUG", "SLEEP", "0"))
    await asyncio.sleep(0)
    waiting.cancel()

    assert await pipeline.command("ECHO", "mine") == b"mine"


async def test_lost_connection_is_replaced(pipeline, valkey_url):
    await pipeline.command("SET", "a", 1)
    with redis.Redis.from_url(valkey_url) as client:
        own = client.client_id()
        for connection in client.client_list():
            if connection["id"] != str(own):
                client.client_kill_filter(_id=connection["id"])

    async def ask_until_it_fails() -> None:
        while True:
            await pipeline.command("PING")

    with pytest.raises(redis.RedisError):
        await ask_until_it_fails()
    assert await pipeline.command("GET", "a") == b"1"


async def test_unreachable_redis_raises_its_own_error():
    assert not is_open(9)
    pipeline = Pipeline("redis://127.0.0.1:9/0", connect_timeout=1, timeout=1)

    with pytest.raises(redis.ConnectionError):
        await pipeline.command("PING")
    await pipeline.close()


async def test_silent_redis_is_given_up_and_reconnected(valkey_url):
    """A late answer must not be taken for the answer to another command."""
    pipeline = Pipeline(valkey_url, connect_timeout=5, timeout=0.5)
    await pipeline.command("PING")
    with redis.Redis.from_url(valkey_url) as client:
        client.client_pause(1_000)
    with pytest.raises(redis.TimeoutError):
        await pipeline.command("ECHO", "late")
    await asyncio.sleep(1)

    assert await pipeline.command("ECHO", "next") == b"next"
    await pipeline.close()
