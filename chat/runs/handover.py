"""What becomes of a run whose worker cannot go on: another attempt, by whatever worker is there.

Two hand a run over: a worker that has to end before its replies are finished, and the sweeper, for
a worker that is gone. Whoever finds the run as it expects, under its lock, does it. What the
attempt delivered is the operator's cost; the user pays for the attempt that ends the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from billing.metering import settlement
from chat import protocol
from chat.llm.tokens import typical_tokens
from chat.models import Run
from chat.runs import finish
from chatproject.lib import db


@dataclass(frozen=True, slots=True)
class LostAttempt:
    """An attempt that its worker cannot finish, and the reply as it had it.

    `text` and `reasoning` include what the attempt began from.
    """

    run_id: UUID
    attempt: int
    text: str
    reasoning: str


def hand_over(lost: Sequence[LostAttempt]) -> list[Run]:
    """Put running runs back among the queued ones; the caller then puts their next jobs in line.

    A model that can continue will go on from the text. Returns the runs that were handed over:
    without those that are not (or no more) running in the attempt that is named, and without those
    that somebody else is just ending. In those nothing was changed.
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
        _requeue(run, lost[run.pk])
    Run.objects.bulk_update(runs, ["status", "prefix", "prefix_reasoning"])
    return runs


def _requeue(run: Run, lost: LostAttempt) -> None:
    usage = _delivered(run, lost.text, lost.reasoning)
    if usage is not None:
        settlement.write_off(
            finish.call_of(run), tokens=finish.tokens(usage), source=finish.source(usage)
        )
    run.status = Run.Status.QUEUED
    # Without a text there is nothing to go on from: the one of the attempt before, if any, stays.
    if run.model.continuation and lost.text:
        run.prefix, run.prefix_reasoning = lost.text, lost.reasoning


def _delivered(run: Run, text: str, reasoning: str) -> protocol.Usage | None:
    """The usage of an attempt, counted from what it added to what it began from."""
    added = text.removeprefix(run.prefix)
    thought = reasoning.removeprefix(run.prefix_reasoning)
    if not added and not thought:
        return None
    prompt_tokens = run.prompt_estimate + typical_tokens(run.prefix)
    return finish.counted_usage(prompt_tokens, added, thought)
