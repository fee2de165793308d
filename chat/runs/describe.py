"""A run as its user sees it when it is asked for, found again, or waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import redis
from django.db.models import QuerySet

from chat import access, protocol
from chat.models import Message, Run
from chat.rendering.message import message_html
from chat.runs import queue

if TYPE_CHECKING:
    from accounts.models import User


@dataclass(frozen=True, slots=True)
class Started:
    """A run, new or (`is_new` false) found again by its client_id.

    `sent` is the user's message that it answers; `event` describes the run to its followers.
    """

    run: Run
    sent: Message | None
    is_new: bool
    event: protocol.RunQueued


def whole_runs() -> QuerySet[Run]:
    """Return runs with everything that `describe` reads, in one query."""
    return Run.objects.select_related("conversation__assistant", "message__parent", "model")


def describe_stored(run: Run) -> Started:
    """Describe a run that was stored by an earlier request."""
    return describe(run, _position(run), is_new=False)


def _position(run: Run) -> queue.Position | None:
    """Return where a run waits; None when it does not wait, or while Redis is unreachable."""
    if run.status != Run.Status.QUEUED:
        return None
    try:
        return queue.position(run)
    except redis.RedisError:
        return None


def describe(run: Run, position: queue.Position | None, *, is_new: bool) -> Started:
    """Describe a run to the socket that asked for it and to the user's other tabs."""
    reply, sent = run.message, run.message.parent
    reply.run = run
    return Started(
        run=run,
        sent=sent,
        is_new=is_new,
        event=protocol.RunQueued(
            run=run.id,
            conversation=run.conversation_id,
            client_id=run.client_id,
            position=position.number if position else 0,
            eta=position.eta if position else None,
            held=position is not None and position.is_throttled,
            parent=sent.parent_id if sent else None,
            sent=protocol.Rendered(id=sent.id, html=message_html(sent)) if sent else None,
            reply=protocol.Rendered(id=reply.id, html=message_html(reply)),
            most=run.most,
            max_tokens=run.max_tokens,
            shortened=run.shortened,
        ),
    )


def queue_status(*, user: User, run_id: UUID) -> protocol.RunQueued | protocol.RunWaiting | None:
    """Return the event that a client needs which begins to follow a queued run; None for others.

    A run that waits for a further attempt was described at its first: only its position is sent.
    Raises ChatError `not_found`.
    """
    run = access.run(user, run_id)
    if run.status != Run.Status.QUEUED:
        return None
    if run.attempt == 0:
        return describe_stored(whole_runs().get(pk=run_id)).event
    return waiting_event(run, _position(run))


def waiting_event(run: Run, position: queue.Position | None) -> protocol.RunWaiting:
    """Return the event with a queued run's position."""
    return protocol.RunWaiting(
        run=run.pk,
        attempt=run.attempt + 1,
        position=position.number if position else 0,
        eta=position.eta if position else None,
        held=position is not None and position.is_throttled,
    )
