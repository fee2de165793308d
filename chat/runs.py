"""What people do with replies: ask for one, ask again, edit and ask, stop.

Every door (socket, form, program) makes one call into here. A run's way is drawn in
docs/architecture.md: it is stored here, made by generate.py, and ended by ending.py.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import redis
from django.conf import settings
from django.db import IntegrityError
from django.db.models import QuerySet
from django.utils import timezone

from billing import metering
from chat import access, conversations, ending, events, jobs, pace, rendering, runlog, terms
from chat.events import ChatError
from chat.models import Conversation, Message, Run
from chatproject.lib import db, rows
from chatproject.lib.pubsub.layer import publish

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

TITLE_CHARACTERS = 50
STORE_TRIES = 4
NO_ASSISTANT = "There is no model to talk to. Ask the staff to add one."


@dataclass(frozen=True, slots=True)
class Started:
    """A run, new or (`is_new` false) found again by its client_id.

    `sent` is the user's message that it answers; `event` tells of the run.
    """

    run: Run
    sent: Message | None
    is_new: bool
    event: events.RunQueued


def start(
    *,
    user: User,
    text: str,
    client_id: str,
    conversation_id: UUID | None = None,
    parent_id: UUID | None = None,
) -> Started:
    """Store a user's message and ask for its reply; without a conversation, begin one.

    The same `client_id` again (in the conversation, or as the first of a new one) has no further
    effect and returns the run that is there. `parent_id` names the message that this one follows,
    by default the end of the conversation.

    Raises ChatError: `empty_text`, `text_too_long`, `not_found`, `not_allowed`, `run_active`,
    `insufficient_credits`, `limit_reached`, `busy`, `rate_limited`, `unavailable`. Then nothing was
    stored.
    """
    text = _checked(text)

    def store(conversation: Conversation) -> Run:
        follows = conversation.leaf_id if parent_id is None else parent_id
        if parent_id is not None and not conversation.messages.filter(pk=parent_id).exists():
            raise ChatError("not_found")
        sent = _message(conversation, follows, text)
        return _add_run(user, conversation, sent, client_id)

    return _start(user, conversation_id, client_id, store)


def regenerate(*, user: User, message_id: UUID, client_id: str) -> Started:
    """Ask for another reply in the place of the reply `message_id`, which is kept as a branch.

    Idempotent by `client_id`; raises ChatError like `start` does.
    """
    reply = access.message(user, message_id, write=True)
    if reply.role != Message.Role.ASSISTANT or reply.parent is None:
        raise ChatError("not_found")

    asked = reply.parent

    def store(conversation: Conversation) -> Run:
        return _add_run(user, conversation, asked, client_id)

    return _start(user, reply.conversation_id, client_id, store)


def edit(*, user: User, message_id: UUID, text: str, client_id: str) -> Started:
    """Send another text in the place of the user's own message, which is kept as a branch.

    Idempotent by `client_id`; raises ChatError like `start` does.
    """
    message = access.message(user, message_id, write=True)
    if message.role != Message.Role.USER:
        raise ChatError("not_found")
    text = _checked(text)

    def store(conversation: Conversation) -> Run:
        sent = _message(conversation, message.parent_id, text)
        return _add_run(user, conversation, sent, client_id)

    return _start(user, message.conversation_id, client_id, store)


def _checked(text: str) -> str:
    # Postgres stores no NUL in text, and no keyboard types one.
    text = text.replace("\x00", "").strip()
    if not text:
        raise ChatError("empty_text")
    if len(text) > settings.TEXT_MAX_CHARACTERS:
        raise ChatError("text_too_long")
    return text


def _start(
    user: User, conversation_id: UUID | None, client_id: str, store: Callable[[Conversation], Run]
) -> Started:
    """Store a run and hand it to a worker, or find the one of this client_id."""
    events.check_client_id(client_id)
    try:
        _check_room(user)
    except ChatError:
        # A repetition needs no room: it has its place.
        found = _find(user, conversation_id, client_id)
        if found is None:
            raise
        return _started(found)
    places: list[jobs.Place | None] = []

    def store_and_enqueue(conversation: Conversation) -> Run:
        run = store(conversation)
        # Ahead of the hold's own callback: a worker need not wait until the balance was announced.
        db.after_commit(lambda: places.append(_enqueue(run)))
        return run

    run, is_new = _store_and_hold(user, conversation_id, client_id, store_and_enqueue)
    if not is_new:
        return _started(run)
    started = _describe(run, places[0] if places else None, is_new=True)
    db.after_answer(_announce, started)
    return started


def _find(user: User, conversation_id: UUID | None, client_id: str) -> Run | None:
    if conversation_id is not None:
        access.conversation(user, conversation_id, write=True)
    place = (
        {"conversation": conversation_id}
        if conversation_id is not None
        else {"conversation__owner": user, "conversation__client_id": client_id}
    )
    run: Run | None = _whole().filter(**place, client_id=client_id).first()
    return run


def _whole() -> QuerySet[Run]:
    return Run.objects.select_related("conversation__assistant", "message__parent", "model")


def _check_room(user: User) -> None:
    """Refuse while too many wait or the queue is away: before anything is stored or held.

    Messages that come in the same moment may all still find the last place: a few too many do no
    harm, and a lock for every message would.
    """
    try:
        room = jobs.room(user.pk)
    except redis.RedisError as error:
        raise ChatError("unavailable", retry_after=pace.RETRY_AFTER) from error
    if room.placed >= settings.USER_CONCURRENCY and room.held >= settings.USER_QUEUE_LIMIT:
        # Room for one more of the user's is where one of them ends.
        wait = room.pace.service / settings.USER_CONCURRENCY if room.pace else None
        raise ChatError("rate_limited", retry_after=pace.retry_after(wait))
    if room.line >= settings.QUEUE_LIMIT:
        wait = room.pace.wait(room.line - settings.QUEUE_LIMIT + 1) if room.pace else None
        raise ChatError("busy", retry_after=pace.retry_after(wait))


def _store_and_hold(
    user: User, conversation_id: UUID | None, client_id: str, store: Callable[[Conversation], Run]
) -> tuple[Run, bool]:
    """Store a run and hold its credits, both or neither. Tells whether it is new."""
    for turn in range(STORE_TRIES):
        try:
            return db.money_transaction(_store, user, conversation_id, client_id, store)
        except db.MoneyBusy as error:
            raise ChatError("busy", retry_after=pace.LEAST_RETRY_AFTER) from error
        except IntegrityError:
            # The same first message came twice at once, and the other one began the conversation
            # (which may be deleted again).
            found = _find(user, conversation_id, client_id)
            if found is None:
                raise
            return found, False
        except metering.BalanceChanged as error:
            # Others took the credits that this message counted on, or they expired. Less may do.
            if turn == STORE_TRIES - 1:
                raise terms.refusal(error) from error
            metering.expire_due(error.account_id)
        except terms.REFUSALS as error:
            raise terms.refusal(error) from error
    raise AssertionError("unreachable")


def _store(
    user: User, conversation_id: UUID | None, client_id: str, store: Callable[[Conversation], Run]
) -> tuple[Run, bool]:
    """One transaction: messages and run, under the conversation's lock, then the hold."""
    if conversation_id is None:
        conversation = _begin(user, client_id)
    else:
        conversation = access.conversation(user, conversation_id, write=True, lock=True)
    others = {} if conversation._state.adding else _others(conversation, client_id)
    if client_id in others:
        return _whole().get(pk=others[client_id]), False
    if others:
        raise ChatError("run_active")
    run = store(conversation)
    terms.hold(run)
    return run, True


