"""The steps of runs that call tools: stored at their boundaries, so that a lost worker's next attempt goes on.

A request that asks for tools is stored with its calls before any of them begins, and each call's end is stored
as it comes. Writes are fenced by the run's attempt. A call that had begun when its worker was lost is repeated,
unless it has an effect: then the model is told that its outcome is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy

from billing.metering import settlement
from billing.metering.pricing import Tokens
from billing.models import UsageRecord
from chat import protocol
from chat.models import Message, MessagePart, Run
from chat.tools.models import RunStep
from chatproject.lib import languages

MEMORY_CHARACTERS = 500  # of a result, in the prompts of later turns
MOST_RESULT = 100_000  # characters of a result that are stored
CUT = "…"

Kind, Status = RunStep.Kind, RunStep.Status

STOPPED = gettext_lazy("Stopped")
UNKNOWN = gettext_lazy("It is not known whether this was done.")
REFUSED = gettext_lazy("You did not allow this.")
EXPIRED = gettext_lazy("You did not answer in time.")

FOR_MODEL = {
    "unknown": "The worker was lost during this call. Its outcome is unknown: it may have been done. Do not call"
    " it again; tell the user to check.",
    Status.REFUSED: "The user did not allow this call. Do not try it again.",
    Status.EXPIRED: "The user did not answer in time whether this call is allowed, so it was not made.",
}


class LostRun(Exception):
    """Another process has the run, or has ended it."""


def load(run_id: UUID) -> list[RunStep]:
    """Return the stored steps of a run, in order."""
    return list(RunStep.objects.filter(run=run_id).order_by("number"))


def store(run: Run, steps: Sequence[RunStep], *, text: str, reasoning: str) -> None:
    """Store a request with its calls, and the reply so far. Raises LostRun."""
    with transaction.atomic():
        ours = Run.objects.filter(pk=run.pk, attempt=run.attempt, status=Run.Status.RUNNING)
        if not ours.update(steps=steps[-1].number, prefix=text, prefix_reasoning=reasoning):
            raise LostRun
        RunStep.objects.bulk_create(steps)
    run.steps = steps[-1].number


def begin(run: Run, calls: Sequence[RunStep]) -> None:
    """Store that calls begin in this attempt, before they do. Raises LostRun."""
    now = timezone.now()
    with transaction.atomic():
        ours = Run.objects.select_for_update(no_key=True).filter(
            pk=run.pk, attempt=run.attempt, status=Run.Status.RUNNING
        )
        if not ours.values_list("pk").first():
            raise LostRun
        RunStep.objects.filter(run=run.pk, number__in=[one.number for one in calls]).update(
            status=Status.RUNNING, attempt=run.attempt, begun_at=now
        )
    for one in calls:
        one.status, one.attempt, one.begun_at = Status.RUNNING, run.attempt, now


FIELDS_OF_END = ("status", "result", "summary", "parts", "untrusted", "fee", "seconds", "ended_at")


def finish(step: RunStep) -> None:
    """Store the end of a call. Raises LostRun if another attempt has it, or the run has ended."""
    found = RunStep.objects.filter(run=step.run_id, number=step.number, attempt=step.attempt)
    values = {name: getattr(step, name) for name in FIELDS_OF_END}
    if not found.filter(status__in=RunStep.PENDING).update(**values):
        raise LostRun


def close(step: RunStep, status: str, summary: Any, result: str) -> None:
    """Set the end of a call that was not made to its end, in the language of the run."""
    step.status, step.summary, step.result = status, str(summary)[:300], result
    step.ended_at = timezone.now()


def close_undecided(steps: Iterable[RunStep], run: Run) -> list[RunStep]:
    """Close the calls that an attempt before has left and that are not made again; return them.

    Its worker was lost during one with an effect; or the user refused one, or did not answer in time.
    """
    closed = []
    with languages.use(run.model_snapshot.get("language")):
        for one in steps:
            if one.kind != Kind.CALL or one.ended_at:
                continue
            if one.status == Status.RUNNING and one.has_effect and one.attempt < run.attempt:
                close(one, Status.FAILED, UNKNOWN, FOR_MODEL["unknown"])
            elif one.status == Status.REFUSED:
                close(one, Status.REFUSED, REFUSED, FOR_MODEL[Status.REFUSED])
            elif one.status == Status.EXPIRED:
                close(one, Status.EXPIRED, EXPIRED, FOR_MODEL[Status.EXPIRED])
            else:
                continue
            closed.append(one)
    RunStep.objects.bulk_update(closed, FIELDS_OF_END)
    return closed


def park(run: Run, until: datetime) -> bool:
    """Let a running run wait for its user's answer, without a worker; False if all calls are decided already.

    Raises LostRun.
    """
    with transaction.atomic():
        ours = Run.objects.select_for_update(no_key=True).filter(
            pk=run.pk, attempt=run.attempt, status=Run.Status.RUNNING
        )
        found = ours.first()
        if found is None:
            raise LostRun
        if not RunStep.objects.filter(run=run.pk, status=Status.WAITING).exists():
            return False
        Run.objects.filter(pk=run.pk).update(
            status=Run.Status.QUEUED, waits_until=until, waits=found.waits + 1
        )
    return True


# --- The end of a run ---------------------------------------------------------------------------


def usage_of(step: RunStep) -> protocol.Usage:
    """Return the usage of a request."""
    return protocol.Usage(
        prompt_tokens=step.prompt_tokens,
        completion_tokens=step.completion_tokens,
        cached_tokens=step.cached_tokens,
        reasoning_tokens=step.reasoning_tokens,
        estimated=step.usage_estimated,
    )


def total(usages: Iterable[protocol.Usage]) -> protocol.Usage | None:
    """Return the sum of usages; None without any."""
    found = list(usages)
    if not found:
        return None
    return protocol.Usage(
        prompt_tokens=sum(one.prompt_tokens for one in found),
        completion_tokens=sum(one.completion_tokens for one in found),
        cached_tokens=sum(one.cached_tokens for one in found),
        reasoning_tokens=sum(one.reasoning_tokens for one in found),
        estimated=any(one.estimated for one in found),
    )


def tokens_of(step: RunStep) -> Tokens:
    """Return the tokens of a request as billing records them."""
    return Tokens.reported(
        input=step.prompt_tokens,
        cached=step.cached_tokens,
        output=step.completion_tokens,
        reasoning=step.reasoning_tokens,
    )


def billed(steps: Iterable[RunStep]) -> list[settlement.Step]:
    """Return steps as billing charges them: requests by their tokens, calls that succeeded by their fees."""
    counted, reported = UsageRecord.Source.COUNTED, UsageRecord.Source.PROVIDER
    found = []
    for one in steps:
        if one.kind == Kind.REQUEST:
            source = counted if one.usage_estimated else reported
            found.append(
                settlement.Step(one.number, one.attempt, one.model, tokens_of(one), source)
            )
        elif one.status == Status.DONE and one.fee:
            found.append(settlement.Step(one.number, one.attempt, one.name, fee=one.fee))
    return found


def cut(text: str, characters: int) -> str:
    """Return the beginning of a text, with a mark if it is longer."""
    return text if len(text) <= characters else text[: characters - len(CUT)] + CUT


def arguments_of(step: RunStep) -> Any:
    """Return the arguments as the model wrote them: an object, or a text that is none."""
    try:
        return msgspec.json.decode(step.arguments or "{}")
    except msgspec.DecodeError:
        return step.arguments


def part_of(step: RunStep) -> dict[str, Any]:
    """Return the data of a MessagePart of the kind `tool`."""
    return {
        "call": str(step.number),
        "name": step.name,
        "title": step.title,
        "arguments": arguments_of(step),
        "status": step.status,
        "summary": step.summary,
        "result": step.result,
        "memory": cut(step.result, MEMORY_CHARACTERS),
        "seconds": step.seconds,
        "at": step.at,
    }


def store_parts(message: Message, steps: Sequence[RunStep], position: int) -> list[MessagePart]:
    """Store the calls of a run and what they add as parts of its reply, and delete the steps."""
    parts: list[MessagePart] = []
    for one in steps:
        if one.kind != Kind.CALL:
            continue
        if one.status in RunStep.PENDING:
            close(one, Status.FAILED, STOPPED, "")
        pieces = [(MessagePart.Kind.TOOL.value, part_of(one))]
        pieces += [(made["kind"], made["data"] | {"call": str(one.number)}) for made in one.parts]
        for kind, data in pieces:
            parts.append(MessagePart(message=message, position=position, kind=kind, data=data))
            position += 1
    MessagePart.objects.bulk_create(parts)
    RunStep.objects.filter(run__message=message.pk).delete()
    return parts


def memory_of(steps: Iterable[RunStep]) -> list[dict[str, Any]]:
    """Return what later turns remember of the calls of a reply: a part of `Message.attached`."""
    return [
        {
            "tool": one.name,
            "arguments": cut(one.arguments, MEMORY_CHARACTERS),
            "memory": cut(one.result, MEMORY_CHARACTERS),
            "untrusted": one.untrusted,
        }
        for one in steps
        if one.kind == Kind.CALL and one.request
    ]
