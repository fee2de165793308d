"""RQ's worker on asyncio: hundreds of jobs at once in one process. README.md: how a job travels."""

from __future__ import annotations

from chatproject.lib.rq_asyncio.job_run import DRAINED, STOPPED
from chatproject.lib.rq_asyncio.worker import AsyncWorker, on_shutdown, on_start

__all__ = ["DRAINED", "STOPPED", "AsyncWorker", "on_shutdown", "on_start"]
