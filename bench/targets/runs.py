"""Following a running reply from a new tab, and stopping it."""

from __future__ import annotations

import asyncio
import random
import time

from bench import figures, load
from bench.load import Round
from bench.parley import Tab
from bench.systems import Client
from bench.tally import Tally
from bench.targets.base import Place, Target
from tests.support.fake_llm import FakeLLM

SO_FAR = 4000  # tokens that a reply has when others attach to it
ATTACHES = 10
PATIENCE = 60.0


async def resume(place: Place) -> Round:
    """Measure from the `resume` frame of a new tab to the full text so far of a running reply."""
    found = Round({"lost": 0, "doubled": 0, "out_of_order": 0})
    times: list[float] = []
    [author] = await load.connect(place.system, [0])
    assert isinstance(author, Tab)
    asked = f"[[stamps=1 tokens={SO_FAR + 80} at_once={SO_FAR} rate=1]]"
    written = Tally(SO_FAR)
    async with asyncio.timeout(PATIENCE):
        reply = author.send(asked)
        while written.arrived < SO_FAR:
            written.feed(await anext(reply))
        for _ in range(ATTACHES):
            tab = await place.system.connect(0)
            assert isinstance(tab, Tab)
            read = Tally(SO_FAR)
            began = time.monotonic()
            async for piece in tab.resume(author.run):
                read.feed(piece)
                if read.arrived >= SO_FAR:
                    break
            times.append(1000 * (time.monotonic() - began))
            found.figures["lost"] += read.lost
            found.figures["doubled"] += read.doubled
            found.figures["out_of_order"] += read.out_of_order
            await tab.close()
        author.stop()
        async for piece in reply:
            written.feed(piece)
    await author.close()
    if author.end is None or author.end.type != "run.stopped":
        found.failures.append(f"the reply ended with {author.end} though it was stopped")
    if written.lost or found.figures["lost"] or found.figures["doubled"]:
        found.failures.append("a text so far was not what had been sent")
    found.figures |= figures.spread("resume_ms", times)
    return found


async def stop(place: Place) -> Round:
    """Measure from `run.stop` to `run.stopped`, and to the end of the provider's stream."""
    found = Round()
    tabs = await load.connect(place.system, range(place.users))
    stopped: list[tuple[str, int, int]] = []
    for kind, first in (("speaking", 0.0), ("silent", 60.0)):
        stops = (stop_one(tab, f"{kind}-{n}", first, found) for n, tab in enumerate(tabs))
        stopped += await asyncio.gather(*stops)
    await load.close(tabs)
    stopped_at = {key: at for key, at, _ in stopped}
    left = await leavings(place.provider, set(stopped_at))
    if missing := len(stopped_at) - len(left):
        found.failures.append(f"{missing} streams of the provider were not left")
    to_end = [(ended - at) / 1e6 for _, at, ended in stopped]
    to_leaving = [(left[key] - at) / 1e6 for key, at in stopped_at.items() if key in left]
    found.figures |= figures.spread("stopped_ms", to_end)
    found.figures |= figures.spread("provider_left_ms", to_leaving)
    return found


async def stop_one(tab: Client, key: str, first: float, found: Round) -> tuple[str, int, int]:
    """Stop a reply while it is written, or before its first token; return its key and both times."""
    assert isinstance(tab, Tab)
    tally = Tally(load.LONGEST)
    chance = random.Random(key)
    async with asyncio.timeout(PATIENCE):
        reply = tab.send(load.prompt(load.LONGEST, first=first, key=key))
        stopping = asyncio.create_task(_press_stop(tab, tally, first, chance.uniform(0.5, 1.5)))
        async for piece in reply:
            tally.feed(piece)
        stopped_at = await stopping
    assert tab.end is not None
    if tab.end.type != "run.stopped" or tally.doubled or tally.out_of_order:
        found.failures.append(f"{key} ended with {tab.end.type}, {tally.faults()}")
    return key, stopped_at, tab.ended_at


async def _press_stop(tab: Tab, tally: Tally, first: float, after: float) -> int:
    while not tab.run or not (tally.arrived or first):  # noqa: ASYNC110 # no event exists
        await asyncio.sleep(0.01)
    await asyncio.sleep(after)
    tab.stop()
    return time.time_ns()


async def leavings(provider: FakeLLM, keys: set[str]) -> dict[str, int]:
    """By key: when the client left the stream. Waits up to two seconds for the last ones."""
    for _ in range(20):
        calls = await asyncio.to_thread(lambda: provider.calls)
        left = {
            call.key: call.ended_at
            for call in calls
            if call.key in keys and call.ended == "aborted"
        }
        if len(left) == len(keys):
            break
        await asyncio.sleep(0.1)
    return left


TARGETS = (
    Target("resume", resume, {"parley": (1,)}),
    Target("stop", stop, {"parley": (10,)}),
)
