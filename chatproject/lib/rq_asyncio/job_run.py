"""One job in a worker, from its dequeue to the record of its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from rq.executions import Execution
from rq.job import Job, _current_job
from rq.queue import Queue
from rq.timeouts import JobTimeoutException

from chatproject.lib import log_context
from chatproject.lib.rq_asyncio.plain_functions import ThreadDeathPenalty, timeout_message

STOPPED = "stopped"
"""Message of the CancelledError of a job that a command stops (`send_stop_job_command`)."""

DRAINED = "drained"
"""Message of the CancelledError of a job that still runs at the end of the drain time."""


@dataclass(slots=True, eq=False)
class JobRun:
    """A job in this worker: how it is performed, how it ends, and how far its records are."""

    job: Job
    queue: Queue
    execution: Execution
    time_limit: float  # seconds; none when not above 0
    coroutine: Callable[..., Awaitable[Any]] | None = None  # None: job.perform() in a thread
    penalty: ThreadDeathPenalty | None = None  # of a plain function
    value: Any = None
    # None after a return. Starts as if cancelled: a task may be cancelled before its first step.
    error: BaseException | None = field(default_factory=asyncio.CancelledError)
    reason: str | None = None  # of an interruption: STOPPED or DRAINED
    performance: asyncio.Future[None] | None = None  # None: the job could not even be prepared
    task: asyncio.Task[None] | None = None  # sees the run through to the record of its end
    lock: threading.Lock = field(default_factory=threading.Lock)  # of its records: no heartbeats
    is_noted: bool = False  # its start is recorded in Redis: no heartbeats before
    is_ending: bool = False  # its end is being recorded: no heartbeats any more

    @property
    def has_user_code(self) -> bool:
        """Whether recording its end calls functions (or waits for servers) that the job names."""
        job = self.job
        on_end = job._success_callback_name or job._failure_callback_name or job.webhooks
        return bool(on_end or job._stopped_callback_name)

    @property
    def is_performing(self) -> bool:
        """Whether the job's own function still runs."""
        return self.performance is not None and not self.performance.done()

    async def await_coroutine(self) -> None:
        """Await the coroutine function; for a task of its own.

        No exception leaves it, as some (SystemExit, KeyboardInterrupt) would end the loop.
        """
        _current_job.set(self.job)
        log_context.begin_job(self.job.meta)
        assert self.coroutine is not None
        try:
            async with asyncio.timeout(self.time_limit if self.time_limit > 0 else None) as timeout:
                self.value = await self.coroutine(*self.job.args, **self.job.kwargs)
            self.error = None
        except BaseException as error:  # noqa: BLE001  recorded as the job's failure
            self.error = error
            if isinstance(error, TimeoutError) and timeout.expired():
                self.error = JobTimeoutException(timeout_message(self.time_limit))
                self.error.__cause__ = error

    def call_function(self) -> None:
        """Call the plain function, in a thread of its own. Never raises."""
        assert self.penalty is not None
        log_context.begin_job(self.job.meta)
        try:
            with self.penalty:
                value = self.job.perform()
        except BaseException as error:  # noqa: BLE001  recorded as the job's failure
            self.error = error
        else:
            self.value, self.error = value, None

    def interrupt(self, reason: str) -> None:
        """Cancel the performance, if it has not ended, for STOPPED or DRAINED."""
        if not self.is_performing:
            return
        self.reason = self.reason or reason  # a stopped job is not put back by a later drain
        if self.penalty is not None:
            self.penalty.interrupt()
        elif self.performance is not None:
            self.performance.cancel(self.reason)
