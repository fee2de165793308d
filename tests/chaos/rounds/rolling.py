"""A deploy under load: every process is replaced, one after the other, and no reply is lost.

Imported when Django is set up.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import time

from chatproject.lib import db
from tests.chaos.rounds import people
from tests.chaos.rounds.asks import Ask
from tests.chaos.rounds.evidence import Evidence, Problem
from tests.chaos.rounds.judge import judge
from tests.chaos.rounds.people import ChaosTab, Person
from tests.chaos.rounds.play import take_stock
from tests.chaos.rounds.stage import WEBS, WORKERS, Stage, supervised

RESTARTING = 1012
PREFIX = "roll-"


async def restart_all(stage: Stage, options: argparse.Namespace) -> bool:
    """Replace workers and web processes under load; return False when a reply was lost."""
    chance = random.Random(options.seed)
    invited = await db.run(people.invite, options.conversations)
    tabs: list[ChaosTab] = []
    finished = asyncio.Event()
    async with supervised(stage):
        asking = [
            asyncio.create_task(_ask_on(stage, person, number, chance, tabs, finished))
            for number, person in enumerate(invited)
        ]
        for name in (*WORKERS, *WEBS):
            await asyncio.sleep(1)
            began = time.monotonic()
            stage.rest(name)
            await stage.signal(name, signal.SIGTERM)
            ended = time.monotonic()
            await stage.start(name)
            took = (
                f"{ended - began:.1f} s, its successor started in {time.monotonic() - ended:.1f} s"
            )
            print(f"{name} ended in {took}", flush=True)
        finished.set()
        await asyncio.gather(*asking)
        found = await take_stock(stage, [tab.asked for tab in tabs], tabs, PREFIX, ())
    problems = [*judge(found), *_lost(found, tabs), *map(Problem, stage.strange)]
    for problem in problems:
        print(f"  {problem.client_id} {problem.run}: {problem.what}")
    print(
        f"{len(found.runs)} replies, {sum(run.status == 'done' for run in found.runs)} done,"
        f" {sum(run.attempt > 1 for run in found.runs)} begun again;"
        f" {sum(tab.connections - 1 for tab in tabs)} reconnections"
    )
    return not problems


async def _ask_on(
    stage: Stage,
    person: Person,
    number: int,
    chance: random.Random,
    tabs: list[ChaosTab],
    finished: asyncio.Event,
) -> None:
    """Send one message after another, each when the reply to the last one has ended."""
    turn = 0
    while not finished.is_set():
        turn += 1
        name = f"{PREFIX}{number}-{turn}"
        ask = Ask(
            client_id=name,
            text=f"[[tokens={chance.randint(40, 120)} rate={chance.randint(20, 40)}]] {name}",
            sent_after=chance.uniform(0, 1),
        )
        tab = ChaosTab(stage, person, ask, random.Random(name))
        tabs.append(tab)
        await tab.ask()


def _lost(found: Evidence, tabs: list[ChaosTab]) -> list[Problem]:
    """Second attempts and close codes other than RESTARTING, which only faults may cause."""
    repeated = [
        Problem(f"made in {run.attempt} attempts", run.client_id, str(run.id))
        for run in found.runs
        if run.attempt != 1
    ]
    dropped = [
        Problem(f"the connection was closed with {code}", tab.asked.client_id, tab.run)
        for tab in tabs
        for code in tab.close_codes
        if code != RESTARTING
    ]
    return repeated + dropped
