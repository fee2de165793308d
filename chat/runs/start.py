"""Asking for a reply: send a message (to one model or several), regenerate or continue a reply,
edit a message.

Every entry point (socket, form, program) makes one call into this module, and a run is stored in five
steps: admission control, quote, insert, hold, enqueue. docs/architecture.md draws its further way:
generation/generate.py generates the reply, and finish.py ends the run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import UUID

import redis
from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from msgspec import UNSET

from billing.metering import settlement
from chat import access, protocol
from chat.attachments import uploads
from chat.conversations import assistants, drafts, lifecycle, notes, offers, prompt_builder
from chat.conversations.offers import UNCHANGED, Choice
from chat.errors import ChatError
from chat.models import (
    Attachment,
    Conversation,
    LanguageModel,
    Message,
    MessageAttachment,
    MessagePart,
    NextMessage,
    Run,
)
from chat.moderation import rules
from chat.runs import admission, cost, queue, wait_estimate
from chat.runs.describe import Started, describe, stored_position, whole_runs
from chat.streaming import user_channel
from chatproject.lib import db, languages, metrics
from chatproject.lib.db import prepared

if TYPE_CHECKING:
    from accounts.models import ApiKey, User

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

STORE_TRIES = 4
ACCOUNT_LOCKED = gettext_lazy(
    "Your account is locked by another change right now. Nothing was sent or charged."
    " Try again in a moment."
)
# The client_id of each further run of a comparison has two characters more.
COMPARE_ID_LENGTH = 62
NO_ASSISTANT = gettext_lazy("No model is available. Ask the staff to add one.")


# The runs that exclude a new one in a conversation, and the notes about its user.
EXCLUDING = f"""
SELECT (SELECT json_agg(json_build_array(client_id, id)) FROM chat_run
    WHERE conversation_id = %(conversation)s
      AND (client_id = %(client)s OR status IN ('queued', 'running'))),
  {notes.selecting("%(user)s")}
"""  # noqa: S608 # of names alone

# The conversation that was begun with a client_id, and the notes about its user.
BEGUN = f"""
SELECT (SELECT id FROM chat_conversation
    WHERE owner_id = %(user)s AND client_id = %(client)s AND deleted_at IS NULL),
  {notes.selecting("%(user)s")}
