"""Ending a run: one money transaction, and the run's last event.

Three callers end runs: the worker that generated the reply, a user's stop of a run that no worker has
yet, and the sweeper. The conditional lock is a compare-and-set: the caller that finds the run in the
expected status and attempt ends it, and the others change nothing. The event is built from the row, so
live and late followers receive identical bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from django.utils import timezone
from django.utils.translation import gettext

from accounts import api_keys
from billing.metering import settlement
from billing.metering.pricing import Tokens
from billing.models import Hold, ModelPrice, UsageRecord
from chat import errors, protocol
from chat.conversations import branches
from chat.conversations.path import sibling_ids
from chat.llm.tokens import typical_tokens
from chat.models import Conversation, Message, MessagePart, Run, Siblings
from chat.rendering import tools as rendered_tools
from chat.rendering.document import to_html
from chat.rendering.message import cites, message_html, streamed_spans
from chat.runs import fallback, queue, steps, webhook_events
from chat.streaming import user_channel
from chat.tools.models import RunStep
from chatproject.lib import db, languages, metrics
from chatproject.lib.db import prepared
from chatproject.lib.log_events import log_event

# Where Run.model_snapshot has the model of the attempt whose usage is in the run's columns.
LOST_MODEL = "lost_model"

FINISH = {
    Run.Status.DONE: UsageRecord.Finish.COMPLETE,
    Run.Status.STOPPED: UsageRecord.Finish.STOPPED,
    Run.Status.FAILED: UsageRecord.Finish.FAILED,
}


@dataclass(slots=True)
class Outcome:
    """The result of a run; `message` and `cause` are set for a failed run only, `code` also if staff stopped it.

    `cause` is the kind of a provider's failure (llm.errors.Cause), for operators.
    `usage` is that of the attempt that ends it, and None if no provider accepted its request.
    `html` is the rendered text, if all of it was published before; otherwise it is rendered here.
    `is_users_stop` is False when an operator stopped the job, or staff the run. `has_next` is set by `end`: a
    message is to be sent after the reply (next_message.py). `tool_calls` belong to a reply of the API.
    """

    status: Run.Status
    text: str = ""
    reasoning: str = ""
    reasoning_seconds: float | None = None  # from its first to its last word
    finish_reason: str = ""
    code: str = ""
    message: str = ""
    cause: str = ""
    usage: protocol.Usage | None = None
    first_token_at: datetime | None = None
    by: Hold.Resolver = Hold.Resolver.WORKER
    is_users_stop: bool = True
    html: str | None = None
    has_next: bool = False
    tool_calls: Sequence[dict[str, Any]] = ()


def counted_usage(prompt_tokens: int, text: str, reasoning: str) -> protocol.Usage:
    """Return the usage of an attempt whose provider sent none, counted from the text that it added."""
    reasoning_tokens = typical_tokens(reasoning)
    return protocol.Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=typical_tokens(text) + reasoning_tokens,
        reasoning_tokens=reasoning_tokens,
        estimated=True,
    )


def failed(code: str, message: str = "", *, text: str = "") -> Outcome:
    """Return the outcome of a failed run; `message` is by default the sentence of ERRORS."""
    return Outcome(
        status=Run.Status.FAILED, code=code, message=message or errors.ERRORS[code], text=text
    )


def end(
    *, run_id: UUID, attempt: int, status: Run.Status, seq: int, outcome: Outcome
) -> protocol.RunEnd | None:
    """End a run that is in `status` at `attempt`; `seq` becomes the number of its last event.

    The reply and its charge are stored together. Returns the event to publish, or None when the run is
    not in the expected state: then another process has it or has ended it, and nothing was changed.
    Raises db.MoneyBusy, after which the call may be repeated.
    """
    html = outcome.html
    if html is None:
        html = to_html(outcome.text) if outcome.text else ""
    run = db.money_transaction(_end, run_id, attempt, status, seq, outcome, html)
    if run is None:
        return None
    _report(run)
    outcome.has_next = run.conversation.has_next
    # Only beside a sibling can another run of the conversation be active.
    has_others = run.message.siblings is not None
    user_channel.announce_conversation(
        run.conversation,
        active=has_others and Run.objects.active().filter(conversation=run.conversation).exists(),
    )
    if (
        run.has_devices
        and run.api is None
        and not (run.status == Run.Status.STOPPED and outcome.is_users_stop)
    ):
        queue.enqueue_notification(run.pk)
    is_streamed = bool(outcome.html) and run.message.html == outcome.html
    # The lines of calls were streamed in another form.
    return event(run, is_streamed=is_streamed and not run.steps)


def _report(run: Run) -> None:
    """Log and measure the end of a run."""

    def seconds(start: datetime | None, end: datetime | None) -> float | None:
        return round((end - start).total_seconds(), 3) if start and end else None

    wait = seconds(run.queued_at, run.started_at)
    first_token = seconds(run.queued_at, run.first_token_at)
    duration = seconds(run.started_at, run.ended_at)
    metrics.RUNS_ENDED.labels(run.status, run.error_code, run.error_cause).inc()
    if duration is not None:
        metrics.RUN_SECONDS.observe(duration)
    if run.attempt == 1:  # the times of a later attempt include the earlier ones
        if wait is not None:
            metrics.RUN_WAIT.observe(wait)
        if first_token is not None:
            metrics.FIRST_TOKEN.observe(first_token)
    log_event(
        "run_ended",
        run_id=run.pk,
        user_id=run.user_id,
        attempt=run.attempt,
        outcome=str(run.status),
        code=run.error_code,
        cause=run.error_cause,
        model=run.model_snapshot.get("provider_model"),
        input_tokens=run.prompt_tokens,
        output_tokens=run.completion_tokens,
        charged_microcredits=run.charged,
        wait_seconds=wait,
        first_token_seconds=first_token,
        seconds=duration,
    )


# In plain SQL, as are the other statements here, since each run ends once: see lib.db.prepared.
# The webhooks are locked, so that none is deleted before the commit.
LOCK = f"""
SELECT {prepared.columns(Run, "run")}, {prepared.columns(ModelPrice, "price")},
  (SELECT {sibling_ids("reply")} FROM chat_message AS reply WHERE reply.id = run.message_id),
  EXISTS (SELECT FROM chat_pushsubscription AS device WHERE device.user_id = run.user_id),
  ARRAY(
    SELECT webhook.id FROM chat_webhook AS webhook
    WHERE webhook.owner_id = run.user_id AND webhook.active AND webhook.events ? 'run.done'
    FOR KEY SHARE
  )
