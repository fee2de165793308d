"""RQ's worker on asyncio: hundreds of jobs at once in one process (RQ["WORKER_CLASS"]).

How a job travels::

    Redis ─► _take           thread "take"    dequeues, imports and begins
          ─► _see_through    event loop       one task per job, from its start to its last record
               ├─► _await      event loop     a coroutine function, in a task of its own
               ├─► _call       own thread     a plain function
               ├─► _note_start threads "books"  RQ's execution (of a plain function before it begins)
               └─► _record_…   threads "books"  RQ's _finalize_success, _finalize_failure; _put_back

Who owns what. The event loop (uvloop) decides everything and alone changes ``_runs``; it never
talks to Redis itself. Threads make RQ's blocking calls, and each call takes a connection from the
client's pool for itself: one thread dequeues, one checks in every second (heartbeats, suspension),
a few record how jobs ended, and RQ's own listens for commands. What a job brings along and may
hang (plain functions, callbacks, exception handlers) gets a thread of its own, so that it delays
nobody's record; such a thread gives its database connections back. ``_Run.lock`` keeps a job's
heartbeat from meeting its record.

While Redis is away, running coroutines are not disturbed, and what ends is recorded when it is
back (`_persist`). A Redis that has lost its memory gets the worker and its jobs again
(`_check_in`). What may have arrived although its answer was lost is not simply written again
(`NoRetry`, `_persist`): a job must not count twice, nor a retry be enqueued twice.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import inspect
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from uuid import uuid4

import uvloop
from django.conf import settings
from django.db import connections
from redis.backoff import NoBackoff
from redis.client import Pipeline, PubSub, PubSubWorkerThread
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from rq.callbacks import execute_stopped_callback
from rq.command import parse_payload
from rq.defaults import DEFAULT_LOGGING_DATE_FORMAT, DEFAULT_LOGGING_FORMAT
from rq.exceptions import DequeueTimeout, InvalidJobOperation
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job, JobStatus, _current_job
from rq.job import Retry as JobRetry
from rq.job_lifecycle import call_exception_handlers
from rq.queue import Queue
from rq.rate_limit import release_slot
from rq.registry import StartedJobRegistry
from rq.suspension import WORKERS_SUSPENDED
from rq.timeouts import BaseDeathPenalty, BaseTimeoutException, JobTimeoutException
from rq.utils import now, utcformat
from rq.worker import BaseWorker, DequeueStrategy, WorkerStatus
from rq.worker_registration import register

from chatproject.lib import loop_monitor

logger = logging.getLogger(__name__)

STOPPED = "stopped"
"""Message of the CancelledError of a job that somebody stopped (`send_stop_job_command`)."""

DRAINED = "drained"
"""Message of the CancelledError of a job that is still running when the drain time is over."""

PLAIN_THREADS = 8  # plain functions at once; while all are busy no further job is taken
BOOK_THREADS = 4  # more of them would only wait for each other
NOTE_AFTER = 0.03  # seconds from the begin of a job to the note of it
CHECK_SECONDS = 1  # between two looks at Redis: suspension, own registration, state
CLEANUP_SECONDS = 5.0  # for a cancelled job to clean up, and for each callback
REPEAT_SECONDS = 1.0  # Ctrl-C reaches a worker twice: from the terminal and from its supervisor
MOST_REFUSALS = 3  # attempts to record a job's end that Redis answers but does not take

# Redis is out of reach, or cannot write just now: the same command may work a little later.
AWAY = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OutOfMemoryError)

T = TypeVar("T")

_start_callbacks: list[Callable[[], Awaitable[None]]] = []
_shutdown_callbacks: list[Callable[[], Awaitable[None]]] = []


def on_start(callback: Callable[[], Awaitable[None]]) -> None:
    """Have the callback awaited once in this process's worker, before its first job.

    For what the first job would else have to wait for. What it raises is logged.
    """
    _start_callbacks.append(callback)


def on_shutdown(callback: Callable[[], Awaitable[None]]) -> None:
    """Have the callback awaited once in this process's worker, after its last job.

    It runs in the worker's event loop before that is closed, has CLEANUP_SECONDS, and what it
    raises is logged. The last one registered comes first.
    """
    _shutdown_callbacks.append(callback)


class Interrupted(BaseTimeoutException):
    """Raised in the thread of a plain function that is stopped or drained."""


class NotRecordedError(Exception):
    """Redis was away until the worker had to end, so it does not know how a job ended."""


class NoRetry(Retry):
    """Lets a lost connection be just that, for commands whose answer may be all that was lost.

    redis-py repeats commands. And when the connection was watching keys it reports a WatchError,
    after which RQ writes its transaction again: the job would count twice.
    """

    def __init__(self) -> None:
        super().__init__(NoBackoff(), 0)

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        try:
            return do()
        except self._supported_errors as error:
            with suppress(WatchError):
                fail(*([error, 1] if with_failure_count else [error]))  # disconnects
            raise


class ThreadDeathPenalty(BaseDeathPenalty):
    """Ends a block of code in any thread by an exception: when its time is over, or `interrupt`.

    RQ's TimerDeathPenalty writes its message into the exception class that all share, and may
    strike when the block has been left already, that is, in the thread's next work. As with it, a
    call that waits outside of Python's bytecode (a sleep, a socket) ends only when it returns.
    """

    def __init__(
        self,
        timeout: float,
        exception: type[BaseTimeoutException] = JobTimeoutException,
        **kwargs: Any,
    ) -> None:
        super().__init__(timeout, exception, **kwargs)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._is_over = False
        self._timer = threading.Timer(timeout, self.interrupt, [_worded(exception, timeout)])
        self._timer.daemon = True

    def setup_death_penalty(self) -> None:
        with self._lock:
            if self._is_over:
                raise Interrupted
            self._thread = threading.get_ident()
        if self._timeout > 0:
            self._timer.start()

    def interrupt(self, exception: type[BaseTimeoutException] = Interrupted) -> None:
        """Raise in the block, or at its start when it is not there yet; once at most."""
        with self._lock:
            if not self._is_over:
                self._is_over = True
                self._raise(exception)

    def cancel_death_penalty(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._is_over = True
            self._raise(None)  # takes back what was raised but has not arrived

    def _raise(self, exception: type[BaseTimeoutException] | None) -> None:
        if self._thread is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread), exception and ctypes.py_object(exception)
            )


def _worded(exception: type[BaseTimeoutException], timeout: float) -> type[BaseTimeoutException]:
    """The exception under its own name, with RQ's words: a thread can be sent a class only."""

    def init(self: BaseTimeoutException) -> None:
        Exception.__init__(self, _timeout_message(timeout))

    return type(
        exception.__name__, (exception,), {"__module__": exception.__module__, "__init__": init}
    )


