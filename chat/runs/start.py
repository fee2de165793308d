"""Asking for a reply: send a message, regenerate a reply, edit a message.

Every entry point (socket, form, program) makes one call into this module, and a run is stored in five
steps: admission control, quote, insert, hold, enqueue. docs/architecture.md draws its further way:
generation/generate.py generates the reply, and finish.py ends the run.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import redis
from django.conf import settings
from django.db import IntegrityError
from django.utils import timezone

from billing.metering import settlement
from chat import access, protocol
from chat.conversations import lifecycle
from chat.errors import ChatError
from chat.models import Conversation, Message, Run
from chat.runs import admission, cost, queue, wait_estimate
from chat.runs.describe import Started, describe, stored_position, whole_runs
from chat.streaming import user_channel
from chatproject.lib import db, metrics
from chatproject.lib.db import prepared

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

STORE_TRIES = 4
ACCOUNT_LOCKED = (
    "Your account is locked by another change right now. Nothing was sent or charged."
    " Try again in a moment."
)
NO_ASSISTANT = "No model is available. Ask the staff to add one."
DISABLED = "The model of this chat is not available at the moment. Start a new chat."


@dataclass(frozen=True, slots=True)
class Ask:
    """A user's request for a reply: to a new message with `text`, or another one to `prompt`.

    The new message follows `parent_id`, or (`follows_leaf`) the end of the conversation. Without
    `conversation_id` it begins a new conversation.
    """

    user: User
    client_id: str
    conversation_id: UUID | None
    text: str = ""
    parent_id: UUID | None = None
    follows_leaf: bool = False
    prompt: Message | None = None


def send(
    *,
    user: User,
    text: str,
    client_id: str,
    conversation_id: UUID | None = None,
    parent_id: UUID | None = None,
) -> Started:
    """Store a user's message and ask for its reply; without a conversation, begin one.

    Idempotent by `client_id`: a repetition (in the conversation, or as the first message of a new one)
    returns the stored run. The message follows `parent_id`, by default the end of the conversation.

    Raises ChatError: `empty_text`, `bad_text`, `text_too_long`, `bad_json` (a malformed `client_id`), `not_found`,
    `not_allowed`, `run_active`, `insufficient_credits`, `limit_reached`, `busy`, `rate_limited`,
    `unavailable`. Then nothing was stored.
    """
    text = _clean_text(text)
    if (
        parent_id is not None
        and not Message.objects.filter(pk=parent_id, conversation=conversation_id).exists()
    ):
        raise ChatError("not_found")
    follows_leaf = parent_id is None
    return _start(Ask(user, client_id, conversation_id, text, parent_id, follows_leaf))


def regenerate(*, user: User, message_id: UUID, client_id: str) -> Started:
    """Ask for another reply in place of the reply `message_id`, which is kept as a branch.

    Idempotent by `client_id`; raises ChatError like `send`.
    """
    reply = access.message(user, message_id, write=True)
    if reply.role != Message.Role.ASSISTANT or reply.parent is None:
        raise ChatError("not_found")
    return _start(Ask(user, client_id, reply.conversation_id, prompt=reply.parent))


def edit(*, user: User, message_id: UUID, text: str, client_id: str) -> Started:
    """Send another text in place of the user's own message, which is kept as a branch.

    Idempotent by `client_id`; raises ChatError like `send`.
    """
    message = access.message(user, message_id, write=True)
    if message.role != Message.Role.USER:
        raise ChatError("not_found")
    text = _clean_text(text)
    return _start(Ask(user, client_id, message.conversation_id, text, message.parent_id))


def _clean_text(text: str) -> str:
    text = text.strip()
    if not text:
        raise ChatError("empty_text")
    if not protocol.is_storable(text):
        raise ChatError("bad_text")
    if len(text) > settings.TEXT_MAX_CHARACTERS:
        raise ChatError("text_too_long")
    return text


def _start(ask: Ask) -> Started:
    """Admit, store and enqueue a run, or find the run of this client_id."""
    if not re.match(protocol.CLIENT_ID, ask.client_id):
        raise ChatError("bad_json")
    try:
        admission.admit(ask.user.pk)
    except ChatError:
        # A repetition is never refused: its run is stored already.
        run, is_new = _find(ask), False
        if run is None:
            raise
    else:
        run, is_new = _store(ask)
    if not is_new:
        return describe(run, stored_position(run), is_new=False)
    metrics.RUNS_STORED.inc()
    try:
        position = queue.enqueue(run)
    except redis.RedisError as error:
        # The run is stored; the sweeper enqueues it as soon as Redis answers again.
        logger.warning("run %s could not be queued yet: %s", run.id, error)
        position = None
    # A message at the end of its conversation has none.
    started = describe(run, position, is_new=True, has_siblings=not ask.follows_leaf)
    db.after_response(user_channel.announce_run, run, started.event)
    return started


def _find(ask: Ask) -> Run | None:
    if ask.conversation_id is not None:
        access.conversation(ask.user, ask.conversation_id, write=True)
        runs = whole_runs().filter(conversation=ask.conversation_id)
    else:
        runs = whole_runs().filter(
            conversation__owner=ask.user, conversation__client_id=ask.client_id
        )
    found: Run | None = runs.filter(client_id=ask.client_id).first()
    return found


def _store(ask: Ask) -> tuple[Run, bool]:
    """Store a run and hold its credits, both or neither; the flag is False for a run stored earlier."""
    for turn in range(STORE_TRIES):
        try:
            return db.money_transaction(_quote_insert_hold, ask)
        except db.MoneyBusy as error:
            raise ChatError(
                "busy", ACCOUNT_LOCKED, retry_after=wait_estimate.MIN_RETRY_AFTER
            ) from error
        except IntegrityError:
            # The same first message was sent twice at once, and the other one began the
            # conversation (which may have been deleted again).
            if (found := _find(ask)) is None:
                raise
            return found, False
        except settlement.BalanceChanged as error:
            # The quoted credits were spent or expired meanwhile: quote again.
            if turn == STORE_TRIES - 1:
                raise cost.refusal(error) from error
            settlement.expire_due(error.account_id)
        except cost.REFUSALS as error:
            raise cost.refusal(error) from error
    raise AssertionError("unreachable")


def _quote_insert_hold(ask: Ask) -> tuple[Run, bool]:
    """The money transaction of `_store`: the conversation is locked first, the account last."""
    if ask.conversation_id is None:
        conversation = _begin(ask.user, ask.client_id)
    else:
        conversation = access.conversation(ask.user, ask.conversation_id, write=True, lock=True)
    if not conversation._state.adding:
        # The runs that exclude a new one: the run of this client_id, and an active one. Plain SQL, as
        # each message needs it: Django takes longer to write the query than Postgres to answer it.
        excluding = prepared.all(
            "SELECT client_id, id FROM chat_run WHERE conversation_id = %s"
            " AND (client_id = %s OR status IN ('queued', 'running'))",
            [conversation.pk, ask.client_id],
        )
        for client_id, run_id in excluding:
            if client_id == ask.client_id:
                return whole_runs().get(pk=run_id), False
        if excluding:
            raise ChatError("run_active")
    model = conversation.assistant.model
    if model.provider is not None and not model.provider.enabled and model.fallback_id is None:
        raise ChatError("unavailable", DISABLED)
    run = _new_run(ask, conversation)
    cost.apply_quote(run)
    _insert(run)
    cost.hold(run)
    return run, True


def _begin(user: User, client_id: str) -> Conversation:
    """Return the conversation that this client_id began, or a new one with the default assistant.

    The caller inserts a new one with its run.
    """
    begun: Conversation | None = (
        Conversation.objects.not_deleted()
        .with_lock()
        .filter(owner=user, client_id=client_id)
        .first()
    )
    if begun is not None:
        return begun
    assistant = lifecycle.default_assistant()
    if assistant is None:
        raise ChatError("unavailable", NO_ASSISTANT)
    return Conversation(owner=user, assistant=assistant, client_id=client_id)


def _new_run(ask: Ask, conversation: Conversation) -> Run:
    """Return a run with its empty reply and, for a new text, its prompt; none of them is stored yet."""
    prompt = ask.prompt
    if prompt is None:
        parent_id = conversation.leaf_id if ask.follows_leaf else ask.parent_id
        prompt = Message(
            conversation=conversation, parent_id=parent_id, role=Message.Role.USER, text=ask.text
        )
    assistant = conversation.assistant
    return Run(
        # The leaf moves when the new reply is finished: a failure must not replace the old reply.
        moves_leaf=ask.prompt is not None,
        conversation=conversation,
        message=Message(
            conversation=conversation,
            parent=prompt,
            role=Message.Role.ASSISTANT,
            status=Message.Status.PENDING,
        ),
        user=ask.user,
        client_id=ask.client_id,
        assistant=assistant,
        model=assistant.model,
        model_snapshot={
            "name": assistant.model.name,
            "provider_model": assistant.model.provider_model,
            "temperature": assistant.temperature,
            "assistant": assistant.name,
        },
    )


def _insert(run: Run) -> None:
    """Insert a run, its reply and, where they are new, prompt and conversation, in one statement."""
    reply, conversation = run.message, run.conversation
    prompt = reply.parent
    assert prompt is not None
    if not prompt._state.adding:
        prepared.write(reply, run)
        return
    conversation.leaf = reply
    conversation.updated_at = timezone.now()
    conversation.title = conversation.title or lifecycle.first_title(prompt.text)
    if conversation._state.adding:
        shown: Conversation | prepared.Change = conversation
    else:
        shown = prepared.Change(
            "UPDATE chat_conversation SET leaf_id = %s, updated_at = %s, title = %s WHERE id = %s",
            [reply.pk, conversation.updated_at, conversation.title, conversation.pk],
        )
    prepared.write(prompt, reply, run, shown)
