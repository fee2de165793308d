"""The next message: written while a reply is generated, and sent when that reply has ended.

A conversation has one (chat.models.NextMessage). Each change locks the conversation first, and the message is
sent by the money transaction that removes it from its row: of an edit, a removal and any number of senders at
the same time one comes first, and the others find nothing. The worker that ended the reply sends it; the
clock (recovery/next_messages.py) sends the messages of workers that were killed.

After a reply that failed or was stopped, and after a refusal that time does not heal, it is paused until its
user decides.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from msgspec import UNSET

from chat import access, protocol
from chat.attachments import uploads
from chat.conversations import drafts
from chat.conversations.offers import UNCHANGED, Choice
from chat.errors import ChatError
from chat.models import Conversation, NextMessage, Run
from chat.runs import describe, start
from chat.runs.describe import Started
from chat.streaming import user_channel
from chatproject.lib import db, languages

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

State = NextMessage.State

TURNS = 5  # of `queue`, while the conversation changes between its two ways
TRIES = 20  # of sending it, before its user is asked
MIN_PAUSE = 2.0  # seconds between two tries
REMEMBERED = 50  # requests of one conversation whose repetition has no effect


def queue(
    *,
    user: User,
    text: str,
    client_id: str,
    conversation_id: UUID,
    choice: Choice = UNCHANGED,
    attachment_ids: Sequence[UUID] = (),
    clears_draft: bool = False,
) -> Started | protocol.NextUpdated:
    """Send a message when the present reply has ended; at once if none is being generated.

    A second text is appended to the first one, so that both become one message. Idempotent by
    `client_id`. Returns the run of a message that was sent, otherwise the state of the next message.
    Raises ChatError like `start.send`.
    """
    text = start.clean_text(text, attachment_ids)
    if not re.match(protocol.CLIENT_ID, client_id):
        raise ChatError("bad_json")
    for _turn in range(TURNS):
        event = _queue(user, text, client_id, conversation_id, choice, attachment_ids)
        if event is not None:
            user_channel.announce_next(user.pk, event)
            if clears_draft:
                db.after_response(drafts.clear, user.pk, conversation_id, timezone.now())
            return event
        try:
            return start.send(
                user=user,
                text=text,
                client_id=client_id,
                conversation_id=conversation_id,
                choice=choice,
                attachment_ids=attachment_ids,
                clears_draft=clears_draft,
            )
        except ChatError as error:
            if error.code != "run_active":  # otherwise another reply has begun meanwhile
                raise
    raise ChatError("busy")


@transaction.atomic
def _queue(
    user: User,
    text: str,
    client_id: str,
    conversation_id: UUID,
    choice: Choice,
    attachment_ids: Sequence[UUID],
) -> protocol.NextUpdated | None:
    """Store the text as the next message; None if it is to be sent at once, or was sent already."""
    row = _locked(user, conversation_id)
    if client_id in row.client_ids:
        return event_of(row, client_id)
    runs = Run.objects.filter(conversation=conversation_id)
    if runs.filter(client_id=client_id).exists():
        return None
    if row.state == State.NONE:
        if not runs.active().exists():
            return None
        row.text, row.client_id, row.choice = text, client_id, {}
    else:
        row.text = "\n\n".join(filter(None, [row.text, text]))
        drafts.check(row.text)
    row.attachment_ids += [str(one) for one in attachment_ids if str(one) not in row.attachment_ids]
    if len(row.attachment_ids) > settings.ATTACHMENTS_PER_MESSAGE:
        raise ChatError("too_many")
    if attachment_ids:
        uploads.keep_unsent(user, attachment_ids)
    row.choice |= _stored_choice(choice)
    row.client_ids = [*row.client_ids, client_id][-REMEMBERED:]
    _change(row, State.WAITING)
    return event_of(row, client_id)


def _locked(user: User, conversation_id: UUID) -> NextMessage:
    """Lock a conversation, which locks its next message; return that, new if there was none."""
    access.conversation(user, conversation_id, write=True, lock=True)
    found = NextMessage.objects.filter(pk=conversation_id).first()
    return found or NextMessage(conversation_id=conversation_id)


def _change(row: NextMessage, state: State, *, code: str = "", problem: str = "") -> None:
    """Store a row, whose conversation is locked, in a new state."""
    row.state, row.code, row.problem = state, code, problem
    row.tries, row.due_at = 0, timezone.now()
    row.version += 1
    if state == State.NONE:
        row.text, row.attachment_ids = "", []
    row.save()
    has_next = state != State.NONE
    Conversation.objects.filter(pk=row.pk).exclude(has_next=has_next).update(has_next=has_next)


def _stored_choice(choice: Choice) -> dict[str, Any]:
    values = {
        "model_id": choice.model_id,
        "effort": choice.effort,
        "temperature": choice.temperature,
    }
    return {name: value for name, value in values.items() if value is not UNSET}


def event_of(row: NextMessage, client_id: str = "") -> protocol.NextUpdated:
    """Return the event that describes a row, in answer to a request of `client_id`."""
    return protocol.NextUpdated(
        conversation=row.pk,
        client_id=client_id,
        text=row.text,
        attachments=[UUID(one) for one in row.attachment_ids],
        paused=row.state == State.PAUSED,
        code=row.code,
        message=row.problem,
    )


def shown(conversation: Conversation) -> NextMessage | None:
    """Return the next message that a page shows; no query for a conversation without one."""
    if not conversation.has_next:
        return None
    return NextMessage.objects.filter(pk=conversation.pk).exclude(state=State.NONE).first()


def first_events(
    *, user: User, run_id: UUID, after: int
) -> tuple[list[protocol.ServerEvent], UUID | None]:
    """Return the events for a follower of a run that come before those of the run after number `after`.

    They are the state of a queued run, and from the beginning on the next message: a page is
    made before it follows its run, and the next message may have changed in between. A reader by share receives
    none of them; for such a reader the conversation is returned as well. Raises ChatError `not_found`.
    """
    run = access.run(user, run_id)
    if access.decide(user, run) < access.Access.WRITE:
        return [], run.conversation_id
    events: list[protocol.ServerEvent] = []
    if (queued := describe.queue_status(run)) is not None:
        events.append(queued)
    if after == 0:
        row = shown(run.conversation) or NextMessage(conversation=run.conversation)
        events.append(event_of(row))
    return events, None


def edit(*, user: User, conversation_id: UUID) -> protocol.NextUpdated:
    """Take the next message back into the draft of the conversation, to be edited there.

    The event returned has its text as `taken`. Raises ChatError `not_found`, `not_allowed`, or
    `already_sent`.
    """
    with transaction.atomic():
        row = _locked(user, conversation_id)
        taken = event_of(row)
        if row.state == State.NONE:
            raise ChatError("already_sent")
        _change(row, State.NONE)
        drafts.put_before(user=user, conversation_id=conversation_id, text=taken.text)
    user_channel.announce_next(user.pk, event_of(row))
    return protocol.NextUpdated(
        conversation=conversation_id, taken=taken.text, attachments=taken.attachments
    )


def remove(*, user: User, conversation_id: UUID) -> protocol.NextUpdated:
    """Remove the next message. Raises ChatError like `edit`."""
    with transaction.atomic():
        row = _locked(user, conversation_id)
        if row.state == State.NONE:
            raise ChatError("already_sent")
        _change(row, State.NONE)
    event = event_of(row)
    user_channel.announce_next(user.pk, event)
    return event


def send(*, user: User, conversation_id: UUID) -> Started | protocol.NextUpdated:
    """Send a paused message now, or when the present reply has ended; what a user decides.

    Returns what `queue` does. Raises ChatError `already_sent`, and like `start.send`: the message then stays
    paused, with the words of the error.
    """
    with transaction.atomic():
        row = _locked(user, conversation_id)
        if row.state == State.NONE:
            raise ChatError("already_sent")
        is_active = Run.objects.active().filter(conversation=conversation_id).exists()
        if is_active:
            _change(row, State.WAITING)
    if is_active:
        event = event_of(row)
        user_channel.announce_next(user.pk, event)
        return event
    try:
        started = _send(row, user)
    except ChatError as error:
        _pause(row, error.code, error.message)
        raise
    if started is None:  # changed meanwhile
        raise ChatError("already_sent")
    return started


def proceed(conversation_id: UUID) -> None:
    """Send the next message of a conversation if its reply has ended, or pause it; any process may call it."""
    row = NextMessage.objects.filter(pk=conversation_id, state=State.WAITING).first()
    if row is None or row.due_at > timezone.now():
        return
    conversation = Conversation.objects.select_related("owner").get(pk=conversation_id)
    with languages.use(conversation.owner.language):
        _proceed(row, conversation.owner)


def _proceed(row: NextMessage, owner: User) -> None:
    # Active runs come first: they have no end yet.
    runs = Run.objects.filter(conversation=row.pk).order_by("-ended_at")
    status = runs.values_list("status", flat=True).first()
    match status:
        case Run.Status.QUEUED | Run.Status.RUNNING:
            return
        case Run.Status.FAILED:
            _pause(row, "reply_failed", _("The reply failed. Your next message was not sent."))
            return
        case Run.Status.STOPPED:
            _pause(
                row, "reply_stopped", _("The reply was stopped. Your next message was not sent.")
            )
            return
    try:
        _send(row, owner)
    except ChatError as error:
        if error.code == "run_active":
            return  # it waits for the end of that reply
        if error.retry_after is None or row.tries + 1 >= TRIES:
            _pause(row, error.code, error.message)
        else:
            _try_later(row, error)


def _send(row: NextMessage, user: User) -> Started | None:
    """Send the message of a row; None if it was changed or sent meanwhile. Raises ChatError like `start.send`."""
    choice = Choice(**row.choice)
    try:
        started = start.send_next(user=user, row=row, choice=choice)
    except start.NextChanged:
        return None
    user_channel.announce_next(user.pk, protocol.NextUpdated(conversation=row.pk))
    return started


def _pause(row: NextMessage, code: str, problem: str) -> None:
    _put(row, state=State.PAUSED, code=code, problem=problem, version=row.version + 1)


def _try_later(row: NextMessage, error: ChatError) -> None:
    pause = timedelta(seconds=max(error.retry_after or 0, MIN_PAUSE))
    values = {"tries": row.tries + 1, "due_at": timezone.now() + pause}
    _put(row, code=error.code, problem=error.message, version=row.version + 1, **values)


def _put(row: NextMessage, **values: Any) -> None:
    """Change a row, unless it was changed since it was read (compare-and-set), and publish it."""
    same = NextMessage.objects.filter(pk=row.pk, version=row.version).exclude(state=State.NONE)
    if not same.update(**values):
        return
    for name, value in values.items():
        setattr(row, name, value)
    owner = Conversation.objects.values_list("owner", flat=True).get(pk=row.pk)
    user_channel.announce_next(owner, event_of(row))
