"""RQ's worker on asyncio: hundreds of jobs at once in one process (RQ["WORKER_CLASS"]).

README.md shows how a job travels, and its way in each fault. The event loop (uvloop) decides
everything and alone changes ``runs``; it never calls Redis itself. Threads make RQ's blocking
calls, and each call takes a connection of its own from the client's pool.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any, TypeVar

import uvloop
from django.conf import settings
from redis import AuthenticationError, ConnectionPool, Redis
from redis.client import Pipeline, PubSub, PubSubWorkerThread
from rq.command import parse_payload
from rq.defaults import DEFAULT_LOGGING_DATE_FORMAT, DEFAULT_LOGGING_FORMAT
from rq.executions import Execution
from rq.job import Job
from rq.job_lifecycle import call_exception_handlers
from rq.queue import Queue
from rq.registry import StartedJobRegistry
from rq.utils import now
from rq.worker import BaseWorker, DequeueStrategy

from chatproject.lib import loop_monitor
from chatproject.lib.metrics import shared as shared_metrics
from chatproject.lib.redis import UNREACHABLE
from chatproject.lib.rq_asyncio import memory
from chatproject.lib.rq_asyncio.bookkeeping import IDLE_STATES, Bookkeeping, NoRetry
from chatproject.lib.rq_asyncio.dequeue import Dequeuer
from chatproject.lib.rq_asyncio.job_run import DRAINED, STOPPED, JobRun
from chatproject.lib.rq_asyncio.plain_functions import PLAIN_THREADS, ThreadDeathPenalty, in_thread

logger = logging.getLogger(__name__)

RECORD_THREADS = 4  # record how jobs begin and end; more of them would only wait for each other
NOTE_AFTER = 0.03  # seconds from the start of a coroutine to the record of it
WAIT_SECONDS = 0.5  # between two looks for Redis at the start
CHECK_LIMIT = 2.0  # seconds that such a look may take
CHECK_SECONDS = 1  # between two check-ins with Redis: suspension, own registration, state
CLEANUP_SECONDS = 5.0  # for a cancelled job to clean up, and for each callback
REPEAT_SECONDS = 1.0  # Ctrl-C reaches a worker twice: from the terminal and from its supervisor

T = TypeVar("T")
Callback = Callable[[], Awaitable[None]]

_start_callbacks: list[Callback] = []
_shutdown_callbacks: list[Callback] = []


def on_start(callback: Callback) -> None:
    """Have the callback awaited once in this process's worker, before its first job.

    For work that would otherwise delay the first job. Its errors are logged.
    """
    _start_callbacks.append(callback)


def on_shutdown(callback: Callback) -> None:
    """Have the callback awaited once in this process's worker, after its last job.

    It runs in the worker's event loop before that is closed, has CLEANUP_SECONDS, and its errors
    are logged. The last one registered comes first.
    """
    _shutdown_callbacks.append(callback)


class AsyncWorker(BaseWorker):
    """Runs up to WORKER_CONCURRENCY jobs at once; everything else is as in RQ's own workers.

    A job's reaction to its cancellation decides: when it returns, it is finished, whatever the
    reason of the cancellation. When it raises after STOPPED, its status is "stopped"; when it ends
    with the CancelledError after DRAINED, it goes back to the front of its queue. After its time
    limit asyncio.timeout cancels it, and JobTimeoutException is recorded.

    ``concurrency`` (jobs), ``drain_seconds`` and ``max_megabytes`` (resident memory above which it
    drains and ends; 0: any) default to the settings WORKER_CONCURRENCY, WORKER_DRAIN_SECONDS and
    WORKER_MAX_MB; the rest is for BaseWorker. The first SIGTERM or SIGINT starts the drain, another
    one a second later or more ends it.
    """

    death_penalty_class = ThreadDeathPenalty
    log_result_lifespan = False
    max_connection_wait_time = 2.0

    _of_thread = threading.local()

    def __init__(
        self,
        *args: Any,
        concurrency: int | None = None,
        drain_seconds: float | None = None,
        max_megabytes: int | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("log_job_description", False)  # it contains the job's arguments
        while True:
            # RQ's own part registers names at once, and ends the process without Redis.
            wait_for_redis(kwargs["connection"])
            try:
                super().__init__(*args, **kwargs)
                break
            except UNREACHABLE:
                continue
        self.concurrency = _given_or_setting(concurrency, "WORKER_CONCURRENCY", 500)
        self.drain_seconds = _given_or_setting(drain_seconds, "WORKER_DRAIN_SECONDS", 25)
        self.max_megabytes = _given_or_setting(max_megabytes, "WORKER_MAX_MB", 0)
        self.bookkeeping = Bookkeeping(self)
        self.runs: dict[str, JobRun] = {}  # by execution id
        self.redis_was_unreachable = False  # until the next check-in that succeeds
        self._deadline: float | None = None  # loop time at which the drain ends; None: no drain
        self._stopped_at = 0.0  # loop time
        self._next_heartbeat = 0.0  # loop time
        self._maintenance: asyncio.Future[None] | None = None  # while it runs
        self._changed = asyncio.Event()  # for the main coroutine: see _wait_for_change
        self._closing = asyncio.Event()  # for the coroutine that checks in

    @property
    def dequeue_timeout(self) -> int:
        # Short, because nothing else ends the wait when the worker is to stop.
        return 1

    @property
    def connection_timeout(self) -> int:
        # RQ allows ten seconds more than the wait for a job.
        return self.dequeue_timeout + 3

    # RQ stores the one job that a command stopped. Here each thread that records has its own.
    @property
    def _stopped_job_id(self) -> str | None:
        return getattr(self._of_thread, "stopped_job_id", None)

    @_stopped_job_id.setter
    def _stopped_job_id(self, job_id: str | None) -> None:
        self._of_thread.stopped_job_id = job_id

    def work(
        self,
        burst: bool = False,
        logging_level: str | None = None,
        date_format: str = DEFAULT_LOGGING_DATE_FORMAT,
        log_format: str = DEFAULT_LOGGING_FORMAT,
        max_jobs: int | None = None,
        max_idle_time: int | None = None,
        with_scheduler: bool = False,
        dequeue_strategy: DequeueStrategy = DequeueStrategy.DEFAULT,
    ) -> bool:
        """Work until a stop is requested; return whether there was any job. Arguments as in RQ."""
        for name in getattr(settings, "WORKER_IMPORTS", ()) if settings.configured else ():
            import_module(name)  # imported later, by a job, it would block the event loop
        for queue in self.queues:
            queue.connection = self.connection  # django-rq's have one each, without time limits
        # Maintenance runs in a thread, where RQ's choice for callbacks of abandoned jobs, SIGALRM,
        # does not exist.
        StartedJobRegistry.death_penalty_class = ThreadDeathPenalty  # type: ignore[assignment]
        with (
            closing(uvloop.new_event_loop()) as self._loop,
            ThreadPoolExecutor(1, "take") as self._taker,
            ThreadPoolExecutor(1, "check") as self._checker,
            ThreadPoolExecutor(RECORD_THREADS, "record") as self._recorders,
        ):
            begin = partial(self._loop.call_soon_threadsafe, self._begin)
            self._dequeuer = Dequeuer(self, self.bookkeeping, begin)
            while True:
                try:
                    self.bootstrap(logging_level, date_format, log_format)
                    break
                except UNREACHABLE:
                    wait_for_redis(self.connection)
                    self.connection.delete(self.key)  # what has arrived of the registration
            self._dequeue_strategy = dequeue_strategy
            if with_scheduler:
                # Forks: best while this process has no event loop and few threads.
                self._start_scheduler(burst, logging_level, date_format, log_format)
            self.connection.set_retry(NoRetry())  # not for the scheduler, which one error ends
            with signals_handled_by(self.request_stop):
                try:
                    return self._loop.run_until_complete(self._main(burst, max_jobs, max_idle_time))
                finally:
                    self.teardown()

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        moment = self._loop.time()
        if self._deadline is None:
            self._shutdown_requested_date = now()
            self._stopped_at, self._deadline = moment, moment + self.drain_seconds
            self.bookkeeping.stopping.set()
            logger.info("Worker %s: stopping within %s s", self.name, self.drain_seconds)
        elif moment >= self._stopped_at + REPEAT_SECONDS:
            self._deadline = min(moment, self._deadline)
        self._changed.set()

    async def _main(self, burst: bool, max_jobs: int | None, max_idle_time: int | None) -> bool:
        await self._check()
        if self._maintenance is not None:
            # Like RQ before the first job, but a callback that hangs delays it no longer than this.
            await asyncio.wait({self._maintenance}, timeout=CLEANUP_SECONDS)
        await await_callbacks(_start_callbacks, "on_start")
        memory.freeze_startup_objects()
        monitor = loop_monitor.start("worker") if settings.configured else None
        publisher = shared_metrics.start("worker") if settings.configured else None
        checks = asyncio.create_task(self._keep_checking())
        try:
            return bool(await self._take_jobs(burst, max_jobs, max_idle_time))
        finally:
            await self._drain()
            self._closing.set()
            await checks
            if monitor is not None:
                monitor.stop()
            gc.unfreeze()
            await await_callbacks(_shutdown_callbacks, "on_shutdown")
            if publisher is not None:
                await in_thread(publisher.stop)
            left_behind = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left_behind:
                task.cancel()
            if left_behind:
                await asyncio.wait(left_behind, timeout=CHECK_SECONDS)
            await self._loop.shutdown_asyncgens()

    async def _take_jobs(self, burst: bool, max_jobs: int | None, max_idle_time: int | None) -> int:
        taken, idle_since = 0, time.monotonic()
        while self._deadline is None and taken != max_jobs:
            is_suspended = self.bookkeeping.is_suspended
            if is_suspended and burst:
                break
            plain = sum(run.penalty is not None for run in self.runs.values())
            if is_suspended or len(self.runs) >= self.concurrency or plain >= PLAIN_THREADS:
                await self._wait_for_change(CHECK_SECONDS)
                continue
            # Read before the queue: whatever ends in between may have enqueued jobs.
            may_bring_jobs = bool(self.runs) or self._maintenance is not None
            run = await self._next_run(burst)
            if run is not None:
                taken += 1
                self.runs[run.execution.id] = run
                if run.penalty is not None:
                    run.performance = in_thread(run.call_function)
                run.task = self._loop.create_task(self._see_through(run))
            elif burst and not may_bring_jobs:
                break
            elif burst and self.runs:
                await self._wait_for_change(CHECK_SECONDS)
            if self.runs:
                idle_since = time.monotonic()
            elif max_idle_time is not None and time.monotonic() - idle_since >= max_idle_time:
                break
        logger.info("Worker %s: stopped taking jobs after %d", self.name, taken)
        return taken

    async def _wait_for_change(self, seconds: float | None) -> None:
        """Wait for the end of a job, a signal, a change of suspension, or for so many seconds.

        For the main coroutine only.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    async def _next_run(self, burst: bool) -> JobRun | None:
        """Return a job that is ready to start; None when there is none at present."""
        for seconds in self.bookkeeping.pauses():
            try:
                return await self._loop.run_in_executor(self._taker, self._dequeuer.take, burst)
            except UNREACHABLE as error:
                self._note_outage(error)
            except Exception:
                logger.exception("Worker %s: a job could not be dequeued", self.name)
            await self._wait_for_change(seconds)
            if self._deadline is not None:
                break
        return None

    def _begin(self, run: JobRun) -> None:
        """Begin a coroutine function, before its start is recorded; `_take_jobs` does the rest."""
        self.runs[run.execution.id] = run
        run.performance = self._loop.create_task(run.await_coroutine())

    async def _see_through(self, run: JobRun) -> None:
        """Follow a job from its start to the record of its end."""
        record = self.bookkeeping.record_end
        try:
            if run.performance is not None:
                if run.coroutine is not None:
                    # A caller waits for its output. The record costs CPU as well, and can follow
                    # once the first steps are made.
                    await asyncio.wait({run.performance}, timeout=NOTE_AFTER)
                    note = self.bookkeeping.note_late_start
                    await self._loop.run_in_executor(self._recorders, note, run)
                await asyncio.wait({run.performance})
        except asyncio.CancelledError:
            # Only _drain cancels this task, and only while the job goes on.
            logger.warning("Job %s still runs after its cancellation", run.job.id)
        try:
            if run.has_user_code or self._exc_handlers:
                await in_thread(partial(record, run))  # may hang: it must delay no other record
            else:
                await self._loop.run_in_executor(self._recorders, record, run)
        finally:
            self.executions.pop(run.execution.id, None)
            del self.runs[run.execution.id]
            self._changed.set()

    # RQ's last steps of a job. Each writes one transaction, and gets the execution by keyword.

    def handle_execution_ended(self, job: Job, queue: Queue, heartbeat_ttl: int) -> None:
        # Without RQ's heartbeat for the time of the callbacks: check-ins keep the job alive.
        job.ended_at = now()

    def cleanup_execution(
        self, job: Job, pipeline: Pipeline, execution: Execution | None = None
    ) -> None:
        super().cleanup_execution(job, pipeline, execution)
        if not self.executions:
            self.set_state(IDLE_STATES[self.bookkeeping.is_suspended], pipeline)

    def handle_job_success(self, *args: Any, **kwargs: Any) -> None:
        write = partial(super().handle_job_success, *args, **kwargs)
        self.bookkeeping.persist(write, self.runs[kwargs["execution"].id], logs_only=False)

    def handle_job_retry(self, *args: Any, **kwargs: Any) -> None:
        retry = partial(super().handle_job_retry, *args, **kwargs)

        def write() -> None:
            with self._no_follow_up():
                retry()

        self.bookkeeping.persist(write, self.runs[kwargs["execution"].id])

    def handle_job_failure(self, *args: Any, **kwargs: Any) -> None:
        fail = partial(super().handle_job_failure, *args, **kwargs)
        if kwargs.get("execution") is None:  # maintenance found a job lost by another worker
            fail()
            return
        stopped_job_id = self._stopped_job_id

        def write() -> None:
            self._stopped_job_id = stopped_job_id  # RQ clears it with each attempt
            with self._no_follow_up():
                fail()

        self.bookkeeping.persist(write, self.runs[kwargs["execution"].id])

    # RQ only logs errors of these two, and skips them when it receives no answer to the record. For
    # this worker's own jobs `Bookkeeping.persist` does both.

    @contextmanager
    def _no_follow_up(self) -> Iterator[None]:
        self._of_thread.is_persisting = True
        try:
            yield
        finally:
            self._of_thread.is_persisting = False

    def _enqueue_dependents_safely(self, queue: Queue, job: Job) -> None:
        if not getattr(self._of_thread, "is_persisting", False):
            super()._enqueue_dependents_safely(queue, job)

    def _release_slot_safely(self, job: Job) -> None:
        if not getattr(self._of_thread, "is_persisting", False):
            super()._release_slot_safely(job)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Log a job's failure, without its arguments, and call the exception handlers."""
        logger.error("Worker %s: job %s failed", self.name, job.id, exc_info=exc_info)
        try:
            call_exception_handlers(self._exc_handlers, job, *exc_info)
        except Exception:
            logger.exception("An exception handler failed on job %s", job.id)

    # Commands from outside, signals aside.

    def handle_payload(self, message: dict[str, Any]) -> None:
        """Pass a command on to the event loop; in RQ's thread that listens for commands."""
        try:
            payload = parse_payload(message)
            command, job_id = payload["command"], payload.get("job_id")
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("Worker %s: a command could not be read", self.name)
            return
        if command == "shutdown":
            self._loop.call_soon_threadsafe(self._stop)
        elif command in ("stop-job", "stop-execution"):
            self._loop.call_soon_threadsafe(self._stop_job, job_id, payload.get("execution_id"))
        else:
            logger.warning("Worker %s: command %r is not supported", self.name, command)

    def _stop_job(self, job_id: str | None, execution_id: str | None) -> None:
        runs = [run for run in self.runs.values() if run.job.id == job_id]
        runs = [run for run in runs if execution_id in (None, run.execution.id)]
        if not runs:
            logger.warning("Worker %s does not run job %s", self.name, job_id)
        for run in runs:
            run.interrupt(STOPPED)

    def _pubsub_exception_handler(
        self, exc: Exception, pubsub: PubSub, pubsub_thread: PubSubWorkerThread
    ) -> None:
        # RQ's own gives up on some errors, after which no job could be stopped any more.
        logger.info("Worker %s receives no commands: %s", self.name, exc)
        time.sleep(CHECK_SECONDS)

    # The check-in with Redis, every CHECK_SECONDS.

    async def _keep_checking(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._closing.wait()
            limit = self.max_megabytes
            if limit and self._deadline is None and memory.resident_megabytes() > limit:
                logger.warning("Worker %s: more than %d MB: draining to restart", self.name, limit)
                self._stop()  # its supervisor starts it anew
            await self._check()

    async def _check(self) -> None:
        with_heartbeats = self.redis_was_unreachable or self._loop.time() >= self._next_heartbeat
        was_suspended = self.bookkeeping.is_suspended
        check_in = partial(self.bookkeeping.check_in, list(self.runs.values()), with_heartbeats)
        try:
            await self._loop.run_in_executor(self._checker, check_in)
        except UNREACHABLE as error:
            self._note_outage(error)
            return
        except Exception:
            logger.exception("Worker %s could not check in with Redis", self.name)
            return
        if with_heartbeats:
            self._next_heartbeat = self._loop.time() + self.job_monitoring_interval
        if self.bookkeeping.is_suspended != was_suspended:
            logger.info("Worker %s: %s", self.name, "resumed" if was_suspended else "suspended")
            self._changed.set()
        if self.redis_was_unreachable:
            logger.info("Worker %s: Redis is reachable again", self.name)
        # RQ's scheduler, if it runs in a child process of this worker, may have ended on its own.
        # Without a lock it is another worker's to run: then there is nothing to begin again.
        scheduler = self.scheduler
        process = scheduler._process if scheduler is not None and scheduler.acquired_locks else None
        has_lost_scheduler = process is not None and not process.is_alive()
        if self.redis_was_unreachable or has_lost_scheduler or self.should_run_maintenance_tasks:
            # After an outage as well: dependents may wait, RQ's scheduler may have ended, or end
            # a moment later.
            self.redis_was_unreachable = False
            self._maintain()

    def _note_outage(self, error: Exception) -> None:
        if not self.redis_was_unreachable:
            logger.warning("Worker %s: Redis is unreachable: %s", self.name, error)
        self.redis_was_unreachable = True

    def _maintain(self) -> None:
        """Start RQ's maintenance, in a thread: it calls failure callbacks of abandoned jobs."""
        if self._maintenance is not None or self.bookkeeping.stopping.is_set():
            return

        def maintain() -> None:
            try:
                self.run_maintenance_tasks()  # type: ignore[no-untyped-call]
            except Exception:
                logger.exception("Worker %s: maintenance failed", self.name)
                self.last_cleaned_at = now()  # type: ignore[assignment]  # not again at once

        def end(_: asyncio.Future[None]) -> None:
            self._maintenance = None
            self._changed.set()

        self._maintenance = in_thread(maintain)
        self._maintenance.add_done_callback(end)

    # The end.

    async def _drain(self) -> None:
        """Wait for the running jobs; at the deadline of a stop cancel them and put them back."""
        while self.runs and (self._deadline is None or self._loop.time() < self._deadline):
            await self._wait_for_change(self._deadline and self._deadline - self._loop.time())
        for run in self.runs.values():
            run.interrupt(DRAINED)
        await self._wait_for_runs(CLEANUP_SECONDS)
        stubborn = [run.task for run in self.runs.values() if run.task and run.is_performing]
        for task in stubborn:
            task.cancel()
        await self._wait_for_runs(CLEANUP_SECONDS if stubborn else 0)
        self.bookkeeping.giving_up.set()
        await self._wait_for_runs(self.connection_timeout)

    async def _wait_for_runs(self, seconds: float) -> None:
        tasks = [run.task for run in self.runs.values() if run.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def teardown(self) -> None:
        """Deregister from Redis, if it is reachable, and stop listening for commands."""
        try:
            super().teardown()  # type: ignore[no-untyped-call]
        except UNREACHABLE as error:
            logger.warning("Worker %s could not deregister: %s", self.name, error)
        finally:
            if self.pubsub_thread is not None:
                self.pubsub_thread.stop()


def _given_or_setting(given: T | None, name: str, default: T) -> T:
    """Return an argument, or the setting when it was not given."""
    found: T = getattr(settings, name, default) if settings.configured else default
    return found if given is None else given


def wait_for_redis(connection: Redis) -> None:
    """Block until Redis answers, with one line in the log.

    Raises SystemExit with code 0 when a signal asks the process to stop meanwhile, and
    redis.AuthenticationError.
    """
    pool = connection.connection_pool
    limits = {"socket_connect_timeout": CHECK_LIMIT, "socket_timeout": CHECK_LIMIT}
    options = {**pool.connection_kwargs, **limits, "retry": NoRetry()}
    stop = threading.Event()
    is_waiting = False
    with (
        signals_handled_by(lambda *_: stop.set()),
        Redis.from_pool(ConnectionPool(pool.connection_class, **options)) as probe,
    ):
        while not stop.wait(0):
            try:
                probe.ping()
            except AuthenticationError:
                raise
            except UNREACHABLE as error:
                if not is_waiting:
                    logger.warning("The worker waits for Redis: %s", error)
                is_waiting = True
                stop.wait(WAIT_SECONDS)
            else:
                if is_waiting:
                    logger.info("The worker goes on: Redis is reachable")
                return
    logger.info("The worker was stopped while it waited for Redis")
    raise SystemExit(0)


@contextmanager
def signals_handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM, in the main thread; elsewhere do nothing."""
    # Not loop.add_signal_handler: a scheduler that is forked again later shares the loop's
    # wake-up socket, through which each signal it gets would arrive here, too.
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


async def await_callbacks(callbacks: list[Callback], hook: str) -> None:
    """Await callbacks, the last one first, each for CLEANUP_SECONDS at most, and forget them."""
    while callbacks:
        callback = callbacks.pop()
        try:
            async with asyncio.timeout(CLEANUP_SECONDS):
                await callback()
        except Exception:
            logger.exception("A callback of %s failed", hook)