FROM chat_run AS run LEFT JOIN billing_modelprice AS price ON price.id = run.price_id
WHERE run.id = %s AND run.attempt = %s AND run.status = %s FOR NO KEY UPDATE OF run
"""  # noqa: S608 # of names alone

# Shows the new reply, unless it replaces another one and failed, has no text, or another branch was chosen.
MOVE_LEAF = f"""
UPDATE chat_conversation
SET leaf_id = %(reply)s, updated_at = %(now)s, unread = unread OR %(unread)s
WHERE id = %(id)s AND (leaf_id = %(reply)s OR %(moves)s)
RETURNING {prepared.columns(Conversation, "chat_conversation")}
"""  # noqa: S608 # of names alone


def _end(
    run_id: UUID, attempt: int, status: Run.Status, seq: int, outcome: Outcome, html: str
) -> Run | None:
    row = prepared.first(LOCK, [run_id, attempt, status], Run, ModelPrice)
    if row is None:
        return None
    run: Run
    run, run.price, siblings, run.has_devices, webhook_ids = row
    now = timezone.now()
    if run.continued and not outcome.text[run.continued :].strip():
        # Without a word of its own it is an empty reply: the one that it was to continue stays shown.
        outcome, html = replace(outcome, text="", reasoning=""), ""
    if outcome.status == Run.Status.STOPPED and run.error_code in Run.STOPPED_BY_OTHERS:
        outcome = replace(outcome, code=run.error_code, is_users_stop=False)
    made = steps.load(run.pk) if run.steps else []
    if made:
        html = _with_slots(outcome.text, html, made)
    run.message = _store_message(run, outcome, html, made)
    run.message.siblings = Siblings.of(run.message_id, siblings)
    leaf = {
        "id": run.conversation_id,
        "reply": run.message_id,
        "now": now,
        "unread": not (outcome.status == Run.Status.STOPPED and outcome.is_users_stop),
        "moves": run.moves_leaf and outcome.status != Run.Status.FAILED and bool(outcome.text),
    }
    moved = prepared.first(MOVE_LEAF, leaf, Conversation)
    run.conversation = moved[0] if moved else run.conversation
    call, usage, lost = call_of(run), outcome.usage, usage_of(run)
    if lost is not None:
        # The attempt before lost its worker; a queued run has not been claimed again since.
        lost_call = replace(
            call,
            attempt=run.attempt - (status == Run.Status.RUNNING),
            model=run.model_snapshot.get(LOST_MODEL, call.model),
        )
        if usage is None and outcome.status == Run.Status.STOPPED and outcome.is_users_stop:
            call, usage = lost_call, lost  # the provider's last work for a user who then stopped it
        else:
            settlement.write_off(lost_call, tokens=tokens(lost), source=source(lost))
    # Late, since others wait for the account's row (lock order: run, message, hold, account, lots).
    charge = settlement.charge(
        call,
        tokens=tokens(usage) if usage else None,
        source=source(usage),
        finish=_finish(run, outcome, made),
        by=outcome.by,
        steps=steps.billed(made),
    )
    if made:
        requests = [steps.usage_of(one) for one in made if one.kind == steps.Kind.REQUEST]
        usage = steps.total([*requests, *([usage] if usage else [])])
    if run.api_key_id is not None and charge is not None:
        api_keys.spend(run.api_key_id, charge.charged, now)
    _store(run, outcome, usage, charge, seq, now, webhook_ids)
    return run


def _with_slots(text: str, html: str, made: Sequence[RunStep]) -> str:
    """Return the HTML of a reply with a slot for each call, rendered anew if it lacks one."""
    calls = [(one.at, str(one.number)) for one in made if one.kind == steps.Kind.CALL]
    if rendered_tools.has_slots(html, [call for _at, call in calls]):
        return html
    return rendered_tools.to_html_with_slots(text, calls)


def _finish(run: Run, outcome: Outcome, made: Sequence[RunStep]) -> UsageRecord.Finish:
    """Return the end as billing has it: a reply without a word is EMPTY, unless its user stopped it.

    So is a failed or interrupted reply of the API that was not streamed: nothing of it was delivered, unless it
    reached a limit. The results of tools count as words. A finished reply of the API is never EMPTY: by `stop`, `logit_bias` or its cap a caller could have
    prompts read, and reasoning written, for nothing. Reasoning that was streamed was delivered.
    """
    is_users_stop = outcome.status == Run.Status.STOPPED and outcome.is_users_stop
    has_words = bool(outcome.text.strip() or outcome.tool_calls)
    has_words |= any(one.request and one.status == steps.Status.DONE for one in made)
    if run.api is not None:
        is_done = outcome.status == Run.Status.DONE
        has_words |= is_done or bool(run.api["streamed"] and outcome.reasoning)
    if not has_words and not is_users_stop:
        return UsageRecord.Finish.EMPTY
    if outcome.status == Run.Status.STOPPED and outcome.code == Run.INTERRUPTED:
        return UsageRecord.Finish.EMPTY
    if outcome.status == Run.Status.FAILED and run.api is not None and not run.api["streamed"]:
        return (
            FINISH[outcome.status] if outcome.code == "limit_reached" else UsageRecord.Finish.EMPTY
        )
    return FINISH[outcome.status]


STORE_MESSAGE = "UPDATE chat_message SET text = %s, html = %s, status = %s WHERE id = %s"


REMEMBER = "UPDATE chat_message SET attached = %s::jsonb WHERE id = %s"


def _store_message(run: Run, outcome: Outcome, html: str, made: Sequence[RunStep]) -> Message:
    """Write the reply into its message; return the message as far as the last event shows it."""
    message = Message(
        id=run.message_id,
        conversation_id=run.conversation_id,
        role=Message.Role.ASSISTANT,
        text=outcome.text,
        html=html,
        status=outcome.status,
    )
    prepared.change(STORE_MESSAGE, [outcome.text, html, outcome.status, run.message_id])
    message.ordered_parts = []
    if outcome.reasoning:
        reasoning = MessagePart.objects.create(
            message=message,
            position=0,
            kind=MessagePart.Kind.REASONING,
            data=reasoning_data(outcome),
        )
        message.ordered_parts.append(reasoning)
    for position, call in enumerate(outcome.tool_calls, start=1):
        MessagePart.objects.create(
            message=message, position=position, kind=MessagePart.Kind.TOOL_CALL, data=call
        )
    if made:
        with languages.use(run.model_snapshot.get("language")):
            message.ordered_parts += steps.store_parts(message, made, len(message.ordered_parts))
        remembered = msgspec.json.encode(steps.memory_of(made)).decode()
        prepared.change(REMEMBER, [remembered, run.message_id])
    return message


def reasoning_data(outcome: Outcome) -> dict[str, Any]:
    """Return the stored reasoning, with its duration in whole seconds if that is known."""
    data: dict[str, Any] = {"text": outcome.reasoning}
    if outcome.reasoning_seconds is not None:
        data["seconds"] = max(1, round(outcome.reasoning_seconds))
    return data


def call_of(run: Run) -> settlement.Call:
    """Return a run's present attempt as billing records it; the run must have its price loaded."""
    answering = fallback.names_of(run)
    return settlement.Call(
        run_id=run.pk,
        attempt=run.attempt,
        user_id=run.user_id,
        price=run.price,
        fee=run.fee,
        is_held=run.most > 0,
        model=(answering or run.model_snapshot)["provider_model"],
        assistant=run.model_snapshot.get("assistant", ""),  # older runs do not name it
        conversation=run.conversation_id,
        most=run.most if answering else None,
        api_key=run.api_key_id,
    )


