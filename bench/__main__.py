"""Measures Parley, and its peers in the same run: `make bench`.

    python -m bench                                       everything, three rounds: half an hour
    python -m bench stream --users 200 --seconds 15 --system parley
    python -m bench search                                the search, alone: bench/search.py
    python -m bench documents                             reading a long chat: bench/documents.py
    python -m bench retrieval                             questions over documents: bench/retrieval.py
    python -m bench tables                                tables of documents, alone: bench/tables.py
    python -m bench page                                  the page of a long chat, alone: bench/page.py
    python -m bench stream ttft --rounds 3 --baseline bench/results/summary.json

A run without targets writes bench/results/summary.json and the tables of docs/performance.md; a run of
`soak` alone writes bench/results/soak.json and the same page; other runs write --output only. All
processes are real ones, started and ended here. docs/performance.md defines the figures.

The exit code is 1 when a reply or another response was not exactly as expected, or when --baseline
finds a figure worse by more than the noise between the rounds.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import uvloop

from bench import (
    documents,
    load,
    page,
    plan,
    processes,
    report,
    results,
    retrieval,
    search,
    systems,
    tables,
)
from bench.results import Results, Summary
from bench.systems import NotInstalled, WrongReply
from bench.targets.base import Place, Target
from chatproject.local.servers import ServerError
from tests.support.fake_llm import FakeLLM

SHOWN_FAILURES = 20
OPEN_FILES = 8192  # a thousand sockets are as many files here and in a web process


def main() -> None:
    if sys.argv[1:2] == ["documents"]:
        documents.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["retrieval"]:
        retrieval.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["tables"]:
        tables.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["search"]:
        search.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["page"]:
        page.main(sys.argv[2:])
        return
    options = parse()
    # After SIGTERM, too, it ends the processes that it started and removes its folders.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    baseline = results.load(options.baseline) if options.baseline else None
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))
    found = report.summary(measure(options))
    for row in found.measurements:
        print("\n".join(report.lines(row)))
    save(found, options)
    sys.exit(1 if judge(found, baseline) else 0)


def parse() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m bench", description=__doc__, formatter_class=raw)
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(plan.TARGETS))
    parser.add_argument("--users", type=numbers, default=[], help="10 or 10,200, not its own")
    parser.add_argument("--seconds", type=float, help="of each window, not its own")
    parser.add_argument("--rounds", type=int, help="3; 1 when targets are named")
    parser.add_argument("--system", default="", help=", ".join(systems.SYSTEMS))
    parser.add_argument("--output", type=Path, help="a file for the results")
    parser.add_argument("--baseline", type=Path, help="results to compare with")
    options = parser.parse_args()
    options.systems = options.system.split(",") if options.system else []
    for names, known in ((options.targets, plan.TARGETS), (options.systems, systems.SYSTEMS)):
        for name in {*names} - {*known}:
            parser.error(f"there is no {name}: choose from {', '.join(known)}")
    is_changed = bool(options.users or options.seconds or options.systems)
    is_partial = options.is_partial = bool(options.targets) or is_changed
    options.is_soak = options.targets == ["soak"] and not is_changed
    options.rounds = options.rounds or (1 if is_partial and not options.baseline else 3)
    return options


# --- Measuring --------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> Results:
    """Measure all rounds; failures are part of the results."""
    began = time.monotonic()
    found = Results(machine=machine(), rounds=options.rounds)
    for number in range(options.rounds):
        for step in plan.steps(options.targets, options.systems, options.users):
            if step.system in found.absent:
                continue
            print(f"round {number + 1}: {step.system} …", flush=True)
            try:
                measure_step(step, found, options.seconds)
            except NotInstalled as why:
                found.absent[step.system] = str(why)
                print(f"  is left out: {why}", flush=True)
    found.minutes = round((time.monotonic() - began) / 60, 1)
    return found


def machine() -> dict[str, str]:
    """The machine, its versions and its load, in words."""
    return {
        "cores": str(os.cpu_count()),
        "Python": platform.python_version(),
        "Linux": platform.release().partition("-")[0],
        "load before": f"{os.getloadavg()[0]:.1f}",
        "on": time.strftime("%Y-%m-%d"),
    }


def measure_step(step: plan.Step, found: Results, seconds: float | None) -> None:
    """Start a system, measure on it, and end it. Raises NotInstalled."""
    setup = step.measurements[0][0].setup
    folder = tempfile.TemporaryDirectory(prefix="parley-bench-", ignore_cleanup_errors=True)
    with FakeLLM() as provider, folder as path:
        system = systems.find(step.system)(
            provider_url=provider.url, folder=Path(path), users=step.users, **setup
        )
        try:
            system.start()
            for target, users in step.measurements:
                place = Place(system, provider, users, seconds or target.seconds)
                measure_one(target, place, found)
        except (RuntimeError, ServerError) as error:
            # The other steps are measured nevertheless; the exit code shows the failure.
            first, users = step.measurements[0]
            found.get(first.name, step.system, users).failures.append(str(error))
        finally:
            system.stop()


def measure_one(target: Target, place: Place, found: Results) -> None:
    """Measure one target into the results, with its failures."""
    measurement = found.get(target.name, place.system.name, place.users)
    try:
        one = uvloop.run(warm_and_measure(target, place))
    except (ConnectionError, TimeoutError, WrongReply, RuntimeError) as error:
        measurement.failures.append(f"{type(error).__name__}: {error}")
        print(f"  {measurement.name}: FAILED: {error}", flush=True)
        return
    roles = place.system.roles()
    ended = [role for role in roles if role not in processes.alive(roles)]
    one.failures += [f"the process of {role} has ended" for role in ended]
    measurement.rounds.append(one.figures)
    measurement.clean.append(not one.failures)
    measurement.failures += one.failures
    print(f"  {measurement.name}: {report.headline(one.figures)}", flush=True)
    if one.failures:
        print(f"    FAILED: {one.failures[0]} (one of {len(one.failures)})", flush=True)


async def warm_and_measure(target: Target, place: Place) -> load.Round:
    await load.warm_up(place.system, place.users)
    # Garbage collection in the clients would delay their clocks, not the measured server.
    gc.collect()
    gc.disable()
    try:
        return await target.measure(place)
    finally:
        gc.enable()


# --- Judging ----------------------------------------------------------------------------------


def save(found: Summary, options: argparse.Namespace) -> None:
    if options.output:
        results.save(found, options.output)
    elif options.is_soak or not options.is_partial:
        results.save(found, report.SOAK if options.is_soak else report.SUMMARY)
        report.write()
    for name, value in found.figures.items():
        print(f"{name:36}{value:12.3f}")
    print(f"{found.minutes} minutes, {found.rounds} rounds")


def judge(found: Summary, baseline: Summary | None) -> bool:
    """Print each failure and each regression; return whether there is any."""
    failures = [*found.failures]
    if not found.measurements:
        failures.append("nothing was measured")
    if baseline is not None:
        try:
            worse = results.regressions(baseline, found)
            failures += [f"worse than before: {line}" for line in worse]
        except ValueError as error:
            failures.append(f"the baseline cannot be used: {error}")
    for failure, times in Counter(failures).most_common(SHOWN_FAILURES):
        print(f"FAILED: {failure}" + (f" ({times} times)" if times > 1 else ""))
    if len(set(failures)) > SHOWN_FAILURES:
        print(f"… and {len(set(failures)) - SHOWN_FAILURES} more")
    return bool(failures)


if __name__ == "__main__":
    main()