def _timeout_message(seconds: float) -> str:
    return f"Task exceeded maximum timeout value ({seconds} seconds)"


@dataclass(slots=True, eq=False)
class _Run:
    """A job in this worker, from `_take` to the record of its end."""

    job: Job
    queue: Queue
    execution: Execution
    coroutine: Callable[..., Awaitable[Any]] | None = None  # None: job.perform() in a thread
    value: Any = None
    # None once it has returned. Starts as if cancelled: a task may be cancelled before its first step.
    error: BaseException | None = field(default_factory=asyncio.CancelledError)
    reason: str | None = None  # why it was told to end: STOPPED or DRAINED
    performance: asyncio.Future[None] | None = None  # None: it could not even be prepared
    penalty: ThreadDeathPenalty | None = None
    task: asyncio.Task[None] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_noted: bool = False  # Redis knows that it runs: no heartbeats before
    is_ending: bool = False  # its end is being written: no more heartbeats

    @property
    def has_user_code(self) -> bool:
        """Whether recording its end calls functions (or waits for servers) that the job names."""
        job = self.job
        return bool(
            job._success_callback_name
            or job._failure_callback_name
            or job._stopped_callback_name
            or job.webhooks
        )


class AsyncWorker(BaseWorker):
    """Runs up to WORKER_CONCURRENCY jobs at once; everything else is as in RQ's own workers.

    What a job makes of its cancellation decides: when it returns, it is finished, whatever was
    asked of it. When it raises after STOPPED, its status is "stopped"; when it ends with the
    CancelledError after DRAINED, it goes back to the front of its queue. After its time limit
    asyncio.timeout cancels it, and JobTimeoutException is recorded.

    ``concurrency`` (jobs), ``drain_seconds`` and ``max_megabytes`` (resident memory above which it
    drains and ends; 0: any) default to the settings WORKER_CONCURRENCY, WORKER_DRAIN_SECONDS and
    WORKER_MAX_MB; the rest is for BaseWorker. The first SIGTERM or SIGINT starts the
    drain, another one a second later or more ends it.
    """

    death_penalty_class = ThreadDeathPenalty
    log_result_lifespan = False
    max_connection_wait_time = 2.0

    _own = threading.local()

    def __init__(
        self,
        *args: Any,
        concurrency: int | None = None,
        drain_seconds: float | None = None,
        max_megabytes: int | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("log_job_description", False)  # it contains the job's arguments
        super().__init__(*args, **kwargs)
        self.concurrency = concurrency or _setting("WORKER_CONCURRENCY", 500)
        self.drain_seconds = (
            _setting("WORKER_DRAIN_SECONDS", 25) if drain_seconds is None else drain_seconds
        )
        self.max_megabytes = (
            _setting("WORKER_MAX_MB", 0) if max_megabytes is None else max_megabytes
        )
        self._runs: dict[str, _Run] = {}  # by execution id
        self._deadline: float | None = None  # loop time at which the drain ends; None: no drain
        self._stopped_at = 0.0  # loop time
        self._stopping = threading.Event()
        self._give_up = threading.Event()
        self._is_suspended = False
        self._redis_was_away = False
        self._next_heartbeat = 0.0  # loop time
        self._maintenance: asyncio.Future[None] | None = None
        self._news = asyncio.Event()  # for the main coroutine: see _hear_news
        self._wake = asyncio.Event()  # for the one that checks
        self._is_closing = False

    @property
    def dequeue_timeout(self) -> int:
        # Short, because nothing else ends the wait when the worker is to stop.
        return 1

    # RQ remembers the one job that somebody stopped. Here each thread of the books has its own.
    @property
    def _stopped_job_id(self) -> str | None:
        return getattr(self._own, "stopped_job_id", None)

    @_stopped_job_id.setter
    def _stopped_job_id(self, job_id: str | None) -> None:
        self._own.stopped_job_id = job_id

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
        """Work until told to stop; say whether there was any job. Arguments as in RQ."""
        _import_ahead()
        for queue in self.queues:
            queue.connection = self.connection  # django-rq's have one each, without time limits
        # Maintenance runs in a thread, where RQ's choice for callbacks of abandoned jobs, SIGALRM,
        # does not exist.
        StartedJobRegistry.death_penalty_class = ThreadDeathPenalty  # type: ignore[assignment]
        self._loop = uvloop.new_event_loop()
        self._taker = ThreadPoolExecutor(1, "take")
        self._checker = ThreadPoolExecutor(1, "check")
        self._books = ThreadPoolExecutor(BOOK_THREADS, "books")
        try:
            self.bootstrap(logging_level, date_format, log_format)
            self._dequeue_strategy = dequeue_strategy
            if with_scheduler:
                # Forks: best while this process has no event loop and few threads.
                self._start_scheduler(burst, logging_level, date_format, log_format)
            self.connection.set_retry(NoRetry())  # not for the scheduler, which one error ends
            with self._signal_handlers():
                try:
                    return self._loop.run_until_complete(self._main(burst, max_jobs, max_idle_time))
                finally:
                    self._sign_off()
        finally:
            for pool in (self._taker, self._checker, self._books):
                pool.shutdown()
            self._loop.close()

    @contextmanager
    def _signal_handlers(self) -> Iterator[None]:
        # Not loop.add_signal_handler: a scheduler that is forked again later shares the loop's
        # wake-up socket, through which each signal it gets would arrive here, too.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.request_stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        moment = self._loop.time()
        if self._deadline is None:
            logger.info("Worker %s: stopping in %s s at most", self.name, self.drain_seconds)
            self._shutdown_requested_date = now()
            self._stopped_at, self._deadline = moment, moment + self.drain_seconds
            self._stopping.set()
        elif moment >= self._stopped_at + REPEAT_SECONDS:
            self._deadline = min(moment, self._deadline)
        self._news.set()

    async def _main(self, burst: bool, max_jobs: int | None, max_idle_time: int | None) -> bool:
        await self._check()
        if self._maintenance is not None:
            # Like RQ before the first job, but not for as long as somebody's callback hangs.
            await asyncio.wait({self._maintenance}, timeout=CLEANUP_SECONDS)
        await self._call_back(_start_callbacks, "on_start")
        self._settle_memory()
        monitor = loop_monitor.start("worker") if settings.configured else None
        checks = asyncio.create_task(self._keep_checking())
        try:
            return bool(await self._take_jobs(burst, max_jobs, max_idle_time))
        finally:
            await self._drain()
            self._is_closing = True
            self._wake.set()
            await checks
            if monitor is not None:
                monitor.stop()
            gc.unfreeze()
            await self._clean_up()

    def _settle_memory(self) -> None:
        """Spare the collector what the start has made: it would look through it again and again,
        and hold the event loop for a tenth of a second each time."""
        if threading.current_thread() is threading.main_thread():
            gc.collect()
            gc.freeze()

    async def _take_jobs(self, burst: bool, max_jobs: int | None, max_idle_time: int | None) -> int:
        taken, idle_since = 0, time.monotonic()
        while self._deadline is None and taken != max_jobs:
            if self._is_suspended and burst:
                break
            if self._is_suspended or not self._has_room():
                await self._hear_news(CHECK_SECONDS)
                continue
            may_bring_jobs = (
                bool(self._runs) or self._is_maintaining()
            )  # before a look at the queue
            run = await self._next_run(burst)
            if run is not None:
                taken += 1
                self._start(run)
            elif burst and not may_bring_jobs:
                break
            elif burst and self._runs:
                await self._hear_news(CHECK_SECONDS)
            if self._runs:
                idle_since = time.monotonic()
            elif max_idle_time is not None and time.monotonic() - idle_since >= max_idle_time:
                break
        logger.info("Worker %s: takes no more jobs after %d", self.name, taken)
        return taken

    def _has_room(self) -> bool:
        plain = sum(run.penalty is not None for run in self._runs.values())
        return len(self._runs) < self.concurrency and plain < PLAIN_THREADS

    async def _hear_news(self, seconds: float | None) -> None:
        """Wait until a job has ended, a signal or a change of suspension came, or the time is up.

        For the main coroutine only.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()

    async def _next_run(self, burst: bool) -> _Run | None:
        """A job that is ready to start; None when there is none at the moment."""
        for seconds in self._pauses():
            try:
                return await self._loop.run_in_executor(self._taker, self._take, burst)
            except AWAY as error:
                self._note_outage(error)
            except Exception:
                logger.exception("Worker %s: a job could not be taken", self.name)
            await self._hear_news(seconds)
            if self._deadline is not None:
                break
        return None

    def _pauses(self) -> Iterator[float]:
        """Seconds to wait before each next attempt to reach Redis."""
        seconds = 0.1
        while True:
            yield seconds
            seconds = min(seconds * self.exponential_backoff_factor, self.max_connection_wait_time)

    def _take(self, burst: bool) -> _Run | None:
        """Take the next job, if one comes in time, and note it as started. (Thread "take".)"""
        try:
            found = self.queue_class.dequeue_any(
                self._ordered_queues,
                None if burst else self.dequeue_timeout,
                connection=self.connection,
                job_class=self.job_class,
                serializer=self.serializer,
                death_penalty_class=self.death_penalty_class,
            )
        except DequeueTimeout:
            return None
        if found is None:
            return self._take(burst) if self._enqueue_ready_jobs() else None
        job, queue = found
        try:
            if self._stopping.is_set() or self._is_suspended:
                self._insist(partial(self._leave, job, queue))
                return None
            self.reorder_queues(queue)
            logger.info("Worker %s: %s: %s", self.name, queue.name, job.id)
            return self._prepare(job, queue)
        except NotRecordedError:
            logger.error("Job %s was taken, but Redis is away and does not know it", job.id)
            return None

    def _enqueue_ready_jobs(self) -> bool:
        """Enqueue dependents that RQ has left behind, where two ends met; it would take minutes."""
        enqueued = [queue.ready_job_registry.cleanup() for queue in self.queues]
        return any(enqueued)

    def _leave(self, job: Job, queue: Queue) -> None:
        """Put a job back that came in the last moment, when no more were to be taken."""
        with self.connection.pipeline() as pipeline:
            pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
            queue.push_job_id(job.id, pipeline=pipeline, at_front=True)
            pipeline.execute()

    def _prepare(self, job: Job, queue: Queue) -> _Run:
        job.redis_server_version = self._insist(self.get_redis_server_version)
        execution = Execution(uuid4().hex, job.id, self.connection, self.name)
        self.executions[execution.id] = execution
        run = _Run(job, queue, execution)
        try:
            function = job.func  # reads the arguments as well, and imports the module
        except BaseException as error:  # noqa: BLE001  recorded as the job's failure
            run.error = error
        else:
            if inspect.iscoroutinefunction(function):
                run.coroutine = function
                self._loop.call_soon_threadsafe(self._perform, run)
                return run  # noted a little later: see _note_begun
            run.penalty = ThreadDeathPenalty(self._time_limit(job))
        try:
            self._note_start(run)
        except NotRecordedError:
            raise
        except BaseException as error:  # noqa: BLE001  recorded as the job's failure
            run.penalty, run.error = None, error
        return run

    def _perform(self, run: _Run) -> None:
        self._runs[run.execution.id] = run
        run.performance = self._loop.create_task(self._await(run))

    def _note_start(self, run: _Run) -> None:
        """As RQ's prepare_execution and prepare_job_execution, but in one transaction.

        Somebody waits for the job. The worker's own heartbeat comes with `_check_in`. Raises
        NotRecordedError when the worker has to end while Redis is away.
        """

        def write(pipeline: Pipeline) -> None:
            # Somebody may have deleted the job already: there must not be half of it again.
            is_there = pipeline.exists(run.job.key)
            pipeline.multi()
            self._enter(run.job, run.execution, pipeline)
            self.set_state(WorkerStatus.BUSY, pipeline)
            if is_there:
                run.job.prepare_for_execution(self.name, pipeline)
                pipeline.persist(run.job.key)
            pipeline.lrem(run.queue.intermediate_queue_key, 1, run.job.id)

        with run.lock:
            self._insist(lambda: self.connection.transaction(write, run.job.key))
            run.is_noted = True

    def _enter(self, job: Job, execution: Execution, pipeline: Pipeline) -> None:
        """Write the execution everywhere where Execution.create() has written it."""
        ttl = self.get_heartbeat_ttl(job)
        execution.save(ttl=ttl, pipeline=pipeline)
        ExecutionRegistry(job.id, connection=pipeline).add(execution, ttl, pipeline)
        job.started_job_registry.add_execution(execution, pipeline=pipeline, ttl=ttl)
        pipeline.sadd(self.executions_key, execution.composite_key)
        pipeline.expire(self.executions_key, ttl + 60)

    def _insist(self, step: Callable[[], T]) -> T:
        """Repeat a step that does no harm twice while Redis is away and the worker works."""
        pauses = self._pauses()
        while True:
            try:
                return step()
            except AWAY as error:
                if self._stopping.wait(next(pauses)):
                    raise NotRecordedError("Redis is away, and the worker has to stop") from error

    def _time_limit(self, job: Job) -> float:
        return job.timeout or self.queue_class.DEFAULT_TIMEOUT

    def _start(self, run: _Run) -> None:
        self._runs[run.execution.id] = run
        if run.penalty is not None:
            run.performance = self._in_thread(partial(self._call, run))
        run.task = self._loop.create_task(self._see_through(run))

    async def _see_through(self, run: _Run) -> None:
        """From the start of a job to the record of its end."""
        try:
            if run.performance is not None:
                if run.coroutine is not None:
                    await self._note_begun(run)
                await asyncio.wait({run.performance})
        except asyncio.CancelledError:
            # Only _drain cancels this task, and only while the job goes on.
            logger.warning("Job %s does not end though it was cancelled", run.job.id)
        try:
            await self._record(run)
        finally:
            self.executions.pop(run.execution.id, None)
            del self._runs[run.execution.id]
            self._news.set()

    async def _note_begun(self, run: _Run) -> None:
        """Note that a coroutine function has begun, NOTE_AFTER seconds later or when it has ended.

        Somebody waits for what it makes. The note is work for the processor too, and Redis can
        learn of it when the first steps have been made.
        """
        assert run.performance is not None
        await asyncio.wait({run.performance}, timeout=NOTE_AFTER)

        def note() -> None:
            try:
                self._note_start(run)
            except NotRecordedError:
                logger.warning("Job %s was begun, but Redis does not know it", run.job.id)
            except BaseException:
                logger.exception("Job %s was begun, but that could not be recorded", run.job.id)

        await self._loop.run_in_executor(self._books, note)

    async def _await(self, run: _Run) -> None:
        """The task of a coroutine function. No exception leaves it, as some would end the loop."""
        _current_job.set(run.job)
        limit = self._time_limit(run.job)
        assert run.coroutine is not None
        try:
            async with asyncio.timeout(limit if limit > 0 else None) as timeout:
                run.value = await run.coroutine(*run.job.args, **run.job.kwargs)
            run.error = None
        except BaseException as error:  # noqa: BLE001  recorded as the job's failure
            run.error = error
            if isinstance(error, TimeoutError) and timeout.expired():
                run.error = JobTimeoutException(_timeout_message(limit))
                run.error.__cause__ = error

    def _call(self, run: _Run) -> None:
        """The thread of a plain function."""
        assert run.penalty is not None
        try:
            with run.penalty:
                value = run.job.perform()
        except BaseException as error:  # noqa: BLE001  recorded as the job's failure
            run.error = error
        else:
            run.value, run.error = value, None

    def _in_thread(self, function: Callable[[], None]) -> asyncio.Future[None]:
        """Call a function, which must not raise, in a thread that nobody waits for at exit."""
        future: asyncio.Future[None] = self._loop.create_future()

        def body() -> None:
            try:
                function()
            finally:
                _close_database_connections()
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    self._loop.call_soon_threadsafe(_resolve, future)

        threading.Thread(target=body, daemon=True).start()
        return future

    async def _record(self, run: _Run) -> None:
        if isinstance(run.error, asyncio.CancelledError | Interrupted) and run.reason == DRAINED:
            record = self._put_back
        elif run.error is not None and run.reason == STOPPED:
            record = self._record_stop
        else:
            record = self._record_end
        if run.has_user_code or self._exc_handlers:
            await self._in_thread(partial(self._enter_record, record, run))
        else:
            await self._loop.run_in_executor(self._books, self._enter_record, record, run)

    def _enter_record(self, record: Callable[[_Run], None], run: _Run) -> None:
        try:
            record(run)
        except NotRecordedError:
            logger.error("Job %s has ended, but Redis does not know it", run.job.id)
        except BaseException:
            logger.exception("Job %s has ended, but that could not be recorded", run.job.id)

    def _record_end(self, run: _Run) -> None:
        """As in RQ's perform_job(): what goes wrong with a success makes it a failure."""
        job, queue, execution = run.job, run.queue, run.execution
        if run.error is None:
            try:
                self._finalize_success(job, queue, execution, run.value)
                return
            except NotRecordedError:
                raise
            except BaseException as error:  # noqa: BLE001  recorded as the job's failure
                run.error = error
        exc_info = (type(run.error), run.error, run.error.__traceback__)
        self._finalize_failure(job, queue, execution, exc_info)

    def _record_stop(self, run: _Run) -> None:
        """As in RQ's Worker, after it has killed the process of a job that somebody stopped."""
        job = run.job
        logger.warning("Worker %s: job %s was stopped", self.name, job.id)
        try:
            execute_stopped_callback(job, self.death_penalty_class)
        except BaseException:
            logger.exception("Worker %s: the stopped callback of job %s failed", self.name, job.id)
        job.ended_at = now()
        self._stopped_job_id = job.id
        self.handle_job_failure(
            job, run.queue, exc_string="Job stopped by user.", execution=run.execution
        )

    def _put_back(self, run: _Run) -> None:
        """To the front of its queue, as if it had never been taken.

        A rate-limited job keeps its slot, which counts queued jobs as well: given away, it would
        come back at the end. What was canceled or deleted meanwhile stays so.
        """
        job = run.job

        def write() -> None:
            try:
                is_wanted = job.get_status() == JobStatus.STARTED
            except InvalidJobOperation:
                is_wanted, job._status = False, JobStatus.CANCELED
            with self.connection.pipeline() as pipeline:
                self.cleanup_execution(job, pipeline, run.execution)
                if is_wanted:
                    job.started_at = job.worker_name = None
                    run.queue._enqueue_job(job, pipeline=pipeline, at_front=True)
                pipeline.execute()
            release_slot(job)

        self._persist(write, run)
        logger.info("Worker %s: job %s was put back", self.name, job.id)

    # RQ's last steps of a job. Each writes one transaction.

    def handle_execution_ended(self, job: Job, queue: Queue, heartbeat_ttl: int) -> None:
        # Without RQ's heartbeat for the time of the callbacks: `_beat` keeps the job alive.
        job.ended_at = now()

    def cleanup_execution(
        self, job: Job, pipeline: Pipeline, execution: Execution | None = None
    ) -> None:
        super().cleanup_execution(job, pipeline, execution)
        if not self.executions:
            self._set_idle(pipeline, is_suspended=self._is_suspended)

    def _set_idle(self, pipeline: Pipeline, *, is_suspended: bool) -> None:
        self.set_state(WorkerStatus.SUSPENDED if is_suspended else WorkerStatus.IDLE, pipeline)

    def handle_job_success(
        self,
        job: Job,
        queue: Queue,
        started_job_registry: StartedJobRegistry,
        execution: Execution,
    ) -> None:
        write = partial(super().handle_job_success, job, queue, started_job_registry, execution)
        self._persist(write, self._runs[execution.id], logs_only=False)

    def handle_job_retry(
        self,
        job: Job,
        queue: Queue,
        retry: JobRetry,
        started_job_registry: StartedJobRegistry,
        execution: Execution,
    ) -> None:
        write = partial(
            super().handle_job_retry, job, queue, retry, started_job_registry, execution
        )
        self._persist(write, self._runs[execution.id])

    def handle_job_failure(
        self,
        job: Job,
        queue: Queue,
        started_job_registry: StartedJobRegistry | None = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        fail = super().handle_job_failure
        stopped_job_id = self._stopped_job_id
        if execution is None:  # maintenance found a job that another worker has lost
            fail(job, queue, started_job_registry, exc_string)
            return

        def write() -> None:
            self._stopped_job_id = stopped_job_id
            fail(job, queue, started_job_registry, exc_string, execution)

        self._persist(write, self._runs[execution.id])

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Log a job's failure, without its arguments, and call the exception handlers."""
        logger.error("Worker %s: job %s failed", self.name, job.id, exc_info=exc_info)
        try:
            call_exception_handlers(self._exc_handlers, job, *exc_info)
        except Exception:
            logger.exception("An exception handler failed on job %s", job.id)

    def _persist(self, write: Callable[[], None], run: _Run, *, logs_only: bool = True) -> None:
        """Write how a job ended; again and again while Redis is away.

        The write takes the execution out of the started registry, in one transaction. That shows
        whether it arrived when only the answer was lost: a second write would count the job twice,
        or enqueue a retry twice. It also shows what became of the writes whose errors RQ only logs
        (``logs_only``). Raises NotRecordedError when the worker has to end first, or when Redis
        answers but does not take the write.
        """
        fields = dict(vars(run.job))
        refusals = 0
        for attempt, seconds in enumerate(self._pauses()):
            try:
                with run.lock:
                    run.is_ending = True
                    if attempt > 0 and self._has_arrived(run):
                        release_slot(run.job)
                    else:
                        vars(run.job).update(fields)
                        write()
                    if not logs_only or not self._is_running(run):
                        return
                refusals += 1
            except AWAY as error:
                logger.info("Job %s has ended, to be recorded later: %s", run.job.id, error)
            if refusals == MOST_REFUSALS or self._give_up.wait(seconds):
                raise NotRecordedError

    def _has_arrived(self, run: _Run) -> bool:
        """Whether Redis knows how the run ended; then the job gets the status that it has there."""
        # Without the job Redis has lost its memory, and gets it again by the write.
        if not self.connection.exists(run.job.key) or self._is_running(run):
            return False
        run.job.get_status()
        return True

    def _is_running(self, run: _Run) -> bool:
        # The execution itself would not do: it expires when it has no heartbeats for a while.
        key = run.job.started_job_registry.key
        return self.connection.zscore(key, run.execution.composite_key) is not None

    # Commands from outside, signals aside.

    def handle_payload(self, message: dict[str, Any]) -> None:
        """In RQ's thread that listens on this worker's channel."""
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
            logger.warning("Worker %s: command %r means nothing here", self.name, command)

    def _stop_job(self, job_id: str | None, execution_id: str | None) -> None:
        runs = [
            run
            for run in self._runs.values()
            if run.job.id == job_id and execution_id in (None, run.execution.id)
        ]
        if not runs:
            logger.warning("Worker %s: not working on job %s", self.name, job_id)
        for run in runs:
            self._interrupt(run, STOPPED)

    def _interrupt(self, run: _Run, reason: str) -> None:
        if run.performance is None or run.performance.done():
            return
        run.reason = run.reason or reason  # a job that was stopped is not put back
        if run.penalty is not None:
            run.penalty.interrupt()
        else:
            run.performance.cancel(run.reason)

    def _pubsub_exception_handler(
        self, exc: Exception, pubsub: PubSub, pubsub_thread: PubSubWorkerThread
    ) -> None:
        # RQ's own gives up on some errors, after which no job could be stopped any more.
        logger.info("Worker %s hears no commands: %s", self.name, exc)
        time.sleep(CHECK_SECONDS)

    # What is to be done regularly.

    async def _keep_checking(self) -> None:
        while not self._is_closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            self._end_when_too_large()
            await self._check()

    def _end_when_too_large(self) -> None:
        """Drain and end a process that has grown too large; its supervisor starts it anew."""
        if self.max_megabytes and self._deadline is None and megabytes() > self.max_megabytes:
            logger.warning(
                "Worker %s: more than %d MB: another one takes over", self.name, self.max_megabytes
            )
            self._stop()

    async def _check(self) -> None:
        with_heartbeats = self._loop.time() >= self._next_heartbeat
        try:
            is_suspended = await self._loop.run_in_executor(
                self._checker, self._check_in, list(self._runs.values()), with_heartbeats
            )
        except AWAY as error:
            self._note_outage(error)
            return
        except Exception:
            logger.exception("Worker %s could not check in with Redis", self.name)
            return
        if with_heartbeats:
            self._next_heartbeat = self._loop.time() + self.job_monitoring_interval
        if is_suspended != self._is_suspended:
            logger.info("Worker %s: %s", self.name, "suspended" if is_suspended else "resumed")
            self._is_suspended = is_suspended
            self._news.set()
        if self._redis_was_away:
            logger.info("Worker %s: Redis is back", self.name)
        if self._redis_was_away or self._lost_its_scheduler() or self.should_run_maintenance_tasks:
            # After an outage as well: dependents may wait, RQ's scheduler may have ended, or end
            # a moment later.
            self._redis_was_away = False
            self._maintain()

    def _lost_its_scheduler(self) -> bool:
        """Whether RQ's scheduler ran in a process of this worker's and has ended by itself.

        Without a lock it is another worker's to run: then there is nothing to begin again.
        """
        scheduler = self.scheduler
        if scheduler is None or scheduler._process is None or not scheduler.acquired_locks:
            return False
        return not scheduler._process.is_alive()

    def _note_outage(self, error: Exception) -> None:
        if not self._redis_was_away:
            logger.warning("Worker %s: Redis is away: %s", self.name, error)
        self._redis_was_away = True

    def _check_in(self, runs: Sequence[_Run], with_heartbeats: bool) -> bool:
        """Tell Redis that this worker and its jobs live; return whether workers are suspended."""
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.exists(WORKERS_SUSPENDED)
            pipeline.sismember(self.redis_workers_keys, self.key)
            pipeline.hexists(self.key, "birth")
            is_suspended, is_listed, is_born = pipeline.execute()
            is_forgotten = not (is_listed and is_born)
            if with_heartbeats or is_forgotten or self._redis_was_away:
                self._beat(runs, is_forgotten)
            if is_forgotten:
                logger.warning("Worker %s: Redis has lost it; registering again", self.name)
                pipeline.hset(self.key, mapping=self.serialize())
                register(self, pipeline)
            self.heartbeat(pipeline=pipeline)
            if self.executions:
                self.set_state(WorkerStatus.BUSY, pipeline)
            else:
                self._set_idle(pipeline, is_suspended=bool(is_suspended))
            if self._shutdown_requested_date is not None:
                date = utcformat(self._shutdown_requested_date)
                pipeline.hset(self.key, "shutdown_requested_date", date)
            pipeline.execute()
        self._enqueue_ready_jobs()
        return bool(is_suspended)

    def _beat(self, runs: Sequence[_Run], is_forgotten: bool) -> None:
        """The heartbeats of all jobs in one pipeline; what Redis has lost is entered again."""
        # A run whose lock is taken is being recorded in this moment.
        held = [run for run in runs if run.lock.acquire(blocking=False)]
        try:
            beating = [run for run in held if run.is_noted and not run.is_ending]
            self._beat_held(beating, is_forgotten)
        finally:
            for run in held:
                run.lock.release()

    def _beat_held(self, runs: Sequence[_Run], is_forgotten: bool) -> None:
        with self.connection.pipeline(transaction=False) as pipeline:
            places = []
            for run in runs:
                ttl = self.get_heartbeat_ttl(run.job)
                first = len(pipeline)
                run.execution.heartbeat(run.job.started_job_registry, ttl, pipeline)
                places.append((run, first, len(pipeline)))
                run.job.heartbeat(now(), ttl, pipeline, xx=True)
            answers = pipeline.execute()
            for run, execution_answer, job_answer in places:
                # HSET answers 1 for a new field: there was no such hash any more.
                if answers[execution_answer] == 1:
                    self._enter(run.job, run.execution, pipeline)
                if answers[job_answer] == 1 and is_forgotten:
                    run.job.save(pipeline)
                    # It may have an end that is not recorded yet.
                    pipeline.hset(run.job.key, "status", JobStatus.STARTED)
                elif answers[job_answer] == 1:
                    pipeline.delete(run.job.key)  # somebody deleted the job while it ran
            pipeline.execute()

    def _maintain(self) -> None:
        """RQ's maintenance, in a thread: failure callbacks of abandoned jobs are called in it."""
        if self._is_maintaining() or self._stopping.is_set():
            return

        def maintain() -> None:
            try:
                self.run_maintenance_tasks()  # type: ignore[no-untyped-call]
            except Exception:
                logger.exception("Worker %s: maintenance failed", self.name)
                self.last_cleaned_at = now()  # type: ignore[assignment]  # not again at once

        self._maintenance = self._in_thread(maintain)
        self._maintenance.add_done_callback(lambda _: self._news.set())

    def _is_maintaining(self) -> bool:
        return self._maintenance is not None and not self._maintenance.done()

    # The end.

    async def _drain(self) -> None:
        """Wait for the running jobs; after the deadline of a stop cancel them and put them back."""
        while self._runs and (self._deadline is None or self._loop.time() < self._deadline):
            await self._hear_news(self._deadline and self._deadline - self._loop.time())
        for run in self._runs.values():
            self._interrupt(run, DRAINED)
        await self._wait_for_runs(CLEANUP_SECONDS)
        stubborn = [
            run.task
            for run in self._runs.values()
            if run.task is not None and run.performance is not None and not run.performance.done()
        ]
        for task in stubborn:
            task.cancel()
        await self._wait_for_runs(CLEANUP_SECONDS if stubborn else 0)
        self._give_up.set()
        await self._wait_for_runs(self.connection_timeout)

    async def _wait_for_runs(self, seconds: float) -> None:
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def _call_back(self, callbacks: list[Callable[[], Awaitable[None]]], where: str) -> None:
        while callbacks:
            callback = callbacks.pop()
            try:
                async with asyncio.timeout(CLEANUP_SECONDS):
                    await callback()
            except Exception:
                logger.exception("Worker %s: a callback of %s failed", self.name, where)

    async def _clean_up(self) -> None:
        await self._call_back(_shutdown_callbacks, "on_shutdown")
        left_behind = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left_behind:
            task.cancel()
        if left_behind:
            await asyncio.wait(left_behind, timeout=CHECK_SECONDS)
        await self._loop.shutdown_asyncgens()

    def _sign_off(self) -> None:
        try:
            self.teardown()  # type: ignore[no-untyped-call]
        except AWAY as error:
            logger.warning("Worker %s could not sign off: %s", self.name, error)
        finally:
            if self.pubsub_thread is not None:
                self.pubsub_thread.stop()


def _import_ahead() -> None:
    """Import what the jobs will need (setting WORKER_IMPORTS): later it would hold up the loop."""
    for name in getattr(settings, "WORKER_IMPORTS", ()) if settings.configured else ():
        import_module(name)


def _setting(name: str, default: int) -> int:
    value: int = getattr(settings, name, default) if settings.configured else default
    return value


def megabytes() -> float:
    """The resident memory of this process; 0 where the system does not tell (not Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _close_database_connections() -> None:
    if settings.configured:
        connections.close_all()