"""  # noqa: S608 # of names alone


@dataclass(frozen=True, slots=True)
class Ask:
    """A user's request for a reply: to a new message with `text`, or another one to `prompt`.

    The new message follows `parent_id`, or (`follows_leaf`) the end of the conversation. Without
    `conversation_id` it begins a new conversation. Its files are the user's attachments `attachment_ids`.
    The reply goes on from the text of the reply `continued`. Each of the `models` generates a reply; without
    any, that of the conversation after `choice` does, which is stored with a new message. The draft that
    became the text is cleared (`clears_draft`), and `next_message`, the row that the text is from, is emptied
    by the same transaction.
    """

    user: User
    client_id: str
    conversation_id: UUID | None
    text: str = ""
    parent_id: UUID | None = None
    follows_leaf: bool = False
    prompt: Message | None = None
    continued: Message | None = None
    models: tuple[LanguageModel, ...] = ()
    choice: Choice = UNCHANGED
    attachment_ids: tuple[UUID, ...] = ()
    clears_draft: bool = False
    next_message: NextMessage | None = None
    api_key: ApiKey | None = None  # of the program that asks


class NextChanged(Exception):
    """The next message of a conversation was changed, removed or sent meanwhile."""


def send(
    *,
    user: User,
    text: str,
    client_id: str,
    conversation_id: UUID | None = None,
    parent_id: UUID | None = None,
    choice: Choice = UNCHANGED,
    attachment_ids: Sequence[UUID] = (),
    clears_draft: bool = False,
    api_key: ApiKey | None = None,
) -> Started:
    """Store a user's message and ask for its reply; without a conversation, begin one.

    Idempotent by `client_id`: a repetition (in the conversation, or as the first message of a new one)
    returns the stored run. The message follows `parent_id`, by default the end of the conversation.
    The conversation keeps `choice`, the model and settings of the reply, for its next messages. A message
    with attachments may have no text. `clears_draft`: the text was stored as a draft, which is cleared. The
    reply to a program counts for the spending limits of its `api_key`.

    Raises ChatError: `empty_text`, `bad_text`, `file_missing`, `too_many`, `no_vision`, `text_too_long`,
    `bad_json` (a malformed `client_id`), `not_found`, `not_allowed`, `model_unavailable`, `bad_setting`,
    `run_active`, `insufficient_credits`, `limit_reached`, `busy`, `rate_limited`, `unavailable`, `moderated`.
    Then nothing was stored.
    """
    text = clean_text(text, attachment_ids)
    _check_parent(parent_id, conversation_id)
    [started] = _start(
        Ask(
            user,
            client_id,
            conversation_id,
            text,
            parent_id,
            follows_leaf=parent_id is None,
            choice=choice,
            attachment_ids=tuple(attachment_ids),
            clears_draft=clears_draft,
            api_key=api_key,
        )
    )
    return started


def begin(
    *, user: User, client_id: str, choice: Choice = UNCHANGED, title: str = ""
) -> tuple[Conversation, bool]:
    """Store a conversation without a message, with `choice` for its messages, and announce it.

    Returns it, and False if it was stored earlier: idempotent by `client_id`. Raises ChatError: `not_found`, `model_unavailable`, `bad_setting`, `unavailable`.
    """
    try:
        with transaction.atomic():
            begun = _begin(Ask(user, client_id, None, choice=choice))
            if not begun._state.adding:
                return begun, False
            if not offers.is_usable(user, begun.chosen_model):
                raise offers.unavailable(user, begun.chosen_model)
            if title:
                begun.title, begun.titled_by = title, Conversation.TitledBy.PERSON
            begun.updated_at = timezone.now()
            begun.save(force_insert=True)
    except IntegrityError:
        # The same request came twice at once.
        mine = Conversation.objects.not_deleted().filter(owner=user, client_id=client_id)
        found: Conversation | None = mine.first()
        if found is None:
            raise ChatError("not_found") from None
        return found, False
    user_channel.announce_conversation(begun)
    return begun, True


def send_next(*, user: User, row: NextMessage, choice: Choice) -> Started:
    """Send the next message of a conversation, and remove it from its row, in one transaction.

    Raises NextChanged unless the row is still as it was read, and ChatError like `send`.
    """
    [started] = _start(
        Ask(
            user,
            row.client_id,
            row.pk,
            row.text,
            follows_leaf=True,
            choice=choice,
            attachment_ids=tuple(UUID(one) for one in row.attachment_ids),
            next_message=row,
        )
    )
    return started


def compare(
    *,
    user: User,
    text: str,
    client_id: str,
    model_ids: Sequence[int],
    conversation_id: UUID | None = None,
    parent_id: UUID | None = None,
    choice: Choice = UNCHANGED,
    attachment_ids: Sequence[UUID] = (),
    clears_draft: bool = False,
) -> list[Started]:
    """Store a user's message and ask two or three models for a reply each: all of them, or none.

    The conversation keeps `choice` as by `send`; its model answers the next messages, unless a reply of
    another model is chosen. Each reply has a run with its own hold and cost. Idempotent by `client_id`, with at most
    COMPARE_ID_LENGTH characters; raises ChatError like `send`.
    """
    text = clean_text(text, attachment_ids)
    chosen = list(dict.fromkeys(model_ids))
    if len(client_id) > COMPARE_ID_LENGTH or not 2 <= len(chosen) <= protocol.MOST_COMPARED:
        raise ChatError("bad_json", _("Choose two or three models to compare. Nothing was sent."))
    _check_parent(parent_id, conversation_id)
    return _start(
        Ask(
            user,
            client_id,
            conversation_id,
            text,
            parent_id,
            follows_leaf=parent_id is None,
            choice=choice,
            clears_draft=clears_draft,
            models=tuple(offers.chosen(user, model_id) for model_id in chosen),
            attachment_ids=tuple(attachment_ids),
        )
    )


def _check_parent(parent_id: UUID | None, conversation_id: UUID | None) -> None:
    if parent_id is None:
        return
    if not Message.objects.filter(pk=parent_id, conversation=conversation_id).exists():
        raise ChatError("not_found")


def regenerate(
    *, user: User, message_id: UUID, client_id: str, model_id: int | None = None
) -> Started:
    """Ask for another reply in place of the reply `message_id`, which is kept as a branch.

    A message of the user is answered, at the end of a copied or an imported conversation for the first time. `model_id`
    names the model of this one reply, by default that of the conversation. Idempotent by `client_id`; raises
    ChatError like `send`.
    """
    message = access.message(user, message_id, write=True)
    prompt = message if message.role == Message.Role.USER else message.parent
    if prompt is None:
        raise ChatError("not_found")
    models = () if model_id is None else (offers.chosen(user, model_id),)
    text = message.text if message == prompt else ""  # an imported one was never checked
    ask = Ask(user, client_id, message.conversation_id, text, prompt=prompt, models=models)
    [started] = _start(ask)
    return started


def continue_reply(*, user: User, message_id: UUID, client_id: str) -> Started:
    """Ask for a reply that goes on where the reply `message_id` reached its length limit.

    The new reply begins with the text of the old one, which is kept as a branch. The same model is
    asked, if it is still available; for a copied reply that of the conversation. Idempotent by `client_id`; raises ChatError like `send`.
    """
    reply = access.message(user, message_id, write=True)
    run = Run.objects.select_related("model__provider").filter(message=reply).first()
    is_cut = reply.was_cut if run is None else run.finish_reason == "length"
    if reply.parent is None or reply.status != Message.Status.DONE or not is_cut or not reply.text:
        raise ChatError(
            "not_found",
            _("This reply did not reach its length limit. There is nothing to continue."),
        )
    [started] = _start(
        Ask(
            user,
            client_id,
            reply.conversation_id,
            prompt=reply.parent,
            continued=reply,
            models=(run.model,) if run and offers.is_usable(user, run.model) else (),
        )
    )
    return started


def edit(
    *,
    user: User,
    message_id: UUID,
    text: str,
    client_id: str,
    choice: Choice = UNCHANGED,
    attachment_ids: Sequence[UUID] | None = None,
) -> Started:
    """Send another text in place of the user's own message, which is kept as a branch.

    Without `attachment_ids` the new message has the attachments of the old one. `choice` is kept as by `send`. Idempotent by `client_id`; raises ChatError like `send`.
    """
    message = access.message(user, message_id, write=True)
    if message.role != Message.Role.USER:
        raise ChatError("not_found")
    if attachment_ids is None:
        attachment_ids = uploads.kept_ids(message.attached)
    text = clean_text(text, attachment_ids)
    [started] = _start(
        Ask(
            user,
            client_id,
            message.conversation_id,
            text,
            message.parent_id,
            choice=choice,
            attachment_ids=tuple(attachment_ids),
        )
    )
    return started


def clean_text(text: str, attachment_ids: Sequence[UUID] = ()) -> str:
    """Return a message without white space at its ends.

    Raises ChatError `empty_text`, `bad_text` or `text_too_long`.
    """
    text = text.strip()
    if not text and not attachment_ids:
        raise ChatError("empty_text")
    if not protocol.is_storable(text):
        raise ChatError("bad_text")
    if len(text) > settings.TEXT_MAX_CHARACTERS:
        raise ChatError("text_too_long")
    return text


def _start(ask: Ask) -> list[Started]:
    """Admit, store and enqueue a run for each model, or find those of this client_id."""
    if not re.match(protocol.CLIENT_ID, ask.client_id):
        raise ChatError("bad_json")
    refusal = rules.review(ask.text).refusal() if ask.text else None
    if refusal is not None and not _find(ask):  # a repetition is never refused
        raise refusal
    try:
        for _one in ask.models or (None,):
            admission.admit(ask.user)
    except ChatError:
        # A repetition is never refused: its runs are stored already.
        runs, is_new = _find(ask), False
        if not runs:
            raise
    else:
        runs, is_new = _store(ask)
    if not is_new:
        return [describe(run, stored_position(run), is_new=False) for run in runs]
    # A single reply to a message at the end of its conversation has no sibling.
    has_siblings = not ask.follows_leaf or len(runs) > 1
    if ask.clears_draft:
        db.after_response(drafts.clear, ask.user.pk, ask.conversation_id, timezone.now())
    return [_enqueue(run, has_siblings=has_siblings) for run in runs]


def _enqueue(run: Run, *, has_siblings: bool) -> Started:
    metrics.RUNS_STORED.inc()
    position = enqueue(run)
    started = describe(run, position, is_new=True, has_siblings=has_siblings)
    db.after_response(user_channel.announce_run, run, started.event)
    return started


def enqueue(run: Run) -> queue.Position | None:
    """Enqueue a run that was stored; without Redis the sweeper does, as soon as it answers again."""
    try:
        return queue.enqueue(run)
    except redis.RedisError as error:
        logger.warning("run %s could not be queued yet: %s", run.id, error)
        return None


def _find(ask: Ask) -> list[Run]:
    """Return the stored run of this client_id, or all runs of the comparison by lane."""
    if ask.conversation_id is not None:
        access.conversation(ask.user, ask.conversation_id, write=True)
        runs = whole_runs().filter(conversation=ask.conversation_id)
    else:
        runs = whole_runs().filter(
            conversation__owner=ask.user, conversation__client_id=ask.client_id
        )
    return list(runs.filter(client_id__in=_client_ids(ask)).order_by("lane"))


def _client_ids(ask: Ask) -> list[str]:
    """Return the client_id of each lane; a client cannot name one with "~"."""
    further = range(1, len(ask.models))
    return [ask.client_id, *(f"{ask.client_id}~{lane}" for lane in further)]


def _store(ask: Ask) -> tuple[list[Run], bool]:
    """Store runs and hold their credits, all or none; the flag is False for runs stored earlier."""
    try:
        return in_money_transaction(ask.user, _quote_insert_hold, ask)
    except IntegrityError:
        # The same first message was sent twice at once, and the other one began the
        # conversation (which may have been deleted again).
        if not (found := _find(ask)):
            raise
        return found, False


def in_money_transaction(user: User, store: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that quotes, inserts and holds a user's runs, again if the credits have changed meanwhile.

    Raises ChatError for what billing refuses.
    """
    for turn in range(STORE_TRIES):
        try:
            return db.money_transaction(store, *args, **kwargs)
        except db.MoneyBusy as error:
            raise ChatError(
                "busy", ACCOUNT_LOCKED, retry_after=wait_estimate.MIN_RETRY_AFTER
            ) from error
        except settlement.BalanceChanged as error:
            # The quoted credits were spent or expired meanwhile: quote again.
            if turn == STORE_TRIES - 1:
                raise cost.refusal(error) from error
            settlement.expire_due(error.account_id)
        except settlement.NotPriced as error:
            unpriced = LanguageModel.objects.filter(provider_model=str(error)).first()
            raise offers.unavailable(user, unpriced) from error
        except cost.REFUSALS as error:
            raise cost.refusal(error) from error
    raise AssertionError("unreachable")


