"""Lease, stop flag and acceptance of a run in Redis. All may be lost at any time.

run:<id>:lease     the attempt whose worker is alive; expires LEASE_SECONDS after its last renewal
run:<id>:stop      set when a user has asked to stop the run
run:<id>:accepted  the attempt whose request the provider has accepted and not ended by an error
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from django.conf import settings

from chatproject.lib.redis.clients import sync_client

LEASE_SECONDS = float(settings.RUN_LEASE_SECONDS)
RENEW_SECONDS = LEASE_SECONDS / 3
LEASE_MILLISECONDS = int(LEASE_SECONDS * 1000)

# Log and stop flag of a running run outlive its time limit by an hour.
KEY_SECONDS = settings.RUN_SECONDS + 3600


def lease_key(run_id: UUID) -> str:
    return f"run:{run_id}:lease"


def stop_key(run_id: UUID) -> str:
    return f"run:{run_id}:stop"


def accepted_key(run_id: UUID) -> str:
    return f"run:{run_id}:accepted"


def request_stop(run_id: UUID) -> None:
    """Set the stop flag, which the worker of the run polls. Raises redis.RedisError."""
    sync_client().set(stop_key(run_id), 1, ex=KEY_SECONDS)


def stop_requested(run_ids: Sequence[UUID]) -> set[UUID]:
    """Return the runs whose stop flag is set. Raises redis.RedisError."""
    return _with_key(stop_key, run_ids)


def leased_runs(run_ids: Sequence[UUID]) -> set[UUID]:
    """Return the runs that have a live worker. Raises redis.RedisError."""
    return _with_key(lease_key, run_ids)


def accepted_attempts(run_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return the attempt whose request is accepted, of each run that has one. Raises redis.RedisError."""
    values = _values(accepted_key, run_ids)
    return {run_id: int(value) for run_id, value in zip(run_ids, values, strict=True) if value}


def _with_key(key: Callable[[UUID], str], run_ids: Sequence[UUID]) -> set[UUID]:
    values = _values(key, run_ids)
    return {run_id for run_id, value in zip(run_ids, values, strict=True) if value is not None}


def _values(key: Callable[[UUID], str], run_ids: Sequence[UUID]) -> Any:
    return sync_client().mget([key(run_id) for run_id in run_ids]) if run_ids else []
