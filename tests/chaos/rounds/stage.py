"""The processes of the rounds: started once, and restarted here when they die."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from bench.database import ENVIRONMENT
from chatproject.local.servers import PostgresServer, ValkeyServer
from tests.support import installed_servers
from tests.support.fake_llm import FakeLLM
from tests.support.pgbouncer import PgBouncer
from tests.support.programs import is_open

if TYPE_CHECKING:
    from uuid import UUID

    from tests.support.stack import Stack

POSTGRES = {
    "max_connections": "300",
    "shared_buffers": "64MB",
    "fsync": "off",  # Postgres is killed here, not the machine
    "full_page_writes": "off",
}
POOLER_SESSIONS = 12  # for five processes that have up to 16 connections each
WEBS = ("web", "web-2")
WORKERS = ("worker", "worker-2")
PROCESSES = (*WEBS, *WORKERS, "clock")

SUPERVISOR_PAUSE = 1.0  # seconds until a dead process is restarted
PATIENCE = 60.0  # seconds: only so that a hang fails
END_PATIENCE = 40.0  # seconds until a signalled process must have ended: longer than any drain

ENDING = {signal.SIGKILL, signal.SIGTERM}

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Stage:
    """Two web processes, two workers and a clock with their own Postgres, Valkey and provider.

    With a pooler, all processes reach Postgres through it; the judge reads from Postgres itself.
    `strange` has processes that ended unexpectedly.
    """

    folder: Path
    postgres: PostgresServer
    valkey: ValkeyServer
    provider: FakeLLM
    stack: Stack
    pooler: PgBouncer | None = None
    strange: list[str] = field(default_factory=list)
    _expected: set[str] = field(default_factory=set)
    _resting: set[str] = field(default_factory=set)

    async def start(self, *names: str) -> None:
        """Start processes and wait until they are ready."""
        for name in names:
            self.launch(name)
        await self.ready(*names)

    def launch(self, name: str) -> None:
        self._expected.discard(name)
        self._resting.discard(name)
        self.stack.launch(name)

    async def ready(self, *names: str) -> None:
        """Wait until processes accept work."""
        async with asyncio.timeout(PATIENCE):
            for name in names:
                while not await asyncio.to_thread(self._is_ready, name):
                    await asyncio.sleep(0.1)

    def _is_ready(self, name: str) -> bool:
        if self.stack.ended(name) is not None:
            return False
        if name in WEBS:
            return is_open(int(self.stack.address(name).rpartition(":")[2]))
        if name in WORKERS:
            return str(self.stack.pid(name)) in self._workers_pids()
        return self._works(name)

    def _works(self, name: str) -> bool:
        """Whether a clock is the one that works."""
        from django.db import connection

        from chatproject.lib import db
        from chatproject.lib.leadership.lease import leader

        try:
            found = leader("clock")
        except db.UNREACHABLE:
            return False
        finally:
            connection.close()
        return bool(found and found.is_alive and f":{self.stack.pid(name)}:" in found.name)

    def _workers_pids(self) -> set[str]:
        """Process ids of the registered workers of RQ."""
        import redis

        with suppress(redis.RedisError), redis.Redis.from_url(self.valkey.url) as client:
            return {
                (client.hget(key, "pid") or b"").decode() for key in client.smembers("rq:workers")
            }
        return set()

    async def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal; return, when it ends the process, after its end."""
        if number in ENDING:
            self._expected.add(name)
        os.kill(self.stack.pid(name), number)
        if number in ENDING:
            try:
                async with asyncio.timeout(END_PATIENCE):
                    while self.stack.ended(name) is None:
                        await asyncio.sleep(0.02)
            except TimeoutError:
                self.strange.append(f"{name} did not end after {number.name}")
                os.kill(self.stack.pid(name), signal.SIGKILL)

    def rest(self, name: str) -> None:
        """Do not restart a process, until `launch`."""
        self._resting.add(name)

    async def supervise(self) -> None:
        """Restart processes a second after they died, until cancelled."""
        while True:
            await asyncio.sleep(0.1)
            for name in PROCESSES:
                code = self.stack.ended(name)
                if code is None or name in self._resting:
                    continue
                if name not in self._expected:
                    self.strange.append(f"{name} ended unexpectedly, with code {code}")
                self._resting.add(name)
                asyncio.get_running_loop().call_later(SUPERVISOR_PAUSE, self.launch, name)

    def errors(self) -> list[str]:
        """Log lines of errors: worth reading, though they break no promise."""
        return [
            f"{name}: {line}"
            for name in PROCESSES
            for line in self.stack.log(name).splitlines()
            if " ERROR " in line or " CRITICAL " in line
        ]

    def worker_id(self, name: str) -> str:
        """The name of a worker in the rows of runs (chat.generation.generate.WORKER)."""
        return f"{socket.gethostname()}:{self.stack.pid(name)}"

    async def runs_of(self, worker_id: str) -> dict[UUID, int]:
        """The running runs of a worker, with their attempts."""
        from chat.models import Run

        def read() -> dict[UUID, int]:
            rows = Run.objects.filter(status=Run.Status.RUNNING, worker=worker_id)
            return dict(rows.values_list("pk", "attempt"))

        return await patiently(read)