def usage_of(run: Run) -> protocol.Usage | None:
    """Return the usage in a run's columns.

    While a run is active that is the usage of its last lost attempt, whose cost is not recorded yet.
    """
    if run.prompt_tokens is None:
        return None
    return protocol.Usage(
        prompt_tokens=run.prompt_tokens,
        completion_tokens=run.completion_tokens or 0,
        cached_tokens=run.cached_tokens or 0,
        reasoning_tokens=run.reasoning_tokens or 0,
        estimated=run.usage_estimated,
    )


def source(usage: protocol.Usage | None) -> UsageRecord.Source:
    """Return the source of a usage as billing records it."""
    is_counted = usage is not None and usage.estimated
    return UsageRecord.Source.COUNTED if is_counted else UsageRecord.Source.PROVIDER


def tokens(usage: protocol.Usage) -> Tokens:
    """Return the tokens of a run as billing records them."""
    return Tokens(
        input=usage.prompt_tokens,
        cached=usage.cached_tokens,
        output=usage.completion_tokens,
        reasoning=usage.reasoning_tokens,
    )


def _store(
    run: Run,
    outcome: Outcome,
    usage: protocol.Usage | None,
    charge: settlement.Charge | None,
    seq: int,
    now: datetime,
    webhook_ids: list[UUID],
) -> None:
    values: dict[str, Any] = {
        "status": outcome.status,
        "seq": seq,
        "prefix": "",  # now in the message
        "prefix_reasoning": "",
        "ended_at": now,
        "first_token_at": outcome.first_token_at,
        "finish_reason": outcome.finish_reason[:30],
        "error_code": outcome.code,
        "error_message": outcome.message[:300],
        "error_cause": outcome.cause,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "reasoning_tokens": usage.reasoning_tokens if usage else None,
        "usage_estimated": bool(usage and usage.estimated),
        "cost": charge.cost if charge else None,
        "charged": charge.charged if charge else None,
    }
    if run.waits_until is not None:
        values["waits_until"] = None
    for name, value in values.items():
        setattr(run, name, value)
    columns = ", ".join(f"{name} = %s" for name in values)
    ending = prepared.Change(
        f"UPDATE chat_run SET {columns} WHERE id = %s",  # noqa: S608 # of names alone
        [*values.values(), run.pk],
    )
    prepared.write(*webhook_events.of_run(webhook_ids, run), ending)


