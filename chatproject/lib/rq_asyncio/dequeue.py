"""Takes jobs out of RQ's queues; for the one thread that does so."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

from rq.exceptions import DequeueTimeout
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.worker import BaseWorker

from chatproject.lib.rq_asyncio.bookkeeping import Bookkeeping, NotRecordedError
from chatproject.lib.rq_asyncio.job_run import JobRun
from chatproject.lib.rq_asyncio.plain_functions import ThreadDeathPenalty

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Dequeuer:
    """Takes jobs from a worker's queues and makes each ready to run.

    Coroutine functions are passed to ``begin`` at once, since a caller waits for them; their start
    is recorded afterwards. That of a plain function is recorded before it begins.
    """

    worker: BaseWorker
    bookkeeping: Bookkeeping
    begin: Callable[[JobRun], object]

    def take(self, burst: bool) -> JobRun | None:
        """Return the next job, None when none arrived within the worker's dequeue_timeout.

        With ``burst`` it does not wait. Raises the errors of a Redis that is unreachable.
        """
        worker, bookkeeping = self.worker, self.bookkeeping
        try:
            found = worker.queue_class.dequeue_any(
                worker._ordered_queues,
                None if burst else worker.dequeue_timeout,
                connection=worker.connection,
                job_class=worker.job_class,
                serializer=worker.serializer,
                death_penalty_class=worker.death_penalty_class,
            )
        except DequeueTimeout:
            return None
        if found is None:
            return self.take(burst) if bookkeeping.enqueue_ready_jobs() else None
        job, queue = found
        try:
            if bookkeeping.stopping.is_set() or bookkeeping.is_suspended:
                bookkeeping.insist(partial(undo_dequeue, job, queue))
                return None
            worker.reorder_queues(queue)
            # No line of its own by default: a run's end has one, and so has a job that fails.
            logger.debug("Worker %s: %s: %s", worker.name, queue.name, job.id)
            return self._prepare(job, queue)
        except NotRecordedError:
            logger.error("Job %s was dequeued, but Redis has no record of it", job.id)
            return None

    def _prepare(self, job: Job, queue: Queue) -> JobRun:
        worker, bookkeeping = self.worker, self.bookkeeping
        job.redis_server_version = bookkeeping.insist(worker.get_redis_server_version)
        execution = Execution(uuid4().hex, job.id, worker.connection, worker.name)
        worker.executions[execution.id] = execution
        # Not left to the record of the start: Redis may lose that, or the job, before the end.
        job.started_at = execution.created_at
        run = JobRun(job, queue, execution, job.timeout or worker.queue_class.DEFAULT_TIMEOUT)
        try:
            function = job.func  # reads the arguments as well, and imports the module
        except BaseException as error:  # noqa: BLE001  recorded as the job's failure
            run.error = error
        else:
            if inspect.iscoroutinefunction(function):
                run.coroutine = function
                self.begin(run)
                return run
            run.penalty = ThreadDeathPenalty(run.time_limit)
        try:
            bookkeeping.note_start(run)
        except NotRecordedError:
            raise
        except BaseException as error:  # noqa: BLE001  recorded as the job's failure
            run.penalty, run.error = None, error
        return run


def undo_dequeue(job: Job, queue: Queue) -> None:
    """Put a job back that arrived after the worker had stopped taking jobs."""
    with queue.connection.pipeline() as pipeline:
        pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
        queue.push_job_id(job.id, pipeline=pipeline, at_front=True)
        pipeline.execute()
