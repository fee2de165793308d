"""Prints a line for each round, the details of problems, and a table at the end."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import groupby
from statistics import median
from typing import Any

from tests.chaos.rounds.evidence import Problem
from tests.chaos.rounds.people import ChaosTab
from tests.chaos.rounds.stage import Stage

SHOWN = 10  # problems of a round that are printed; all are in its file

ENDS = ("done", "stopped", "failed")


@dataclass
class Played:
    """A round that has ended.

    `seconds` passed from the fault's end until all runs had ended, the run of the message `last` as the
    last one; `claimed` passed until the last run of a killed worker was claimed again or had ended.
    """

    number: int
    name: str
    words: str
    outcomes: Counter[str]
    again: int
    seconds: float
    last: str
    delays: dict[str, float]
    claimed: float | None
    refused: int
    reconnections: int
    problems: list[Problem] = field(default_factory=list)
    tabs: list[ChaosTab] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        ends = ", ".join(f"{self.outcomes[end]} {end}" for end in ENDS)
        claimed = f", claimed again in {self.claimed:.1f} s" if self.claimed is not None else ""
        late, delay = max(self.delays.items(), key=lambda each: each[1], default=("", 0.0))
        problems = f"; {len(self.problems)} PROBLEMS" if self.problems else ""
        return (
            f"round {self.number:3}: {self.words}: {ends}; {self.again} with attempts > 1;"
            f" all ended after {self.seconds:.1f} s (last {self.last}, received at most {delay:.1f} s"
            f" later: {late}){claimed}; {self.refused} refused,"
            f" {self.reconnections} reconnections{problems}"
        )


def explain(stage: Stage, one: Played) -> None:
    """Print the problems, and write the clients' events beside the logs."""
    for problem in one.problems[:SHOWN]:
        print(f"  {problem.client_id} {problem.run}: {problem.what}")
        for tab in one.tabs:
            if problem.client_id and tab.asked.client_id == problem.client_id:
                print(f"    asked {tab.asked.text}, saw {shortened(tab.events)}")
    if len(one.problems) > SHOWN:
        print(f"  … and {len(one.problems) - SHOWN} more")
    kept = stage.folder / f"round-{one.number}.json"
    found = {
        "problems": [[each.client_id, each.run, each.what] for each in one.problems],
        "tabs": [[tab.asked.client_id, tab.asked.text, tab.events] for tab in one.tabs],
    }
    kept.write_text(json.dumps(found, ensure_ascii=False))
    print(f"  All events of the clients are in {kept}", flush=True)


def shortened(events: list[dict[str, Any]]) -> str:
    """The events of a client in short: `text.delta 2-17 of 1`."""
    parts = []
    for (kind, attempt), group in groupby(events, lambda e: (e["type"], e.get("attempt"))):
        seqs = [event["seq"] for event in group if "seq" in event]
        numbers = f" {seqs[0]}-{seqs[-1]} of {attempt}" if seqs else ""
        parts.append(f"{kind}{numbers}")
    return ", ".join(parts)


def summarise(played: list[Played], seconds: float) -> None:
    """A line for each fault, and one for all."""
    by_fault = defaultdict(list)
    for one in played:
        by_fault[one.name].append(one)
    width = max(map(len, [*by_fault, "all"]), default=3)
    print(
        f"\n{'fault':{width}}  rounds  runs  done  stopped  failed  again  refused"
        "  ended after (median, max)  claimed again in (max)"
    )
    for name, ones in [*sorted(by_fault.items()), ("all", played)]:
        outcomes = sum((one.outcomes for one in ones), Counter[str]())
        after = [one.seconds for one in ones] or [0.0]
        claimed = [one.claimed for one in ones if one.claimed is not None]
        print(
            f"{name:{width}}  {len(ones):6}  {outcomes.total():4}  {outcomes['done']:4}"
            f"  {outcomes['stopped']:7}  {outcomes['failed']:6}  {sum(one.again for one in ones):5}"
            f"  {sum(one.refused for one in ones):7}"
            f"  {median(after):18.1f} s, {max(after):4.1f} s"
            f"  {f'{max(claimed):19.1f} s' if claimed else ''}"
        )
    kinds = sum((one.kinds for one in played), Counter[str]())
    print("of these", ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    wrong = sum(bool(one.problems) for one in played)
    print(f"{len(played)} rounds in {seconds:.0f} s, {wrong} of them with problems", flush=True)
