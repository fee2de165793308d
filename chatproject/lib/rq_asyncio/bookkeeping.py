"""RQ's records of a worker and its jobs, written so that an outage neither loses nor doubles one.

Everything here blocks, and is called in threads. While Redis is unreachable a record waits: that a
job has begun until the worker is to stop (`insist`), that it has ended until the worker gives up
(`persist`). A write whose answer was lost may have arrived all the same and is not simply repeated
(`NoRetry`, `persist`): a job must not count twice, nor a retry be enqueued twice.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry
from rq.callbacks import execute_stopped_callback
from rq.exceptions import InvalidJobOperation
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job, JobStatus
from rq.rate_limit import release_slot
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import now, utcformat
from rq.worker import BaseWorker, WorkerStatus
from rq.worker_registration import register

from chatproject.lib.redis import UNREACHABLE
from chatproject.lib.rq_asyncio.job_run import DRAINED, STOPPED, JobRun
from chatproject.lib.rq_asyncio.plain_functions import Interrupted

logger = logging.getLogger(__name__)

MAX_REFUSALS = 3  # attempts to record a job's end that Redis answers but does not take

# The state of a worker without jobs, by whether workers are suspended.
IDLE_STATES = {False: WorkerStatus.IDLE, True: WorkerStatus.SUSPENDED}

T = TypeVar("T")


class NotRecordedError(Exception):
    """The worker had to go on before Redis took the record of a job's start or end."""


