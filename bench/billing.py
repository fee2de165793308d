"""The ledger's throughput and consistency under load, and how fast pages read a long ledger.

    python -m bench.billing [--seconds 5] [--operations 10000] [--entries 1000000] [--unjudged]

Starts its own Postgres with default settings (each COMMIT waits for the disk). Prints figures; the
exit code is 1 when check_ledger finds a problem, when a result is wrong, or when a page's p95 is
above 50 ms.
"""

# Modules that need Django are imported inside functions: `own_database` sets it up first.

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from bench.database import own_database
from tests.support.threads import race

PAGE_LIMIT = 0.050  # seconds, the p95 of a page
HOT = 16  # threads


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each throughput measurement")
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument(
        "--unjudged", action="store_true", help="judge the ledger alone, not the times"
    )
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    with own_database({"shared_buffers": "256MB", "max_connections": "100"}):
        with unpublished():
            throughput(options.seconds)
        published = "hold + settle, one account, balances published"
        report(published, hold_and_settle, open_accounts(1), 1, options.seconds)
        failed = at_random(options.operations)
        failed += long_ledger(options.entries, judge=not options.unjudged)
    sys.exit(1 if failed else 0)


# --- Throughput ---------------------------------------------------------------------------------


@contextmanager
def unpublished() -> Iterator[None]:
    """Measure the ledger alone: publishing a changed balance costs a query and a message each."""
    from billing.signals import balance_changed

    receivers = balance_changed.receivers
    balance_changed.receivers = []
    balance_changed.sender_receivers_cache.clear()
    yield
    balance_changed.receivers = receivers
    balance_changed.sender_receivers_cache.clear()


def throughput(seconds: float) -> None:
    report("hold, one account", hold, open_accounts(1), 1, seconds)
    report("hold, one account", hold, open_accounts(1), HOT, seconds)
    report("hold + settle, one account", hold_and_settle, open_accounts(1), 1, seconds)
    report("hold + settle, one account", hold_and_settle, open_accounts(1), HOT, seconds)
    report("hold, 100 accounts", hold, open_accounts(100), HOT, seconds)
    report("hold + settle, 100 accounts", hold_and_settle, open_accounts(100), HOT, seconds)


def open_accounts(count: int) -> list[Any]:
    from tests.support import money

    return [money.open_account(10**12) for _ in range(count)]


def hold(account: Any) -> Any:
    from tests.support import money

    return money.hold(account, 1000)


def hold_and_settle(account: Any) -> None:
    from billing.ledger import postings
    from chatproject.lib.db import money_transaction

    done = money_transaction(postings.settle, hold_id=hold(account).pk, cost=700)
    if (done.charged, done.is_new) != (700, True):
        sys.exit(f"a hold was settled wrongly: {done}")


def report(
    name: str, fn: Callable[[Any], Any], accounts: list[Any], threads: int, seconds: float
) -> None:
    times: list[float] = []
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        while time.monotonic() < end:
            began = time.perf_counter()
            fn(accounts[number % len(accounts)])
            times.append(time.perf_counter() - began)
            number += threads

    began = time.monotonic()
    in_threads(work, threads)
    rate = len(times) / (time.monotonic() - began)
    print(
        f"{name}, {threads} threads: {rate:.0f}/s,"
        f" p50 {percentile(times, 50):.1f} ms, p99 {percentile(times, 99):.1f} ms",
        flush=True,
    )


def in_threads(work: Callable[[int], None], threads: int) -> None:
    """Call `work` with each thread's number, in threads that begin together; raises an error of one."""
    for error in race([partial(work, number) for number in range(threads)], threads):
        if error is not None:
            raise error