def _others(conversation: Conversation, client_id: str) -> dict[str, UUID]:
    """The runs that stand in the way of a new one, by client_id: the same one, and an active one.

    In plain SQL, since it is asked with each message: Django takes longer to write it than Postgres
    to answer it.
    """
    found = rows.all(
        "SELECT client_id, id FROM chat_run WHERE conversation_id = %s"
        " AND (client_id = %s OR status IN ('queued', 'running'))",
        [conversation.pk, client_id],
    )
    return dict(found)


def _begin(user: User, client_id: str) -> Conversation:
    """The conversation that this client_id began, or a new one with the default assistant.

    A new one is stored by `_add_run`, with its messages and its name.
    """
    begun: Conversation | None = (
        Conversation.objects.kept().with_lock().filter(owner=user, client_id=client_id).first()
    )
    if begun is not None:
        return begun
    assistant = conversations.default_assistant()
    if assistant is None:
        raise ChatError("unavailable", NO_ASSISTANT)
    return Conversation(owner=user, assistant=assistant, client_id=client_id)


def _message(conversation: Conversation, parent_id: UUID | None, text: str) -> Message:
    """A message of the user's, which `_add_run` stores."""
    return Message(
        conversation=conversation, parent_id=parent_id, role=Message.Role.USER, text=text
    )


def _add_run(user: User, conversation: Conversation, asked: Message, client_id: str) -> Run:
    """Store an empty reply to a message, and the queued run that will fill it.

    A message that is new, and thereby the place in the conversation, is stored with them.
    """
    reply = Message(
        conversation=conversation,
        parent=asked,
        role=Message.Role.ASSISTANT,
        status=Message.Status.PENDING,
    )
    assistant = conversation.assistant
    run = Run(
        conversation=conversation,
        message=reply,
        user=user,
        client_id=client_id,
        assistant=assistant,
        model=assistant.model,
        model_snapshot={
            "name": assistant.model.name,
            "provider_model": assistant.model.provider_model,
            "temperature": assistant.temperature,
            "assistant": assistant.name,
        },
    )
    terms.agree(run)
    if asked._state.adding:
        rows.write(asked, reply, run, _showing(conversation, reply, asked.text))
    else:
        # The leaf moves when the new reply is there: a failure must not take the old one away.
        rows.write(reply, run)
    return run


