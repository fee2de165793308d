"""Plays rounds: people ask, something fails, all replies end, and the judge compares.

Imported when Django is set up.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from django.conf import settings

from chatproject.lib import db
from tests.chaos.rounds import asks, faults, people, rows
from tests.chaos.rounds.asks import Ask
from tests.chaos.rounds.evidence import Evidence, Problem
from tests.chaos.rounds.faults import FAULTS, POOLER_FAULTS, Scene
from tests.chaos.rounds.judge import judge
from tests.chaos.rounds.people import ChaosTab, Person
from tests.chaos.rounds.purges import Purges
from tests.chaos.rounds.report import Played, explain, summarise
from tests.chaos.rounds.stage import PROCESSES, Stage, patiently, supervised

SENDING = 2.0  # seconds over which the messages of a round are sent
LATEST_FAULT = 5.0  # seconds after a round's beginning
APART = 3.0  # seconds at most between two faults of a round
SPARE = 45.0  # seconds beyond the bound until a client is abandoned
NEW_CHAT = 0.25  # the share of people who begin another conversation


async def all_rounds(stage: Stage, options: argparse.Namespace) -> bool:
    """Play the rounds and print them; return False after a problem."""
    if options.faults:
        given = [tuple(word.split("+")) for word in options.faults.split(",")]
        drawn = [given[number % len(given)] for number in range(options.rounds)]
    else:
        drawn = faults.draw(
            random.Random(options.seed), options.rounds, pooled=stage.pooler is not None
        )
    invited = await db.run(people.invite, options.conversations)
    played: list[Played] = []
    purges = Purges(stage)
    began = time.monotonic()
    async with supervised(stage):
        watcher = asyncio.create_task(purges.watch())
        for number, names in enumerate(drawn, start=1):
            if number >= options.first:
                played.append(await one_round(stage, invited, purges, number, names, options))
                print(played[-1].line(), flush=True)
                if played[-1].problems:
                    explain(stage, played[-1])
                    if not options.keep_going:
                        break
        left = await purges.finish(options.bound)
        watcher.cancel()
    print(purges.line())
    for problem in left:
        print(f"  {problem.what}")
    summarise(played, time.monotonic() - began)
    for line in stage.errors():
        print(f"logged: {line}")
    return not left and not any(one.problems for one in played)


async def one_round(
    stage: Stage,
    invited: list[Person],
    purges: Purges,
    number: int,
    names: tuple[str, ...],
    options: argparse.Namespace,
) -> Played:
    # Its own seed, so that a round does not depend on the rounds before it.
    seed = f"{options.seed}:{number}"
    chance = random.Random(seed)
    prefix = f"r{number}-"
    asked = [asks.draw(chance, f"{prefix}{index}", over=SENDING) for index in range(len(invited))]
    is_early = not faults.AMID_SENDS.isdisjoint(names)
    fault_at = chance.uniform(0.3, SENDING / 2 if is_early else LATEST_FAULT)
    for person in invited:
        if chance.random() < NEW_CHAT:
            await db.run(person.begin_anew)
    await stage.ready(*PROCESSES)
    await asyncio.to_thread(stage.provider.reset)
    files = await db.run(people.upload, invited, asked)

    began = time.monotonic()
    tabs, replies, stops = people.open_tabs(stage, invited, asked, seed, files)
    scene = Scene(stage, chance, tabs)
    watcher = asyncio.create_task(faults.watch_orphans(scene))
    await asyncio.sleep(fault_at)
    words = await asyncio.gather(
        *(strike(scene, name, chance.uniform(0, APART) * index) for index, name in enumerate(names))
    )
    calm_at = max(time.monotonic(), began + SENDING)
    longest = max(ask.seconds * (1 if ask.further in {"", "compare"} else 2) for ask in asked)
    deadline = calm_at + options.bound + longest
    await asyncio.wait(replies, timeout=deadline + SPARE - time.monotonic())
    for task in (*replies, *stops):
        task.cancel()
    await asyncio.gather(*replies, *stops, return_exceptions=True)

    tabs = [tab for tab in tabs if tab.is_asked]
    asked += [tab.asked for tab in tabs if tab.asked not in asked]
    found = await take_stock(stage, asked, tabs, prefix, names)
    watcher.cancel()
    claimed = claimed_again(scene, since=calm_at if len(names) > 1 else 0.0)
    problems = [
        *judge(found),
        *late(tabs, found, claimed, deadline, options.bound),
        *purges.too_early(),
        *map(Problem, stage.strange),
    ]
    stage.strange.clear()
    await patiently(purges.take, found, chance)
    # Where a reply has no text, a prompt would have two messages of the user in one.
    temporary = {ask.client_id for ask in asked if ask.is_temporary}
    empty = {run.conversation for run in found.runs if not run.text}
    empty |= {run.conversation for run in found.runs if run.client_id in temporary}
    for person in invited:
        if person.conversation in empty:
            await db.run(person.begin_anew)
    last = max(tabs, key=lambda tab: tab.ended_at)
    return Played(
        number=number,
        name="+".join(names),
        words=f"{' and '.join(words)} at {fault_at:.1f} s",
        outcomes=Counter(run.status for run in found.runs),
        again=sum(run.attempt > 1 for run in found.runs),
        seconds=max(0.0, last.ended_at - calm_at),
        last=last.asked.text,
        delays=found.delays(),
        claimed=claimed,
        refused=sum(len(tab.refusals) for tab in tabs),
        reconnections=sum(tab.connections - 1 for tab in tabs),
        problems=problems,
        tabs=tabs,
        kinds=Counter(kind for tab in tabs for kind in tab.kinds()),
    )


async def strike(scene: Scene, name: str, after: float) -> str:
    await asyncio.sleep(after)
    return await (FAULTS | POOLER_FAULTS)[name](scene)


def claimed_again(scene: Scene, since: float) -> float | None:
    """Seconds until the last run of a killed worker was claimed again or had ended.

    With two faults they count from the end of both: the other may have stopped the recovery.
    """
    return max(
        (
            (orphan.claimed_at or time.monotonic()) - max(since, orphan.killed_at)
            for orphan in scene.orphans.values()
        ),
        default=None,
    )


def late(
    tabs: list[ChaosTab], found: Evidence, claimed: float | None, deadline: float, bound: float
) -> list[Problem]:
    """Everything that came later than promised."""
    problems = [
        Problem(f"ended {tab.ended_at - deadline:.1f} s too late", tab.asked.client_id, tab.run)
        for tab in tabs
        if tab.ended_at > deadline
    ]
    problems += [
        Problem(f"received the end {delay:.1f} s after it", client_id)
        for client_id, delay in found.delays().items()
        if delay > bound
    ]
    if claimed is not None and claimed > bound:
        problems.append(Problem(f"runs of a killed worker were claimed again in {claimed:.1f} s"))
    return problems


async def take_stock(
    stage: Stage, asked: list[Ask], tabs: list[ChaosTab], prefix: str, names: tuple[str, ...]
) -> Evidence:
    """The evidence of the round that has just ended."""
    with suppress(TimeoutError):  # the judge finds active calls
        await asyncio.to_thread(stage.provider.wait, active=0, timeout=20)
    calls = await asyncio.to_thread(lambda: stage.provider.calls)
    found: dict[str, Any] = await patiently(rows.of_round, asked, prefix)
    return Evidence(
        asks=asked,
        seen=[tab.seen() for tab in tabs],
        calls=calls,
        max_attempts=settings.RUN_ATTEMPTS,
        lost_memory=not faults.LOSES_MEMORY.isdisjoint(names),
        broke_replies=not faults.BREAKS_REPLIES.isdisjoint(names),
        lost_answers=not faults.LOSES_ANSWERS.isdisjoint(names),
        **found,
    )
