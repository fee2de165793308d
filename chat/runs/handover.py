"""Handing a run over: requeues a run whose worker cannot continue, for another attempt.

Two callers hand runs over: a worker that has to end before its replies are finished, and the sweeper,
for a worker that died. The row lock and the attempt's number fence each other: the caller that finds
the run running at that attempt requeues it. The operator pays for the text of a lost attempt; the user
pays for the attempt that ends the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from billing.metering import settlement
from billing.models import UsageRecord
from chat.llm.tokens import typical_tokens
from chat.models import Run
from chat.runs import finish
from chatproject.lib import db


@dataclass(frozen=True, slots=True)
class LostAttempt:
    """An attempt that its worker cannot finish, and the reply so far.

    `text` and `reasoning` include the prefix that the attempt began from.
    """

    run_id: UUID
    attempt: int
    text: str
    reasoning: str


def hand_over(lost: Sequence[LostAttempt]) -> list[Run]:
    """Requeue running runs; the caller then enqueues their next jobs.

    A model that can continue will go on from the text. Returns the requeued runs. Runs that are no
    longer running at this attempt, or that another transaction has locked, are skipped unchanged.
    Raises db.MoneyBusy.
    """
    return db.money_transaction(_hand_over, {one.run_id: one for one in lost})


def _hand_over(lost: Mapping[UUID, LostAttempt]) -> list[Run]:
    running = (
        Run.objects.select_related("model", "price")
        .select_for_update(no_key=True, skip_locked=True, of=("self",))
        .filter(pk__in=lost, status=Run.Status.RUNNING)
        .order_by("pk")
    )
    runs = [run for run in running if run.attempt == lost[run.pk].attempt]
    for run in runs:
        _write_off(run, lost[run.pk])
        run.status = Run.Status.QUEUED
        # Without a text there is nothing to continue from: the prefix of the attempt before, if any,
        # stays.
        if run.model.continuation and lost[run.pk].text:
            run.prefix, run.prefix_reasoning = lost[run.pk].text, lost[run.pk].reasoning
    Run.objects.bulk_update(runs, ["status", "prefix", "prefix_reasoning"])
    return runs


def _write_off(run: Run, lost: LostAttempt) -> None:
    """Record the usage of a lost attempt, counted from the text that it added to its prefix."""
    text = lost.text.removeprefix(run.prefix)
    reasoning = lost.reasoning.removeprefix(run.prefix_reasoning)
    if text or reasoning:
        prompt_tokens = run.prompt_estimate + typical_tokens(run.prefix)
        usage = finish.counted_usage(prompt_tokens, text, reasoning)
        settlement.write_off(
            finish.call_of(run), tokens=finish.tokens(usage), source=UsageRecord.Source.COUNTED
        )
