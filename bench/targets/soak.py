"""Growth of memory while people come, talk and go for half an hour."""

from __future__ import annotations

import asyncio
import statistics
import time

from bench import load, processes
from bench.load import Reply, Round
from bench.tally import Tally
from bench.targets.base import Place, Target

TOKENS = 60
SAMPLE_EVERY = 5.0  # seconds
GROWTH = 1.05  # the last quarter's memory in relation to the second quarter's
JUDGED = ("web", "worker", "clock")  # Redis keeps what has ended for a while, so it grows at first


async def soak(place: Place) -> Round:
    """Each user opens a tab, has a message answered, and closes it, again and again."""
    replies: list[Reply] = []
    until = time.monotonic() + place.seconds

    async def live(user: int) -> None:
        while time.monotonic() < until:
            [client] = await load.connect(place.system, [user])
            reply = Reply(Tally(TOKENS))
            replies.append(reply)
            await load.converse(client, load.prompt(TOKENS), reply, patience=load.PATIENCE)
            await load.close([client])

    people = [asyncio.create_task(live(user)) for user in range(place.users)]
    samples: list[dict[str, float]] = []
    while time.monotonic() < until:
        await asyncio.sleep(min(SAMPLE_EVERY, place.seconds / 20))
        samples.append(processes.memory(place.system.roles()))
    await asyncio.gather(*people)
    found = load.judge(replies)
    found.figures["messages"] = len(replies)
    quarter = len(samples) // 4  # the first one is for warming up
    for role in (*JUDGED, "redis"):
        sizes = [sample[role] for sample in samples]
        second = statistics.median(sizes[quarter : 2 * quarter])
        last = statistics.median(sizes[-quarter:])
        found.figures |= {f"rss_mb.{role}": last, f"growth_ratio.{role}": last / second}
        if role in JUDGED and last > second * GROWTH:
            found.failures.append(f"{role} grew from {second:.0f} to {last:.0f} MB")
    return found


TARGETS = (Target("soak", soak, {"parley": (50,)}, seconds=1800.0, by_default=False),)