def _quote_insert_hold(ask: Ask) -> tuple[list[Run], bool]:
    """The money transaction of `_store`: the conversation is locked first, the account last."""
    if ask.conversation_id is None:
        conversation = _begin(ask)
    else:
        conversation = access.conversation(
            ask.user, ask.conversation_id, write=True, lock=True, model_id=ask.choice.model_id
        )
    # A temporary one, which is open after all.
    if conversation.closed_at and ask.next_message is None:
        Conversation.objects.filter(pk=conversation.pk).update(closed_at=None)
    if ask.next_message is not None:
        _take(ask.next_message)
        conversation.has_next = False
    if not conversation._state.adding:
        # The runs that exclude a new one: the run of this client_id, and an active one. Plain SQL, as
        # each message needs it: Django takes longer to write the query than Postgres to answer it.
        values = {"conversation": conversation.pk, "client": ask.client_id, "user": ask.user.pk}
        [(found_runs, conversation.notes)] = prepared.all(EXCLUDING, values)
        excluding = found_runs or []
        if any(client_id == ask.client_id for client_id, _id in excluding):
            found = whole_runs().filter(conversation=conversation)
            return list(found.filter(client_id__in=_client_ids(ask)).order_by("lane")), False
        if excluding:
            raise ChatError("run_active")
    if isinstance(ask.choice.model_id, int) and (
        ask.choice.model_id != conversation.chosen_model_id
    ):
        raise offers.unavailable(ask.user)  # there is none with this id
    files = uploads.take(ask.user, ask.attachment_ids) if ask.attachment_ids else []
    attached = ask.prompt.attached if ask.prompt else [one.snapshot for one in files]
    if not assistants.may_continue(ask.user, conversation.assistant):
        raise assistants.refusal(conversation.assistant)
    models = ask.models or (conversation.chosen_model,)
    for model in models:
        if not offers.is_usable(ask.user, model):
            raise offers.unavailable(ask.user, model)
        if attached:
            uploads.check_model(model, attached)
    offers.apply_settings(conversation, ask.choice)
    runs = _new_runs(ask, conversation, models, attached)
    cost.apply_quotes(runs)
    _insert(runs, files)
    for run in runs:
        cost.hold(run)
        if ask.api_key is not None:
            cost.check_key(ask.api_key, run.most)
    return runs, True


