"""Fairness: the wait of one user beside another one with a hundred requests."""

from __future__ import annotations

import asyncio

from bench import figures, load
from bench.load import Reply, Round
from bench.systems import Client
from bench.tally import Tally
from bench.targets.base import Place, Target

REQUESTS = 100
REQUEST_TOKENS = 20  # a second each
SAMPLES = 8  # messages of the other user, alone and beside the hundred

# The limits of a user in a new installation, and a worker with hardly more slots than that.
SETUP = {
    "variables": {"USER_CONCURRENCY": None, "USER_QUEUE_LIMIT": None, "WORKER_CONCURRENCY": "8"}
}


async def fairness(place: Place) -> Round:
    """Measure a user's time to the first token, alone and beside a user with REQUESTS requests."""
    [other] = await load.connect(place.system, [1])
    crowd = await load.connect(place.system, [0] * REQUESTS)
    replies: list[Reply] = []
    alone = await waits(other, replies)
    hundred = asyncio.create_task(load.ask(crowd, REQUEST_TOKENS))
    await asyncio.sleep(2.0)  # until they are queued
    beside = await waits(other, replies)
    # Otherwise the samples were not taken beside them.
    were_waiting = not hundred.done()
    replies += await hundred
    await load.close([other, *crowd])
    found = load.judge(replies)
    if not were_waiting:
        found.failures.append(f"the {REQUESTS} requests were answered before the others were sent")
    found.figures |= figures.spread("alone_ms", alone)
    found.figures |= figures.spread("beside_ms", beside)
    found.figures["wait_ratio"] = found.figures["beside_ms.p50"] / found.figures["alone_ms.p50"]
    return found


async def waits(client: Client, replies: list[Reply]) -> list[float]:
    """Milliseconds to the first token of SAMPLES messages; add their replies to `replies`."""
    found = []
    for _ in range(SAMPLES):
        reply = Reply(Tally(5))
        replies.append(reply)
        await load.converse(client, load.prompt(5), reply, patience=load.PATIENCE)
        found.append(1000 * reply.ttft)
    return found


TARGETS = (Target("fairness", fairness, {"parley": (2,)}, setup=SETUP),)