def _showing(conversation: Conversation, reply: Message, text: str) -> Conversation | rows.Change:
    """What lets the page end with a new reply, and names the conversation if it has no name."""
    conversation.leaf = reply
    conversation.updated_at = timezone.now()
    conversation.title = conversation.title or _title(text)
    if conversation._state.adding:
        return conversation
    return rows.Change(
        "UPDATE chat_conversation SET leaf_id = %s, updated_at = %s, title = %s WHERE id = %s",
        [reply.pk, conversation.updated_at, conversation.title, conversation.pk],
    )


def _title(text: str) -> str:
    """The first line of a message, cut at a word to TITLE_CHARACTERS."""
    return textwrap.shorten(text.splitlines()[0], TITLE_CHARACTERS, placeholder="…") or "…"


def _enqueue(run: Run) -> jobs.Place | None:
    try:
        return jobs.enqueue(run)
    except redis.RedisError:
        # The run is stored; the sweeper queues it as soon as Redis is back.
        logger.warning("run %s could not be queued yet", run.id, exc_info=True)
        return None


def _started(run: Run) -> Started:
    """Describe a run that is there already."""
    return _describe(run, _place(run), is_new=False)


def _place(run: Run) -> jobs.Place | None:
    """Where a run waits; None when it does not, or while Redis is away and nobody knows."""
    if run.status != Run.Status.QUEUED:
        return None
    try:
        return jobs.place(run)
    except redis.RedisError:
        return None


def _describe(run: Run, place: jobs.Place | None, *, is_new: bool) -> Started:
    """Describe a run to whoever asked for it and to the user's other tabs."""
    reply, sent = run.message, run.message.parent
    reply.run = run
    return Started(
        run=run,
        sent=sent,
        is_new=is_new,
        event=events.RunQueued(
            run=run.id,
            conversation=run.conversation_id,
            client_id=run.client_id,
            position=place.position if place else 0,
            eta=place.eta if place else None,
            held=place is not None and place.is_held,
            parent=sent.parent_id if sent else None,
            sent=_rendered(sent) if sent else None,
            reply=_rendered(reply),
            most=run.most,
            max_tokens=run.max_tokens,
            shortened=run.shortened,
        ),
    )


def _rendered(message: Message) -> events.Rendered:
    return events.Rendered(id=message.id, html=rendering.message_html(message))


def _announce(started: Started) -> None:
    """Tell the user's tabs. They are right after a reload, so a Redis that is away only delays it."""
    run = started.run
    conversations.announce(run.conversation, active=True)
    publish(events.user_group(run.conversation.owner_id), started.event.encode())


def look(*, user: User, run_id: UUID) -> events.RunQueued | events.RunWaiting | None:
    """What to tell somebody who comes to a run: that it waits, and where; None once it is made.

    A run that waits for another worker had begun before: then the message is there already.

    Raises ChatError `not_found`.
    """
    run = access.run(user, run_id)
    if run.status != Run.Status.QUEUED:
        return None
    if run.attempt == 0:
        return _started(_whole().get(pk=run_id)).event
    place = _place(run)
    return events.RunWaiting(
        run=run.pk,
        attempt=run.attempt + 1,
        position=place.position if place else 0,
        eta=place.eta if place else None,
        held=place is not None and place.is_held,
    )


def _left(run: Run) -> ending.Outcome:
    """The stop of a run that no worker has, with what its earlier attempts have written."""
    text, reasoning = run.prefix, run.prefix_reasoning
    if run.attempt:
        try:
            written = runlog.written(run.id, run.attempt)
        except redis.RedisError:
            logger.warning("the log of run %s could not be read", run.id, exc_info=True)
        else:
            text, reasoning = written.text or text, written.reasoning or reasoning
    return ending.Outcome(status=Run.Status.STOPPED, text=text, reasoning=reasoning)


def stop(*, user: User, run_id: UUID) -> None:
    """Ask a run to stop; what was written is kept. One that is over stays as it is.

    A worker sees the request within 300 ms. Raises ChatError `not_found`, `not_allowed`, or
    `unavailable` when a worker could not be told.
    """
    run = access.run(user, run_id, write=True)
    if run.is_over:
        return
    ended = ending.end(
        run_id=run.id,
        attempt=run.attempt,
        status=Run.Status.QUEUED,  # no worker has it yet: then it is over at once
        seq=events.first_seq(run.attempt + 1),
        outcome=_left(run),
    )
    try:
        if ended is None:
            runlog.request_stop(run.id)
        else:
            runlog.publish_end(ended)
            jobs.withdraw(run.user_id, run.id, run.attempt + 1)
    except redis.RedisError as error:
        if ended is None:
            raise ChatError("unavailable", retry_after=pace.RETRY_AFTER) from error
        logger.warning("the stop of run %s could not be announced", run.id, exc_info=True)