def _take(row: NextMessage) -> None:
    """Empty the row of a next message, whose conversation is locked. Raises NextChanged."""
    same = NextMessage.objects.filter(pk=row.pk, version=row.version)
    empty = {"state": NextMessage.State.NONE, "text": "", "attachment_ids": [], "problem": ""}
    changed = same.exclude(state=NextMessage.State.NONE)
    if not changed.update(**empty, code="", version=row.version + 1):
        raise NextChanged
    Conversation.objects.filter(pk=row.pk).update(has_next=False)


def _begin(ask: Ask) -> Conversation:
    """Return the conversation that this client_id began, or a new one with the chosen assistant and model.

    Without a choice they are those of the project, the default assistant, and the user's model for new conversations. The caller inserts a new one with its run.
    """
    # Plain SQL, as for `excluding`: it finds a row for a repetition alone.
    [(stored, noted)] = prepared.all(BEGUN, {"user": ask.user.pk, "client": ask.client_id})
    if stored is not None:
        return access.conversation(ask.user, stored, write=True, lock=True)
    choice = ask.choice
    project = None
    if choice.project_id is not None:
        project = access.project(ask.user, choice.project_id, lock=True)
    if choice.assistant_id is not None:
        assistant = assistants.chosen(ask.user, choice.assistant_id)
    elif (found := lifecycle.default_assistant(ask.user, project)) is not None:
        assistant = found
    else:
        raise ChatError("unavailable", NO_ASSISTANT)
    begun = Conversation(
        owner=ask.user,
        assistant=assistant,
        client_id=ask.client_id,
        project=None if choice.temporary else project,
        temporary=choice.temporary,
    )
    begun.notes = noted
    if isinstance(choice.model_id, int):
        if choice.model_id != assistant.model_id:
            begun.model = offers.chosen(ask.user, choice.model_id)
    elif choice.model_id is UNSET and choice.assistant_id is None:
        # An annotation, which the assistant of a project lacks.
        preferred = offers.preferred(ask.user, getattr(assistant, "preferred_model_id", None))
        begun.model = None if preferred == assistant.model else preferred
    return begun