def percentile(times: list[float], part: int) -> float:
    """Return a percentile in milliseconds of times in seconds."""
    return 1000 * sorted(times)[min(len(times) - 1, len(times) * part // 100)]


# --- Random concurrent operations ---------------------------------------------------------------


def at_random(operations: int) -> int:
    """Run random operations on a few accounts in HOT threads; returns the problems that are found."""
    from chatproject.lib import metrics

    accounts = open_accounts(5)
    chance = random.Random(1)
    began = time.monotonic()
    seeds = [chance.random() for _ in range(operations)]

    def work(number: int) -> None:
        for seed in seeds[number::HOT]:
            operate(random.Random(seed), accounts)

    in_threads(work, HOT)
    took = time.monotonic() - began
    retries = sum(
        sample.value
        for metric in metrics.MONEY_RETRIES.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )
    print(
        f"{operations} random operations, {HOT} threads, 5 accounts: {operations / took:.0f}/s,"
        f" {retries:.0f} retried after a lock error"
    )
    return mismatches()


def operate(chance: random.Random, accounts: list[Any]) -> None:
    from django.utils import timezone

    from billing.ledger import postings
    from tests.support import money

    account = chance.choice(accounts)
    amount = chance.randint(1, 100_000)
    try:
        match chance.randrange(6):
            case 0:
                soon = timezone.now() + timedelta(seconds=chance.uniform(0, 2))
                money.grant(account, amount, expires_at=chance.choice([None, soon]))
            case 1:
                money.adjust(account, -amount)
            case 2:
                money.expire(account)
            case _:
                held = money.hold(account, amount)
                for _ in range(chance.randint(1, 2)):  # some twice
                    money.settle(held, chance.choice([0, amount // 2, amount, 2 * amount]))
    except postings.InsufficientCredits:
        pass


def mismatches() -> int:
    from billing.ledger import audit

    began = time.monotonic()
    # Throughput is measured without usage records.
    found = [problem for problem in audit.check() if problem.code != "hold_without_usage"]
    for problem in found:
        print(f"{problem.where}: {problem.message}")
    print(f"check_ledger: {len(found)} mismatches, {time.monotonic() - began:.1f} s", flush=True)
    return len(found)


# --- A long ledger ------------------------------------------------------------------------------


def long_ledger(entries: int, *, judge: bool) -> int:
    from django.core.management import call_command

    from billing.ledger import audit
    from billing.models import Account

    began = time.monotonic()
    call_command("seed_ledger", "--entries", str(entries), "--accounts", "100", "--yes")
    print(f"seeded {entries} entries in {time.monotonic() - began:.0f} s")
    failed = mismatches()
    began = time.monotonic()
    audit.check(account_id=Account.objects.latest("pk").pk)
    print(f"check_ledger --account: {time.monotonic() - began:.1f} s")
    slow = pages(entries // 100)
    return failed + (slow if judge else 0)


def pages(each: int) -> int:
    """Print the p95 of the pages over many users and positions; returns how many are too slow."""
    from django.test import Client

    from billing.models import Account

    accounts = list(Account.objects.order_by("-pk").select_related("user")[:100])
    addresses = [
        ("/billing/history/", "the first page"),
        ("/billing/history/?before={before}", "any page"),
        ("/billing/history/?kind=usage", "of a kind"),
        ("/billing/history/?model=seeded-1", "of a model"),
        ("/billing/usage/", "this month"),
    ]
    chance = random.Random(1)
    slow = 0
    client = Client()
    for address, what in addresses:
        times = []
        for account in accounts:
            client.force_login(account.user)
            url = address.format(before=chance.randint(2, each))
            began = time.perf_counter()
            response = client.get(url)
            times.append(time.perf_counter() - began)
            if response.status_code != 200 or b"seeded-" not in response.content:
                sys.exit(f"{url} returned {response.status_code}, or not the entries expected")
        p95 = percentile(times, 95)
        slow += p95 > 1000 * PAGE_LIMIT
        print(f"{address} ({what}): p50 {percentile(times, 50):.0f} ms, p95 {p95:.0f} ms")
    return slow


if __name__ == "__main__":
    main()