class NoRetry(Retry):
    """Raises a lost connection as it is, for commands whose answer may be all that was lost.

    redis-py repeats commands. And when the connection was watching keys it reports a WatchError,
    after which RQ writes its transaction again: the job would count twice.
    """

    def __init__(self) -> None:
        super().__init__(NoBackoff(), 0)

    def call_with_retry(
        self, do: Callable[[], T], fail: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> T:
        def disconnect(*error: Any) -> None:
            with suppress(redis.WatchError):
                fail(*error)

        return super().call_with_retry(do, disconnect, *args, **kwargs)


class Bookkeeping:
    """RQ's records of one worker: how jobs begin, live and end, and that the worker lives."""

    def __init__(self, worker: BaseWorker) -> None:
        self.stopping = threading.Event()  # set: the starts of jobs are no longer insisted on
        self.giving_up = threading.Event()  # set: the ends of jobs are no longer insisted on
        self.is_suspended = False  # whether workers are suspended, as of the last check-in
        self._worker = worker

    def pauses(self) -> Iterator[float]:
        """Yield the seconds to wait before each next attempt to reach Redis (exponential backoff)."""
        seconds, factor = 0.1, self._worker.exponential_backoff_factor
        while True:
            yield seconds
            seconds = min(seconds * factor, self._worker.max_connection_wait_time)

    def insist(self, step: Callable[[], T]) -> T:
        """Repeat an idempotent step while Redis is unreachable.

        Raises NotRecordedError when the worker is to stop meanwhile.
        """
        pauses = self.pauses()
        while True:
            try:
                return step()
            except UNREACHABLE as error:
                if self.stopping.wait(next(pauses)):
                    raise NotRecordedError("Redis is unreachable") from error

    def note_start(self, run: JobRun) -> None:
        """Record that a job has begun. Raises NotRecordedError; see `insist`.

        As RQ's prepare_execution and prepare_job_execution, but in one transaction, as a caller
        waits for the job. The worker's own heartbeat comes with `check_in`.
        """

        def write(pipeline: Pipeline) -> None:
            # The job may have been deleted already: half of it must not be written again.
            exists = pipeline.exists(run.job.key)
            pipeline.multi()
            self._enter(run.job, run.execution, pipeline)
            self._worker.set_state(WorkerStatus.BUSY, pipeline)
            if exists:
                run.job.prepare_for_execution(self._worker.name, pipeline)
                pipeline.persist(run.job.key)
            pipeline.lrem(run.queue.intermediate_queue_key, 1, run.job.id)

        with run.lock:
            self.insist(lambda: self._worker.connection.transaction(write, run.job.key))
            run.is_noted = True

    def note_late_start(self, run: JobRun) -> None:
        """Record that a coroutine has begun, after it has; a failure is logged."""
        try:
            self.note_start(run)
        except NotRecordedError:
            logger.warning("Job %s has begun, but Redis has no record of it", run.job.id)
        except BaseException:
            logger.exception("Job %s has begun, but recording that failed", run.job.id)

    def _enter(self, job: Job, execution: Execution, pipeline: Pipeline) -> None:
        """Write the execution to every place that RQ's Execution.create() writes it to."""
        ttl = self._worker.get_heartbeat_ttl(job)
        execution.save(ttl=ttl, pipeline=pipeline)
        ExecutionRegistry(job.id, connection=pipeline).add(execution, ttl, pipeline)
        job.started_job_registry.add_execution(execution, pipeline=pipeline, ttl=ttl)
        pipeline.sadd(self._worker.executions_key, execution.composite_key)
        pipeline.expire(self._worker.executions_key, ttl + 60)

    def record_end(self, run: JobRun) -> None:
        """Record how a run ended; a failure to do so is logged."""
        if isinstance(run.error, asyncio.CancelledError | Interrupted) and run.reason == DRAINED:
            record = self._put_back
        elif run.error is not None and run.reason == STOPPED:
            record = self._record_stop
        else:
            record = self._record_result
        try:
            record(run)
        except NotRecordedError:
            logger.error("Job %s has ended, but Redis has no record of it", run.job.id)
        except BaseException:
            logger.exception("Job %s has ended, but recording that failed", run.job.id)

    def _put_back(self, run: JobRun) -> None:
        """Put a job back to the front of its queue, as if it had never been dequeued.

        A rate-limited job keeps its slot, which counts queued jobs as well: without the slot it
        would come back at the end. A job canceled or deleted meanwhile stays so.
        """
        job = run.job

        def write() -> None:
            try:
                is_wanted = job.get_status() == JobStatus.STARTED
            except InvalidJobOperation:
                is_wanted, job._status = False, JobStatus.CANCELED
            with self._worker.connection.pipeline() as pipeline:
                self._worker.cleanup_execution(job, pipeline, run.execution)
                if is_wanted:
                    job.started_at = job.worker_name = None
                    run.queue._enqueue_job(job, pipeline=pipeline, at_front=True)
                pipeline.execute()

        self.persist(write, run)
        logger.info("Worker %s: job %s was put back", self._worker.name, job.id)

    def _record_stop(self, run: JobRun) -> None:
        """As RQ's Worker, after it has killed the process of a job that a command stopped."""
        job, worker = run.job, self._worker
        logger.warning("Worker %s: job %s was stopped", worker.name, job.id)
        try:
            execute_stopped_callback(job, worker.death_penalty_class)
        except BaseException:
            logger.exception("Worker %s: the stopped callback of %s failed", worker.name, job.id)
        job.ended_at = now()
        worker._stopped_job_id = job.id
        worker.handle_job_failure(
            job, run.queue, exc_string="Job stopped by user.", execution=run.execution
        )

    def _record_result(self, run: JobRun) -> None:
        """As RQ's perform_job(): an error while a success is recorded makes it a failure."""
        job, queue, execution = run.job, run.queue, run.execution
        if run.error is None:
            try:
                self._worker._finalize_success(job, queue, execution, run.value)
                return
            except NotRecordedError:
                raise
            except BaseException as error:  # noqa: BLE001  recorded as the job's failure
                run.error = error
        exc_info = (type(run.error), run.error, run.error.__traceback__)
        self._worker._finalize_failure(job, queue, execution, exc_info)

    def persist(self, write: Callable[[], None], run: JobRun, *, logs_only: bool = True) -> None:
        """Write how a job ended; again and again while Redis is unreachable.

        The write takes the execution out of the started registry, in one transaction. That shows
        whether it arrived when only the answer was lost: a second write would count the job twice,
        or enqueue a retry twice. It also shows the outcome of writes whose errors RQ only logs
        (``logs_only``). Then dependents and the rate limit follow, until Redis has taken that too.
        Raises NotRecordedError when the worker has to end first, or when Redis answers but does not
        take the write.
        """
        fields = dict(vars(run.job))
        refusals, is_recorded = 0, False
        for attempt, seconds in enumerate(self.pauses()):
            try:
                with run.lock:
                    run.is_ending = True
                    is_repeated = attempt > 0
                    is_recorded = is_recorded or (is_repeated and self._has_arrived(run))
                    if not is_recorded:
                        is_repeated = False
                        vars(run.job).update(fields)
                        write()
                        is_recorded = not logs_only or not self._is_started(run)
                    if is_recorded:
                        if is_repeated or logs_only:
                            self._follow_up(run)
                        return
                refusals += 1
            except UNREACHABLE as error:
                logger.info("Job %s has ended; recording it is retried: %s", run.job.id, error)
            except redis.ResponseError as error:
                refusals += 1  # never the job's own failure
                logger.warning("Job %s has ended; Redis refuses that: %s", run.job.id, error)
            if refusals == MAX_REFUSALS or self.giving_up.wait(seconds):
                raise NotRecordedError

    def _has_arrived(self, run: JobRun) -> bool:
        """Return whether Redis has the run's end; then set the job's status from there."""
        # Without the job Redis has lost its memory: the write restores the record.
        if not self._worker.connection.exists(run.job.key) or self._is_started(run):
            return False
        try:
            run.job.get_status()
        except InvalidJobOperation:  # lost just now, or only a heartbeat is left of it
            return False
        return True

    def _follow_up(self, run: JobRun) -> None:
        """Enqueue the dependents of a failed job, and free its slot; both may be repeated.

        The dependents of a finished job are moved by its record (see `enqueue_ready_jobs`).
        """
        job = run.job
        if job.get_status(refresh=False) in (JobStatus.FAILED, JobStatus.STOPPED):
            try:
                run.queue.enqueue_dependents(job)
            except UNREACHABLE:
                raise
            except Exception:
                logger.exception("The dependents of job %s could not be enqueued", job.id)
        release_slot(job)

    def _is_started(self, run: JobRun) -> bool:
        # The execution's own key is no proof: it expires without heartbeats.
        key = run.job.started_job_registry.key
        return self._worker.connection.zscore(key, run.execution.composite_key) is not None

    def check_in(self, runs: Sequence[JobRun], with_heartbeats: bool) -> None:
        """Record that this worker and its jobs live; read whether workers are suspended.

        A Redis that has lost its memory gets the worker and its jobs again.
        """
        worker = self._worker
        with worker.connection.pipeline(transaction=False) as pipeline:
            pipeline.exists(WORKERS_SUSPENDED)
            pipeline.sismember(worker.redis_workers_keys, worker.key)
            pipeline.hexists(worker.key, "birth")
            is_suspended, is_listed, is_born = pipeline.execute()
            is_forgotten = not (is_listed and is_born)
            if with_heartbeats or is_forgotten:
                self._beat(runs, is_forgotten)
            if is_forgotten:
                logger.warning("Worker %s is missing in Redis; registering again", worker.name)
                pipeline.hset(worker.key, mapping=worker.serialize())
                register(worker, pipeline)
            worker.heartbeat(pipeline=pipeline)
            idle = IDLE_STATES[bool(is_suspended)]
            worker.set_state(WorkerStatus.BUSY if worker.executions else idle, pipeline)
            if worker._shutdown_requested_date is not None:
                date = utcformat(worker._shutdown_requested_date)
                pipeline.hset(worker.key, "shutdown_requested_date", date)
            pipeline.execute()
        self.enqueue_ready_jobs()
        self.is_suspended = bool(is_suspended)

    def _beat(self, runs: Sequence[JobRun], is_forgotten: bool) -> None:
        """Write the heartbeats of all jobs in one pipeline, and again what Redis has lost of them."""
        worker = self._worker
        with ExitStack() as locks, worker.connection.pipeline(transaction=False) as pipeline:
            beats = []
            for run in runs:
                if not run.lock.acquire(blocking=False):
                    continue  # its start or end is being recorded right now
                locks.callback(run.lock.release)
                if run.is_noted and not run.is_ending:
                    ttl = worker.get_heartbeat_ttl(run.job)
                    first = len(pipeline)
                    run.execution.heartbeat(run.job.started_job_registry, ttl, pipeline)
                    beats.append((run, first, len(pipeline)))
                    run.job.heartbeat(now(), ttl, pipeline, xx=True)
            answers = pipeline.execute()
            for run, execution_answer, job_answer in beats:
                # HSET answers 1 for a new field: the hash had expired or was deleted.
                if answers[execution_answer] == 1:
                    self._enter(run.job, run.execution, pipeline)
                if answers[job_answer] == 1 and is_forgotten:
                    run.job.save(pipeline)
                    # It may have an end that is not recorded yet.
                    pipeline.hset(run.job.key, "status", JobStatus.STARTED)
                elif answers[job_answer] == 1:
                    pipeline.delete(run.job.key)  # the job was deleted while it ran
            pipeline.execute()

    def enqueue_ready_jobs(self) -> bool:
        """Enqueue dependents that RQ left behind when two parents ended at once.

        RQ's own maintenance would take minutes. Returns whether there were any.
        """
        enqueued = [queue.ready_job_registry.cleanup() for queue in self._worker.queues]
        return any(enqueued)