def _new_runs(
    ask: Ask,
    conversation: Conversation,
    models: Sequence[LanguageModel],
    attached: list[dict[str, Any]] | None,
) -> list[Run]:
    """Return a run of each model, with its empty reply and, for a new text, their prompt with its files.

    None of them is stored yet.
    """
    prompt = ask.prompt
    if prompt is None:
        parent_id = conversation.leaf_id if ask.follows_leaf else ask.parent_id
        prompt = Message(
            conversation=conversation,
            parent_id=parent_id,
            role=Message.Role.USER,
            text=ask.text,
            attached=attached or None,
        )
    runs = [_new_run(ask, conversation, prompt, model) for model in models]
    for lane, (run, name) in enumerate(zip(runs, _client_ids(ask), strict=True)):
        run.lane, run.client_id = lane, name
        if len(runs) > 1:
            run.model_snapshot["compared"] = len(runs)
    return runs


def _new_run(ask: Ask, conversation: Conversation, prompt: Message, model: LanguageModel) -> Run:
    text, reasoning = _beginning(ask.continued)
    assistant = conversation.assistant
    temperature = conversation.temperature
    snapshot = {
        "name": model.name,
        "provider_model": model.provider_model,
        "temperature": assistant.temperature if temperature is None else temperature,
        "assistant": assistant.name,
        # Of the events that a worker makes, since it does not load the user.
        "language": languages.active(),
    }
    if ask.api_key is not None:
        snapshot["api_key"] = ask.api_key.pk
    effort = conversation.reasoning_effort or assistant.reasoning_effort
    if effort in model.offered_efforts:
        snapshot["effort"] = effort
    run = Run(
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
        assistant=assistant,
        model=model,
        prefix=text,
        prefix_reasoning=reasoning,
        continued=len(text),
        model_snapshot=snapshot,
    )
    run.instructions = prompt_builder.with_notes(
        [prompt_builder.instructions_of(conversation)],
        None if conversation.temporary else conversation.notes,
        model,
    )
    return run


