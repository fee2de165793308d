"""Streams side by side, all messages at once, and the time to the first token."""

from __future__ import annotations

import asyncio
import random
import time

from bench import figures, load
from bench.load import Reply, Round
from bench.tally import Tally
from bench.targets.base import Place, Target

TTFT_MESSAGES = 12  # of each user, one after another in one conversation
TTFT_TOKENS = 30
BURST_TOKENS = 60


async def stream(place: Place) -> Round:
    """Measure streams side by side; see bench.load."""
    return await load.stream(place.system, place.provider, place.users, seconds=place.seconds)


async def burst(place: Place) -> Round:
    """Measure a message of every user, all sent at once."""
    clients = await load.connect(place.system, range(place.users))
    began = time.monotonic()
    replies = await load.ask(clients, BURST_TOKENS)
    took = time.monotonic() - began
    await load.close(clients)
    found = load.judge(replies)
    delays = [delay / 1000 for reply in replies for delay in reply.tally.delays]
    found.figures |= {
        "seconds": took,
        "messages_per_s": place.users / took,
        **figures.spread("ttft_ms", load.first_tokens(replies)),
        **figures.spread("delay_ms", delays),
    }
    return found


async def ttft(place: Place) -> Round:
    """Measure the time from sending to the first token, which the provider sends at once."""
    clients = await load.connect(place.system, range(place.users))
    replies: list[Reply] = []

    async def talk(number: int) -> None:
        chance = random.Random(number)
        for _ in range(TTFT_MESSAGES):
            await asyncio.sleep(chance.uniform(0, 0.5))
            reply = Reply(Tally(TTFT_TOKENS))
            replies.append(reply)
            text = load.prompt(TTFT_TOKENS)
            await load.converse(clients[number], text, reply, patience=load.PATIENCE)

    await asyncio.gather(*(talk(number) for number in range(place.users)))
    await load.close(clients)
    found = load.judge(replies)
    found.figures |= figures.spread("ttft_ms", load.first_tokens(replies))
    return found


STREAM_SIZES = {
    "parley": (10, 50, 100, 200, 500),
    "parley-two-webs": (500,),
    "parley-api": (200,),
    "proxy": (10, 50, 200, 500),
    "chainlit": (10, 200),
}
TARGETS = (
    Target("stream", stream, STREAM_SIZES),
    Target("ttft", ttft, {"parley": (10,), "proxy": (10,), "chainlit": (10,)}),
    Target("burst", burst, {"parley": (200,)}),
)
