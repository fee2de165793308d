"""Usage reports: of a user by day, model and assistant, and of all users by model.

Rolled-up days are read from `DailyUsage`, later ones from the records (billing.metering.usage).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import date
from typing import Any

from django.db.models import Sum, Value
from django.db.models.functions import TruncDate
from django.utils import timezone

from billing.credits import exact
from billing.metering.usage import DAY, last_rolled_day, start_of
from billing.models import DailyUsage, UsageRecord


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of calls, tokens and micro-credits.

    `cached_tokens` are part of the input tokens, `reasoning_tokens` of the output tokens; `cost` is
    the sum of `charged`, `shortfall` and `absorbed`.
    """

    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost: int = 0
    charged: int = 0
    shortfall: int = 0
    absorbed: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(getattr(self, name) + getattr(other, name) for name in COLUMNS))


COLUMNS = [field.name for field in fields(Sums)]


@dataclass(frozen=True, slots=True)
class DayRow:
    """The usage of one model on one day."""

    day: date
    model: str
    sums: Sums


@dataclass(frozen=True, slots=True)
class ModelRow:
    """The usage of one model in a span of days."""

    model: str
    sums: Sums


@dataclass(frozen=True, slots=True)
class AssistantRow:
    """The usage of one assistant in a span of days; its name is empty for calls without one."""

    assistant: str
    sums: Sums


@dataclass(frozen=True, slots=True)
class UsageReport:
    """A user's usage: by day and model (oldest day first), by assistant (costliest first), in all."""

    rows: list[DayRow]
    by_assistant: list[AssistantRow]
    total: Sums


def report(user_id: int, *, first: date, last: date) -> UsageReport:
    """Return a user's usage from the first to the last day, both included."""
    by_day: dict[tuple[date, str], Sums] = {}
    by_assistant: dict[str, Sums] = {}
    total = Sums()
    for (day, model, assistant), sums in _sums(["day", "model", "assistant"], first, last, user_id):
        by_day[day, model] = by_day.get((day, model), Sums()) + sums
        by_assistant[assistant] = by_assistant.get(assistant, Sums()) + sums
        total += sums
    return UsageReport(
        rows=[DayRow(*key, by_day[key]) for key in sorted(by_day)],
        by_assistant=[AssistantRow(*item) for item in _costliest_first(by_assistant)],
        total=total,
    )


def by_model(first: date, last: date) -> list[ModelRow]:
    """Return all users' usage by model, costliest first, from the first to the last day included."""
    models: dict[str, Sums] = {}
    for (model,), sums in _sums(["model"], first, last, None):
        models[model] = models.get(model, Sums()) + sums
    return [ModelRow(*item) for item in _costliest_first(models)]


def csv_rows(found: UsageReport) -> Iterator[list[str]]:
    """Yield a report as rows for `statements.to_csv`, with the names of the columns first.

    Amounts are credits. Names are not escaped: a spreadsheet may take one for a formula.
    """
    yield [
        "day", "model", "calls", "input tokens", "cached input tokens", "output tokens",
        "reasoning tokens", "credits",
    ]  # fmt: skip
    for row in found.rows:
        sums = row.sums
        counts = (
            sums.calls, sums.input_tokens, sums.cached_tokens, sums.output_tokens,
            sums.reasoning_tokens,
        )  # fmt: skip
        yield [row.day.isoformat(), row.model, *map(str, counts), exact(sums.charged)]


def _sums(
    keys: list[str], first: date, last: date, user_id: int | None
) -> Iterator[tuple[tuple[Any, ...], Sums]]:
    """Yield sums by the keys, of rolled-up days and of the records since; a key may come twice.

    Records stay in place when their day is rolled up. So it suffices to decide once which days are
    read from which table, even while a roll-up runs.
    """
    rolled = last_rolled_day()
    live_from = first if rolled is None else max(first, rolled + DAY)
    days = DailyUsage.objects.filter(day__gte=first, day__lte=min(last, live_from - DAY))
    records = UsageRecord.objects.filter(
        created_at__gte=start_of(live_from), created_at__lt=start_of(last + DAY)
    ).annotate(calls=Value(1), day=TruncDate("created_at", tzinfo=timezone.get_default_timezone()))
    for query in (days, records):
        if user_id is not None:
            query = query.filter(user_id=user_id)
        names = {f"all_{name}": Sum(name) for name in COLUMNS}
        for row in query.order_by().values_list(*keys).annotate(**names):
            yield row[: len(keys)], Sums(*(int(number) for number in row[len(keys) :]))


def _costliest_first(sums: dict[str, Sums]) -> list[tuple[str, Sums]]:
    return sorted(sums.items(), key=lambda item: (-item[1].cost, item[0]))