def _beginning(continued: Message | None) -> tuple[str, str]:
    """Return the text and the reasoning that a reply begins with: those of the one that it continues."""
    if continued is None:
        return "", ""
    thoughts = [
        part.data["text"]
        for part in continued.ordered_parts
        if part.kind == MessagePart.Kind.REASONING
    ]
    return continued.text, "".join(f"{text}\n\n" for text in thoughts)


def _insert(runs: Sequence[Run], files: Sequence[Attachment]) -> None:
    """Insert runs, their replies and, where they are new, prompt and conversation, in one statement.

    The statement also links the prompt to its files, which then no longer expire.
    """
    replies, conversation = [run.message for run in runs], runs[0].conversation
    prompt = replies[0].parent
    assert prompt is not None
    if not prompt._state.adding:
        prepared.write(*replies, *runs)
        if conversation.compared:  # another reply than the compared ones will be shown
            Conversation.objects.filter(pk=conversation.pk).update(compared=None)
        return
    conversation.leaf = replies[0]
    conversation.compared = prompt.pk if len(runs) > 1 else None
    conversation.updated_at = timezone.now()
    conversation.title = conversation.title or lifecycle.first_title(prompt.text or files[0].name)
    if conversation._state.adding:
        shown: Conversation | prepared.Change = conversation
    else:
        shown = prepared.Change(
            "UPDATE chat_conversation SET leaf_id = %s, compared = %s, updated_at = %s, title = %s,"
            " model_id = %s, temperature = %s, reasoning_effort = %s WHERE id = %s",
            [
                replies[0].pk,
                conversation.compared,
                conversation.updated_at,
                conversation.title,
                conversation.model_id,
                conversation.temperature,
                conversation.reasoning_effort,
                conversation.pk,
            ],
        )
    linking: list[MessageAttachment | prepared.Change] = []
    if files:
        linking += [MessageAttachment(message=prompt, attachment=one) for one in files]
        keep = "UPDATE chat_attachment SET expires_at = NULL WHERE id = ANY(%s)"
        linking.append(prepared.Change(keep, [[one.pk for one in files]]))
    prepared.write(prompt, *replies, *runs, *linking, shown)
