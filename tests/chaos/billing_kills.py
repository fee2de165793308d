"""Kills processes, and Postgres, in the middle of money transactions.

    python -m tests.chaos.billing_kills [--rounds 5] [--seed N]

In each round three processes do random money transactions on two accounts until they are killed
with SIGKILL; in every fifth Postgres is shut down immediately as well, and restarts while they go on.
In the end every operation that was begun is repeated with its key. Then check_ledger must find
nothing, each acknowledged operation must have the same effect as before, and the balances must be
the sum of the effects. Prints the numbers and each problem; the exit code is 1 when there is one.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING

from bench.database import own_database

if TYPE_CHECKING:
    from chatproject.local.servers import PostgresServer

WORKERS = 3
ACCOUNTS = 2
CREDITS = 10**15  # enough that nothing is refused: an operation has one effect, now or later
POSTGRES = {"fsync": "off", "full_page_writes": "off", "log_min_messages": "panic"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    with own_database(POSTGRES) as server, tempfile.TemporaryDirectory() as folder:
        accounts = open_accounts()
        began = time.monotonic()
        kills, crashes = torment(server, Path(folder), accounts, options)
        wrong = verify(Path(folder), accounts)
        print(
            f"{options.rounds} rounds in {time.monotonic() - began:.0f} s (seed {options.seed}):"
            f" {kills} processes killed, Postgres shut down {crashes} times"
        )
    for line in wrong:
        print(line)
    sys.exit(1 if wrong else 0)


def open_accounts() -> list[int]:
    from django.contrib.auth import get_user_model
    from django.db import connections

    from billing.ledger import signup
    from chatproject.lib.db import money_transaction
    from tests.support import money

    accounts = []
    for number in range(ACCOUNTS):
        user = get_user_model().objects.create_user(f"{number}@example.org")
        account = money_transaction(signup.open_account, user_id=user.pk)
        money.order(account, CREDITS)
        accounts.append(account.pk)
    connections.close_all()
    return accounts


def torment(
    server: PostgresServer, folder: Path, accounts: list[int], options: argparse.Namespace
) -> tuple[int, int]:
    """Play all rounds; return the numbers of killed processes and of shutdowns of Postgres."""
    chance = random.Random(options.seed)
    kills = crashes = 0
    with subprocess.Popen(
        [sys.executable, "-c", "from tests.chaos import billing_kills; billing_kills.breed()",
         str(folder), *map(str, accounts)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as breeder:  # fmt: skip
        for number in range(options.rounds):
            assert breeder.stdin
            assert breeder.stdout
            pids = []
            for worker in range(WORKERS):
                breeder.stdin.write(f"{number}.{worker}\n")
                breeder.stdin.flush()
                pids.append(int(breeder.stdout.readline()))
            time.sleep(chance.uniform(0.2, 1.0))
            if number % 5 == 4:
                os.kill(server.pid, signal.SIGQUIT)
                while server.is_running:
                    time.sleep(0.01)
                server.start()
                time.sleep(0.5)
                crashes += 1
            for pid in pids:
                time.sleep(chance.uniform(0, 0.05))
                os.kill(pid, signal.SIGKILL)
                kills += 1
        breeder.communicate()
    return kills, crashes


def breed() -> None:
    """Fork a worker for each name on standard input, so that none takes seconds to start."""
    import django

    django.setup()
    logging.disable()  # an unreachable Postgres is expected
    from tests.support import money  # noqa: F401 # once for all workers

    folder, *accounts = sys.argv[1:]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps killed workers
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            name = line.strip()
            with (Path(folder) / name).open("w", buffering=1) as log:
                work(name, [int(account) for account in accounts], log)
        print(pid, flush=True)


def work(name: str, accounts: list[int], log: IO[str]) -> None:
    """Operate without end; log a line before each operation, and one with its effect."""
    from django.db import connections

    from chatproject.lib.db import UNREACHABLE

    number = 0
    while True:
        log.write(f"begin {number}\n")
        while True:
            try:
                effect = operate(name, number, accounts)
                break
            except UNREACHABLE:
                connections.close_all()
                time.sleep(0.05)
        log.write(f"done {number} {effect}\n")
        number += 1


def operate(name: str, number: int, accounts: list[int]) -> int:
    """Do an operation, the same for the same name and number; return the change of the balance."""
    from django.utils import timezone

    from billing.ledger import postings
    from billing.models import Account, Order
    from chatproject.lib.db import money_transaction
    from tests.support import money

    key = f"{name}:{number}"
    chance = random.Random(key)
    account = Account(pk=chance.choice(accounts))
    amount = chance.randint(1, 1000)
    match chance.randrange(6):
        case 0:
            return money.grant(account, amount, key=key).entry.amount
        case 1:
            posted = money_transaction(
                postings.adjust, account_id=account.pk, amount=-amount, key=key,
                actor_id=Account.objects.get(pk=account.pk).user_id, note="a correction",
            )  # fmt: skip
            return posted.entry.amount
        case 2:
            order = Order.objects.get(account=account)
            return -money.refund(order, amount, key=key).credits
        case _:
            later = timezone.now() + timedelta(hours=1)
            held = money.hold(account, amount, key=key, expires_at=later)
            return -money.settle(held, chance.choice([0, amount // 2, amount, amount * 2])).charged


def verify(folder: Path, accounts: list[int]) -> list[str]:
    """Repeat every operation; return what is wrong."""
    from django.db.models import Sum

    from billing.ledger import audit
    from billing.models import Account, Hold

    # The ledger as the kills left it, holds in flight included.
    wrong = [f"after the kills: {one.where}: {one.message}" for one in audit.check()]
    in_flight = repeated = changes = 0
    for log in sorted(folder.iterdir()):
        begun = 0
        done: dict[int, int] = {}
        for line in log.read_text().splitlines():
            match line.split():
                case ["begin", name]:
                    begun = int(name) + 1
                case ["done", name, effect]:
                    done[int(name)] = int(effect)
        in_flight += begun - len(done)
        for number in range(begun):
            change = operate(log.name, number, accounts)
            repeated += 1
            changes += change
            if done.get(number, change) != change:
                wrong.append(f"{log.name}:{number} had the effect {done[number]}, now {change}")
    wrong += [f"after the repeats: {one.where}: {one.message}" for one in audit.check()]
    balances = Account.objects.aggregate(sum=Sum("balance"))["sum"] - CREDITS * ACCOUNTS
    if balances != changes:
        wrong.append(f"the balances changed by {balances}, the effects add up to {changes}")
    if Hold.objects.filter(status=Hold.Status.ACTIVE).exists():
        wrong.append("a hold is still active")
    if not in_flight:
        wrong.append("no operation was in flight when its process was killed: this proved nothing")
    print(f"{repeated} operations, {in_flight} of them cut off; {len(wrong)} things wrong")
    return wrong


if __name__ == "__main__":
    main()
