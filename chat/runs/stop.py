"""Stopping a run: requests it of the worker, or ends a run that no worker has at once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from uuid import UUID

import redis

from chat import access, protocol
from chat.errors import ChatError
from chat.models import Run
from chat.runs import finish, next_message, queue, wait_estimate
from chat.streaming import log as run_log
from chat.streaming.leases import request_stop
from chatproject.lib import db

if TYPE_CHECKING:
    from accounts.models import ApiKey, User

logger = logging.getLogger(__name__)


def stop_run(*, user: User, run_id: UUID) -> None:
    """Ask a run to stop; its text so far is kept. A run that has ended stays as it is.

    A worker sees the request within 300 ms. Raises ChatError `not_found`, `not_allowed`, or
    `unavailable` when Redis did not take the request.
    """
    run = access.run(user, run_id, write=True)
    if not run.has_ended:
        _stop(run)


def stop_calls_of(*, key: ApiKey, **_signal: Any) -> None:
    """Stop the calls that a revoked key has in flight: their replies go to its holder. The receiver of `key_revoked`."""
    calls = Run.objects.active().filter(user=key.user_id, model_snapshot__api__key=key.pk)
    for run_id in list(calls.values_list("pk", flat=True)):
        try:
            stop_run(user=key.user, run_id=run_id)
        except ChatError as error:
            logger.warning("call %s of a revoked key goes on: %s", run_id, error.code)


def stop_run_by_staff(run_id: UUID) -> bool:
    """Stop a run of any user, who reads that staff did it; return False for a run that has ended.

    A reply without a word is then not charged. Raises ChatError `unavailable` like `stop_run`.
    """
    return _stop_for(run_id, Run.STOPPED_BY_STAFF)


def stop_interrupted(run_id: UUID) -> bool:
    """Stop the run of a call whose answer this process can no longer deliver; it is not charged.

    Returns and raises like `stop_run_by_staff`.
    """
    return _stop_for(run_id, Run.INTERRUPTED)


def _stop_for(run_id: UUID, code: str) -> bool:
    active = Run.objects.active().filter(pk=run_id)
    if not active.update(error_code=code):
        return False
    try:
        _stop(Run.objects.get(pk=run_id))
    except ChatError:
        active.update(error_code="")
        raise
    return True


def _stop(run: Run) -> None:
    text, reasoning = run.prefix, run.prefix_reasoning
    if run.attempt:
        try:
            written = run_log.read_reply(run.id, run.attempt)
        except redis.RedisError as error:
            logger.warning("the log of run %s could not be read: %s", run.id, error)
        else:
            text, reasoning = written.text or text, written.reasoning or reasoning
    outcome = finish.Outcome(status=Run.Status.STOPPED, text=text, reasoning=reasoning)
    ended = finish.end(
        run_id=run.id,
        attempt=run.attempt,
        status=Run.Status.QUEUED,  # no worker has it: then it ends at once, with its earlier text
        seq=protocol.first_seq(run.attempt + 1),
        outcome=outcome,
    )
    try:
        if ended is None:
            request_stop(run.id)
        else:
            run_log.publish_end(ended)
            queue.withdraw(run.user_id, run.id, run.attempt + 1)
    except redis.RedisError as error:
        if ended is None:
            raise ChatError("unavailable", retry_after=wait_estimate.RETRY_AFTER) from error
        logger.warning("the stop of run %s could not be announced: %s", run.id, error)
    if outcome.has_next:
        db.after_response(next_message.proceed, run.conversation_id)
