"""Faults in the middle of a round. Each returns when it has ended.

The time limits of `judge` count from then.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from tests.chaos.rounds.stage import WEBS, WORKERS, Stage, patiently
from tests.support.reconnecting_client import LiveTab

if TYPE_CHECKING:
    from uuid import UUID


@dataclass
class Scene:
    """The targets of faults, and the runs that they orphaned."""

    stage: Stage
    chance: random.Random
    tabs: Sequence[LiveTab]
    orphans: dict[UUID, Orphan] = field(default_factory=dict)
    # Of faults that stop or freeze the server, of which two may be drawn for one round.
    valkey_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    postgres_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _hit: set[str] = field(default_factory=set)

    def pick(self, names: Sequence[str]) -> str:
        """One of these processes, preferably one without a fault so far."""
        name = self.chance.choice([name for name in names if name not in self._hit] or names)
        self._hit.add(name)
        return name


@dataclass
class Orphan:
    """A run whose worker was killed: its attempt then, when, and when it was claimed again."""

    attempt: int
    killed_at: float
    claimed_at: float | None = None


ACCOUNTS_LOCKED = 1.2  # seconds
# Faults that must strike while the messages of a round are being sent.
AMID_SENDS = frozenset({"kill-valkey-amid-sends"})

Fault = Callable[[Scene], Awaitable[str]]  # returns a description


async def kill_worker(scene: Scene) -> str:
    name = scene.pick(WORKERS)
    worker_id, killed_at = scene.stage.worker_id(name), time.monotonic()
    await scene.stage.signal(name, signal.SIGKILL)
    for run, attempt in (await scene.stage.runs_of(worker_id)).items():
        scene.orphans[run] = Orphan(attempt, killed_at)
    return f"SIGKILL {name} ({len(scene.orphans)} runs)"


async def freeze_worker(scene: Scene) -> str:
    name, seconds = scene.pick(WORKERS), scene.chance.uniform(1, 15)
    await scene.stage.signal(name, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    await scene.stage.signal(name, signal.SIGCONT)
    return f"SIGSTOP {name} for {seconds:.1f} s"


def ending(names: Sequence[str], number: signal.Signals) -> Fault:
    """The fault that ends one of these processes with a signal."""

    async def fault(scene: Scene) -> str:
        name = scene.pick(names)
        await scene.stage.signal(name, number)
        return f"{number.name} {name}"

    return fault


async def restart_valkey(scene: Scene) -> str:
    seconds = scene.chance.uniform(0, 5)
    async with scene.valkey_turn:
        await asyncio.to_thread(scene.stage.valkey.kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(scene.stage.valkey.start)
    return f"Valkey unreachable for {seconds:.1f} s"


async def kill_valkey_amid_sends(scene: Scene) -> str:
    """Valkey dies while messages wait for the locks of their accounts, just before they are stored."""
    from django.db import transaction

    from billing.models import Account

    is_locked, may_go = threading.Event(), threading.Event()

    def lock() -> None:
        with transaction.atomic():
            list(Account.objects.select_for_update().order_by("pk").values_list("pk"))
            is_locked.set()
            may_go.wait(ACCOUNTS_LOCKED)

    seconds = scene.chance.uniform(0, 5)
    async with scene.valkey_turn:
        locking = asyncio.create_task(patiently(lock))
        while not (is_locked.is_set() or locking.done()):
            await asyncio.sleep(0.02)
        await asyncio.sleep(ACCOUNTS_LOCKED * scene.chance.uniform(0.2, 0.8))
        await asyncio.to_thread(scene.stage.valkey.kill)
        may_go.set()
        await asyncio.wait([locking])  # another fault may have broken its connection
        await asyncio.sleep(seconds)
        await asyncio.to_thread(scene.stage.valkey.start)
    return f"Valkey dies amid sends, unreachable for {seconds:.1f} s"


async def flush_valkey(scene: Scene) -> str:
    def flush() -> str:
        with redis.Redis.from_url(scene.stage.valkey.url) as client:
            try:
                client.flushall()
            except redis.RedisError:
                return "nothing to flush"  # another fault has stopped it
        return "FLUSHALL"

    return await asyncio.to_thread(flush)


async def restart_postgres(scene: Scene) -> str:
    server, seconds = scene.stage.postgres, scene.chance.uniform(0, 5)
    at_once = scene.chance.random() < 0.5
    async with scene.postgres_turn:
        if at_once:
            os.kill(server.pid, signal.SIGQUIT)  # Postgres' immediate shutdown
            while server.is_running:
                await asyncio.sleep(0.02)
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(server.start)
    return f"Postgres {'crashed' if at_once else 'shut down'}, unreachable for {seconds:.1f} s"


async def restart_pooler(scene: Scene) -> str:
    server, seconds = scene.stage.pooler, scene.chance.uniform(0, 5)
    assert server is not None
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.start)
    return f"pooler unreachable for {seconds:.1f} s"


async def silence_pooler(scene: Scene) -> str:
    seconds = scene.chance.uniform(2, 12)
    assert scene.stage.pooler is not None
    pid = scene.stage.pooler.pid
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    os.kill(pid, signal.SIGCONT)
    return f"pooler silent for {seconds:.1f} s"


async def silence_valkey(scene: Scene) -> str:
    """As when the network loses everything: connections stay open, and nothing answers."""
    seconds = scene.chance.uniform(2, 12)
    async with scene.valkey_turn:
        pid = scene.stage.valkey.pid
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
    return f"Valkey silent for {seconds:.1f} s"


async def silence_postgres(scene: Scene) -> str:
    seconds = scene.chance.uniform(2, 12)
    async with scene.postgres_turn:
        pid = scene.stage.postgres.pid
        # The server first, so that it starts no further process for a connection.
        os.kill(pid, signal.SIGSTOP)
        stopped = [pid, *children(pid)]
        for each in stopped[1:]:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        for each in stopped:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)
    return f"Postgres silent for {seconds:.1f} s"


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def lock_accounts(scene: Scene) -> str:
    """Another transaction has the rows of all accounts: no message is paid, no reply settled."""
    seconds = scene.chance.uniform(2, 12)

    def lock() -> int:
        from django.db import connections, transaction

        from billing.models import Account

        try:
            with transaction.atomic():
                accounts = len(Account.objects.order_by("pk").select_for_update())
                time.sleep(seconds)
            return accounts
        finally:
            connections.close_all()

    accounts = await asyncio.to_thread(lock)
    return f"{accounts} accounts locked for {seconds:.1f} s"


async def cut_provider(scene: Scene) -> str:
    await asyncio.to_thread(scene.stage.provider.cut)
    return "provider breaks all connections"


async def restart_provider(scene: Scene) -> str:
    seconds = scene.chance.uniform(0, 2)
    await asyncio.to_thread(scene.stage.provider.away, seconds)
    return f"provider unreachable for {seconds:.1f} s"


async def drop_clients(scene: Scene) -> str:
    for tab in scene.tabs:
        tab.drop()
    return "all clients lose their connections"


FAULTS: dict[str, Fault] = {
    "kill-worker": kill_worker,
    "stop-worker": freeze_worker,
    "end-worker": ending(WORKERS, signal.SIGTERM),
    "kill-web": ending(WEBS, signal.SIGKILL),
    "end-web": ending(WEBS, signal.SIGTERM),
    "restart-valkey": restart_valkey,
    "kill-valkey-amid-sends": kill_valkey_amid_sends,
    "flushall": flush_valkey,
    "restart-postgres": restart_postgres,
    "silent-valkey": silence_valkey,
    "silent-postgres": silence_postgres,
    "locked-accounts": lock_accounts,
    "cut-provider": cut_provider,
    "restart-provider": restart_provider,
    "drop-clients": drop_clients,
    "kill-clock": ending(["clock"], signal.SIGKILL),
}

# With `--pooler` only.
POOLER_FAULTS: dict[str, Fault] = {
    "restart-pooler": restart_pooler,
    "silent-pooler": silence_pooler,
}

# Excuses of faults, see judge.py.
LOSES_MEMORY = frozenset({"restart-valkey", "kill-valkey-amid-sends", "flushall"})
BREAKS_REPLIES = frozenset({"cut-provider", "restart-provider"})
LOSES_ANSWERS = frozenset(
    {"restart-postgres", "silent-postgres", *POOLER_FAULTS}
)  # whether the last COMMIT was made is unknown


def draw(chance: random.Random, rounds: int, *, pooled: bool = False) -> list[tuple[str, ...]]:
    """The faults of so many rounds: all in turn, and two at once in every fourth round."""
    names = [*FAULTS, *(POOLER_FAULTS if pooled else ())]
    drawn: list[tuple[str, ...]] = []
    deck: list[str] = []
    for number in range(rounds):
        if not deck:
            deck = chance.sample(names, len(names))
        if number % 4 == 3:
            drawn.append(tuple(chance.sample(names, 2)))
        else:
            drawn.append((deck.pop(),))
    return drawn


async def watch_orphans(scene: Scene) -> None:
    """Note when the runs of killed workers are claimed again, until cancelled."""
    from chat.models import Run

    def claimed(orphans: dict[UUID, int]) -> list[UUID]:
        rows = Run.objects.filter(pk__in=orphans).values_list("pk", "attempt", "status")
        return [
            pk for pk, attempt, status in rows if attempt > orphans[pk] or status not in Run.ACTIVE
        ]

    while True:
        await asyncio.sleep(0.2)
        waiting = {
            run: orphan.attempt
            for run, orphan in scene.orphans.items()
            if orphan.claimed_at is None
        }
        for run in await patiently(claimed, waiting) if waiting else ():
            scene.orphans[run].claimed_at = time.monotonic()
