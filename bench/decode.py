"""The CPU cost of reading a token: the openai library's typed stream against `chat.llm`.

`python -m bench.decode` reads the same paced streams (one token per network read, as a model sends
them) from the fake provider, in turns, in one process, and prints this process's CPU per token of
each and their ratio. Every reply is compared with the expected text; a wrong one ends the run with
an error. It takes about 20 seconds.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import openai
import uvloop

from chat.llm.decoder import TextDelta
from chat.llm.provider import Provider
from chat.llm.request import CompletionRequest
from tests.support.fake_llm import FakeLLM, reply_text

STREAMS = 40
TOKENS = 100
RATE = 50  # tokens per second and stream
ROUNDS = 4

Read = Callable[[str], Awaitable[str]]


async def main() -> None:
    with FakeLLM() as provider:
        typed = openai.AsyncOpenAI(base_url=provider.url, api_key="none", max_retries=0)
        ours = Provider(base_url=provider.url, api_key="")

        async def read_typed(text: str) -> str:
            stream = await typed.chat.completions.create(
                model="fake", messages=[{"role": "user", "content": text}], stream=True
            )
            return "".join(
                [each.delta.content or "" async for chunk in stream for each in chunk.choices]
            )

        async def read_ours(text: str) -> str:
            messages = [{"role": "user", "content": text}]
            request = CompletionRequest(model="fake", messages=messages, max_tokens=TOKENS)
            async with aclosing(ours.stream(request)) as stream:
                return "".join(
                    [e.text async for events in stream for e in events if isinstance(e, TextDelta)]
                )

        ways: dict[str, Read] = {"the library's typed stream": read_typed, "chat.llm": read_ours}
        figures: dict[str, list[float]] = {way: [] for way in ways}
        for read in ways.values():  # connections, imports and caches are not what is measured
            await cost(read, rate=0)
        for _ in range(ROUNDS):
            for way, read in ways.items():
                figures[way].append(await cost(read, rate=RATE))
        await typed.close()
        await ours.close()

    print(f"{STREAMS} streams at {RATE} tokens/s, {ROUNDS} rounds of {TOKENS} tokens each")
    for way, costs in figures.items():
        print(f"{way:28}{statistics.median(costs):7.1f} µs of CPU per token")
    slow, fast = (statistics.median(costs) for costs in figures.values())
    print(f"{'ratio':28}{slow / fast:7.1f}")


async def cost(read: Read, *, rate: int) -> float:
    """This process's CPU per token, in microseconds, over one round."""
    texts = [f"[[tokens={TOKENS} rate={rate}]] stream {number}" for number in range(STREAMS)]
    began = time.process_time()
    replies = await asyncio.gather(*(read(text) for text in texts))
    used = time.process_time() - began
    for text, reply in zip(texts, replies, strict=True):
        if reply != reply_text(TOKENS, text):
            raise SystemExit(f"a wrong reply to {text!r}")
    return used / STREAMS / TOKENS * 1e6


if __name__ == "__main__":
    uvloop.run(main())