def read(run_id: UUID) -> protocol.RunEnd | None:
    """Return the last event of a run that has ended, from its row; None for an active run.

    Most callers have just begun to follow an active run, so the rest of the row is read only when the
    run has ended.
    """
    if Run.objects.active().filter(pk=run_id).exists():
        return None
    run = Run.objects.select_related("message").get(pk=run_id)
    branches.read_siblings([run.message])
    return event(run)


def event(run: Run, *, is_streamed: bool = False) -> protocol.RunEnd:
    """Return the last event of a run that has ended; `is_streamed`: its reply was published with its HTML."""
    message: Message = run.message
    # The page shows the run below the message: set here, it costs no query.
    message.run = run
    # Live and late followers receive the same sentences.
    with languages.use(run.model_snapshot.get("language")):
        html = message_html(message) if run.api is None else ""
        sentence = gettext(run.error_message) if run.error_message else ""
    common: dict[str, Any] = {
        "run": run.id,
        "attempt": run.attempt,
        "seq": run.seq,
        "conversation": run.conversation_id,
        "reply": message.id,
        "text": message.text,
        "html": html,
        "usage": usage_of(run),
        "cost": run.charged,
        "answered_by": (fallback.names_of(run) or {}).get("name", "") if message.text else "",
        "streamed": streamed_spans(html, message) if is_streamed and not cites(message) else [],
    }
    if run.status == Run.Status.DONE:
        return protocol.RunDone(**common, finish_reason=run.finish_reason)
    if run.status == Run.Status.STOPPED:
        return protocol.RunStopped(**common)
    return protocol.RunFailed(**common, code=run.error_code, message=sentence)
