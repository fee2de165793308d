"""Handing a run over: requeues a run whose worker cannot continue, for another attempt.

Two callers hand runs over: a worker that has to end before its replies are finished, and the sweeper,
for a worker that died. The row lock and the attempt's number fence each other: the caller that finds
the run running at that attempt requeues it.

The operator pays for a lost attempt; the user pays for the attempt that ends the run. If the user stops
the run before the provider has accepted another request, the lost attempt is the one that ends it. The
usage of the last lost attempt is therefore kept in the run's row, and recorded when the run ends or
loses another attempt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from billing.metering import settlement
from chat import protocol
from chat.llm.quirks import Quirks
from chat.llm.tokens import typical_tokens
from chat.models import Run
from chat.runs import finish
from chatproject.lib import db


@dataclass(frozen=True, slots=True)
class LostAttempt:
    """An attempt that its worker cannot finish, and the reply so far.

    `text` and `reasoning` include the prefix that the attempt began from; `tools` are the texts of its tool calls.
    `usage` is the one that its worker
    reported; without it, the usage is counted from the text. `is_accepted` if the provider had accepted
    the request, which without a text is not known otherwise.
    """

    run_id: UUID
    attempt: int
    text: str
    reasoning: str
    usage: protocol.Usage | None = None
    is_accepted: bool = False
    tools: str = ""


def can_begin_again(run: Run, text: str, tools: str) -> bool:
    """Return whether a run can have another attempt after one that has written `text` and `tools`.

    A streamed reply of the API cannot be taken back: with an output, only a model that continues it goes on.
    """
    if run.api is None or not run.api["streamed"] or not (text or tools):
        return True
    model = run.answered_by or run.model
    continues = model.continuation and Quirks.of(model.quirks).continues
    return bool(continues) and not tools


def hand_over(lost: Sequence[LostAttempt]) -> list[Run]:
    """Requeue running runs; the caller then enqueues their next jobs.

    A model that can continue will go on from the text. Returns the requeued runs. Runs that are no
    longer running at this attempt, or that another transaction has locked, are skipped unchanged.
    Raises db.MoneyBusy.
    """
    return db.money_transaction(_hand_over, {one.run_id: one for one in lost})


def _hand_over(lost: Mapping[UUID, LostAttempt]) -> list[Run]:
    running = (
        Run.objects.select_related("model", "answered_by", "price", "user")
        .select_for_update(no_key=True, skip_locked=True, of=("self",))
        .filter(pk__in=lost, status=Run.Status.RUNNING)
        .order_by("pk")
    )
    runs = [run for run in running if run.attempt == lost[run.pk].attempt]
    for run in runs:
        _keep_usage(run, lost[run.pk])
        run.status = Run.Status.QUEUED
        # Without a text there is nothing to continue from: the prefix of the attempt before, if any,
        # stays.
        model = run.answered_by or run.model
        continues = model.continuation and Quirks.of(model.quirks).continues
        # Any model continues by being asked to, but would then not begin a reply of its own.
        # One with finished steps goes on after them: their text is the prefix.
        if not run.steps and (continues or run.continued) and lost[run.pk].text:
            run.prefix, run.prefix_reasoning = lost[run.pk].text, lost[run.pk].reasoning
    Run.objects.bulk_update(
        runs, ["status", "prefix", "prefix_reasoning", "model_snapshot", *USAGE]
    )
    return runs


# The columns of finish.usage_of.
USAGE = (
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "usage_estimated",
)


def _keep_usage(run: Run, lost: LostAttempt) -> None:
    """Set the usage of a lost attempt in its run, and write off that of the attempt before."""
    usage = usage_of_attempt(run, lost)
    if usage is None:
        return
    earlier = finish.usage_of(run)
    if earlier is not None:
        settlement.write_off(
            replace(
                finish.call_of(run),
                attempt=run.attempt - 1,
                model=run.model_snapshot.get(finish.LOST_MODEL, finish.call_of(run).model),
            ),
            tokens=finish.tokens(earlier),
            source=finish.source(earlier),
        )
    run.model_snapshot[finish.LOST_MODEL] = finish.call_of(run).model
    run.prompt_tokens = usage.prompt_tokens
    run.completion_tokens = usage.completion_tokens
    run.cached_tokens = usage.cached_tokens
    run.reasoning_tokens = usage.reasoning_tokens
    run.usage_estimated = usage.estimated


def usage_of_attempt(run: Run, lost: LostAttempt) -> protocol.Usage | None:
    """Return the usage of a lost attempt; None if no provider accepted its request.

    The prefix that it continued was a part of its prompt, and is not output of this attempt.
    """
    if lost.usage is not None:
        return lost.usage
    text = lost.text.removeprefix(run.prefix)
    reasoning = lost.reasoning.removeprefix(run.prefix_reasoning)
    if not lost.text.startswith(run.prefix):  # it turned out to be reasoning
        reasoning = reasoning.removeprefix(run.prefix)
    if not (text or reasoning or lost.tools or lost.is_accepted):
        return None
    # The text of another reply that it continues is part of the estimate.
    prompt_tokens = run.prompt_estimate + typical_tokens(run.prefix[run.continued :])
    return finish.counted_usage(prompt_tokens, text + lost.tools, reasoning)