async def patiently(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Query the database, again and again while it is unreachable."""
    from chatproject.lib import db

    give_up_at = time.monotonic() + PATIENCE
    while True:
        try:
            return await db.run(fn, *args, **kwargs)
        except db.UNREACHABLE:
            if time.monotonic() > give_up_at:
                raise
            await asyncio.sleep(0.2)


@contextmanager
def servers(environment: Mapping[str, str], *, pooled: bool = False) -> Iterator[Stage]:
    """Postgres, perhaps a pooler, Valkey and a provider, and Django in this process on an empty, migrated database.

    Once per process, since Django is set up only once. The folder with the logs is deleted at the
    end; after a failure it stays, and its path is printed.
    """
    installed_servers.use()
    folder = Path(tempfile.mkdtemp(prefix="parley-chaos-"))
    folder.chmod(0o711)  # Postgres runs as another user when we are root
    postgres = PostgresServer(
        folder / "postgres", settings=POSTGRES, log_path=folder / "postgres.log"
    )
    valkey = ValkeyServer(folder / "valkey", log_path=folder / "valkey.log")
    provider = FakeLLM()
    pooler: PgBouncer | None = None
    try:
        postgres.start()
        if pooled:
            pooler = PgBouncer(folder, postgres.url, sessions=POOLER_SESSIONS)
            pooler.start()
        valkey.start()
        provider.start()
        os.environ |= ENVIRONMENT | {
            "DATABASE_URL": postgres.url,
            "REDIS_URL": valkey.url,
            "ALLOWED_HOSTS": "127.0.0.1,testserver",
            "DB_POOL_SIZE": "16",
            "SIGNUP_CREDITS": "1000000",
            "DEFAULT_MODEL": "stub-model",
            "LOG_LEVEL": "INFO",
            "LIMIT_MESSAGES": "off",  # users repeat refused messages without a pause
            "PRIVATE_ROOT": str(folder / "private"),
            **environment,
        }
        import django

        django.setup()
        from django.core.management import call_command
        from django.db import connections

        from tests.support.stack import Stack

        call_command("migrate", verbosity=0)
        call_command("create_catalogue", stdout=(folder / "catalogue.log").open("w"))
        connections.close_all()
        own = {"DATABASE_URL": pooler.url} if pooler else {}
        with Stack(folder, provider_url=provider.url, environment={**environment, **own}) as stack:
            yield Stage(folder, postgres, valkey, provider, stack, pooler)
        connections.close_all()
    except BaseException:
        print(f"The logs of all processes are in {folder}")
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        provider.stop()
        if pooler:
            pooler.stop()
        postgres.stop()
        valkey.stop()


@asynccontextmanager
async def supervised(stage: Stage) -> AsyncIterator[Stage]:
    """All processes, started and restarted when they end."""
    await stage.start(*PROCESSES)
    supervisor = asyncio.create_task(stage.supervise())
    try:
        yield stage
    finally:
        supervisor.cancel()
