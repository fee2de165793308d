"""Events that describe a queued run to its user: when it is stored, found again, or still queued."""

from __future__ import annotations

from dataclasses import dataclass

import redis
from django.db.models import QuerySet

from chat import protocol
from chat.conversations import branches
from chat.models import Run
from chat.rendering.message import message_html
from chat.runs import queue


@dataclass(frozen=True, slots=True)
class Started:
    """A run, new or (`is_new` false) found again by its client_id.

    `event` describes it to its followers.
    """

    run: Run
    is_new: bool
    event: protocol.RunQueued


def whole_runs() -> QuerySet[Run]:
    """Return runs with everything that `describe` reads, in one query."""
    return Run.objects.select_related("conversation__assistant", "message__parent", "model")


def stored_position(run: Run) -> queue.Position | None:
    """Return the position of a run; None when it is not queued, or while Redis is unreachable."""
    if run.status != Run.Status.QUEUED:
        return None
    try:
        return queue.position(run)
    except redis.RedisError:
        return None


def describe(
    run: Run, position: queue.Position | None, *, is_new: bool, has_siblings: bool = True
) -> Started:
    """Describe a run to the socket that asked for it and to the user's other tabs.

    Unless its messages cannot have siblings, their siblings are read by one query.
    """
    reply, sent = run.message, run.message.parent
    reply.run = run
    reply.is_compared = run.compared > 0
    if has_siblings:
        branches.read_siblings([reply, sent] if sent else [reply])
    return Started(
        run=run,
        is_new=is_new,
        event=protocol.RunQueued(
            run=run.id,
            conversation=run.conversation_id,
            client_id=run.client_id,
            position=position.number if position else 0,
            eta=position.eta if position else None,
            held=position is not None and position.is_throttled,
            busy=position is not None and position.is_provider_busy,
            parent=sent.parent_id if sent else None,
            sent=protocol.Rendered(id=sent.id, html=message_html(sent)) if sent else None,
            reply=protocol.Rendered(id=reply.id, html=message_html(reply)),
            most=run.most,
            max_tokens=run.max_tokens,
            shortened=run.shortened,
            model=run.conversation.chosen_model_id,
            effort=run.conversation.reasoning_effort,
            temperature=run.conversation.temperature,
            compared=run.compared,
        ),
    )


def queue_status(run: Run) -> protocol.RunQueued | protocol.RunWaiting | None:
    """Return the first event for a new follower of a queued run; None for a run in another state.

    A run that is queued for a further attempt was described at its first: the event then has its
    position alone.
    """
    if run.status != Run.Status.QUEUED or run.waits_until is not None:
        return None
    if run.attempt == 0:
        run = whole_runs().get(pk=run.pk)
        return describe(run, stored_position(run), is_new=False).event
    return waiting_event(run, stored_position(run))


def waiting_event(run: Run, position: queue.Position | None) -> protocol.RunWaiting:
    """Return the event with a queued run's position."""
    return protocol.RunWaiting(
        run=run.pk,
        attempt=run.attempt + 1,
        position=position.number if position else 0,
        eta=position.eta if position else None,
        held=position is not None and position.is_throttled,
        busy=position is not None and position.is_provider_busy,
    )
