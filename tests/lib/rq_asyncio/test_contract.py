"""The inner names of RQ and redis-py that production relies on, with their signatures.

None is a documented API. An upgrade that changes one fails here, and not in production: read what
the package makes of it, then change the list.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job
from rq.scheduler import RQScheduler
from rq.timeouts import BaseDeathPenalty
from rq.worker import BaseWorker

import chatproject

PROJECT = Path(chatproject.__file__).parents[1]

NAMES = """
rq.job:_current_job
rq.executions:WORKER_EXECUTIONS_KEY_TEMPLATE
rq.suspension:WORKERS_SUSPENDED
rq.registry:StartedJobRegistry.death_penalty_class
rq.worker:BaseWorker.exponential_backoff_factor
rq.worker:BaseWorker.max_connection_wait_time
rq.worker:BaseWorker.work burst logging_level date_format log_format max_jobs max_idle_time with_scheduler dequeue_strategy
rq.worker:BaseWorker.request_stop signum frame
rq.worker:BaseWorker.handle_payload message
rq.worker:BaseWorker._pubsub_exception_handler exc pubsub pubsub_thread
rq.worker:BaseWorker.handle_execution_ended job queue heartbeat_ttl
rq.worker:BaseWorker.handle_job_success job queue started_job_registry execution
rq.worker:BaseWorker.handle_job_retry job queue retry started_job_registry execution
rq.worker:BaseWorker.handle_job_failure job queue started_job_registry exc_string execution
rq.worker:BaseWorker._enqueue_dependents_safely queue job
rq.worker:BaseWorker._release_slot_safely job
rq.worker:BaseWorker.handle_exception job exc_info
rq.worker:BaseWorker.cleanup_execution job pipeline execution
rq.worker:BaseWorker.teardown
rq.worker:BaseWorker.bootstrap logging_level date_format log_format
rq.worker:BaseWorker._start_scheduler burst logging_level date_format log_format
rq.worker:BaseWorker._finalize_success job queue execution return_value
rq.worker:BaseWorker._finalize_failure job queue execution exc_info
rq.worker:BaseWorker.get_heartbeat_ttl job working_time
rq.worker:BaseWorker.get_redis_server_version
rq.worker:BaseWorker.heartbeat timeout pipeline
rq.worker:BaseWorker.reorder_queues reference_queue
rq.worker:BaseWorker.run_maintenance_tasks
rq.worker:BaseWorker.serialize
rq.worker:BaseWorker.set_state state pipeline
rq.worker_registration:register worker pipeline
rq.worker_registration:get_keys queue connection
rq.queue:Queue.dequeue_any queues timeout connection job_class serializer death_penalty_class
rq.queue:Queue.push_job_id job_id pipeline at_front
rq.queue:Queue._enqueue_job job pipeline at_front unique
rq.job:Job.heartbeat timestamp ttl pipeline xx
rq.job:Job.prepare_for_execution worker_name pipeline
rq.executions:Execution.save ttl pipeline
rq.executions:Execution.heartbeat started_job_registry ttl pipeline
rq.executions:ExecutionRegistry.add execution ttl pipeline xx
rq.registry:StartedJobRegistry.add_execution execution pipeline ttl xx
rq.registry:ReadyJobRegistry.cleanup timestamp exception_handlers
rq.callbacks:execute_stopped_callback job death_penalty_class
rq.job_lifecycle:call_exception_handlers handlers job exc_info
rq.command:parse_payload payload
rq.rate_limit:release_slot job
rq.rate_limit:RateLimitRegistry.register concurrency pipeline
rq.rate_limit:RateLimitRegistry.add_to_rate_limited job_id pipeline timestamp
rq.rate_limit:RateLimitRegistry.acquire_and_enqueue concurrency enqueued_at pipeline
rq.timeouts:BaseDeathPenalty.setup_death_penalty
rq.timeouts:BaseDeathPenalty.cancel_death_penalty
redis.retry:Retry.call_with_retry do fail is_retryable with_failure_count
"""

ATTRIBUTES = {
    "worker": "_dequeue_strategy _exc_handlers _ordered_queues _shutdown_requested_date _stopped_job_id "
    "connection_timeout death_penalty_class executions executions_key job_monitoring_interval "
    "last_cleaned_at pubsub_thread redis_workers_keys scheduler should_run_maintenance_tasks",
    "job": "_failure_callback_name _status _stopped_callback_name _success_callback_name ended_at "
    "redis_server_version started_at started_job_registry timeout webhooks worker_name",
    "queue": "intermediate_queue_key ready_job_registry redis_queues_keys",
    "execution": "composite_key key",
    "scheduler": "_process acquired_locks",
    "death_penalty": "_timeout",
}


def make_objects() -> dict[str, Any]:
    connection = Redis()  # opens no connection
    return {
        "worker": BaseWorker([], connection=connection, prepare_for_work=False),
        "job": Job(connection=connection),
        "queue": Queue("chat", connection=connection),
        "execution": Execution("1", "job", connection),
        "scheduler": RQScheduler([], connection=connection),
        "death_penalty": BaseDeathPenalty(1),
    }


@pytest.mark.parametrize("line", NAMES.strip().splitlines())
def test_name_has_its_signature(line):
    name, *parameters = line.split()
    found = resolve_name(name)
    names = list(inspect.signature(found).parameters) if inspect.isroutine(found) else []
    assert [name for name in names if name != "self"] == parameters


@pytest.mark.parametrize("owner", ATTRIBUTES)
def test_object_has_its_attributes(owner):
    attrgetter(*ATTRIBUTES[owner].split())(make_objects()[owner])


def test_private_names_in_use_are_listed():
    """The private names of RQ, in all files that import it."""
    nodes = nodes_of("accounts", "billing", "chat", "chatproject")
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used = {name for name in attributes if re.match("_[^_]", name)}
    foreign = {name for name in used for owner in make_objects().values() if hasattr(owner, name)}
    assert foreign <= set(re.findall(r"\w+", " ".join((NAMES, *ATTRIBUTES.values()))))


def test_package_imports_nothing_else_of_the_project():
    """So that it can be published, with small modules that stand alone themselves."""
    own = "chatproject.lib."
    small = ("rq_asyncio.", "redis", "env", "loop_monitor", "log_context", "metrics")
    allowed = tuple(own + name for name in small)
    for node in nodes_of("chatproject/lib/rq_asyncio"):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("chat"):
            assert all(f"{node.module}.{each.name}".startswith(allowed) for each in node.names)


def nodes_of(*folders: str) -> Iterator[ast.AST]:
    """All nodes of the files below folders that import RQ or belong to the package."""
    wanted = re.compile(r"^(from|import) (rq|django_rq)\b", re.MULTILINE)
    for folder in folders:
        for path in (PROJECT / folder).rglob("*.py"):
            source = path.read_text()
            if "rq_asyncio" in path.parts or wanted.search(source):
                yield from ast.walk(ast.parse(source))
