"""What was used: records of single calls, their sums by day, and reports of both.

A day is one by the site's time zone (TIME_ZONE). Days that are over are added up once into
`DailyUsage`, which reports read; days since then they read from the records themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import Max, Sum, Value
from django.db.models.functions import TruncDate
from django.utils import timezone

from billing.credits import exact
from billing.metering.pricing import Tokens
from billing.models import DailyUsage, UsageRecord
from billing.models.usage import Purpose
from chatproject.lib import rows

DAY = timedelta(days=1)

# A record carries the time at which its transaction wrote it, and is seen when that commits.
SETTLING = timedelta(minutes=15)
# Days that are counted again with each roll-up, should a record come in later still.
RECOUNTED_DAYS = timedelta(days=3)

TYPICAL_OUTPUT = 300  # tokens of a reply, while nothing is known of the user's
ENDED_WELL = (UsageRecord.Finish.COMPLETE, UsageRecord.Finish.STOPPED)


def today() -> date:
    """The site's day, whatever time zone is activated for the request."""
    return timezone.localdate(timezone=timezone.get_default_timezone())


def start_of(day: date) -> datetime:
    """The first moment of a day of the site."""
    return datetime.combine(day, time.min, tzinfo=timezone.get_default_timezone())


def record(
    *,
    run_id: UUID,
    attempt: int,
    user_id: int,
    model: str,
    tokens: Tokens,
    source: UsageRecord.Source,
    cost: int,
    charged: int,
    shortfall: int,
    absorbed: int,
    finish: UsageRecord.Finish,
    step: int = 0,
    purpose: Purpose = Purpose.CHAT,
    hold_id: UUID | None = None,
    price_id: int | None = None,
    assistant: str = "",
    conversation: UUID | None = None,
) -> None:
    """Write down one call of a provider, in the caller's transaction. Amounts are micro-credits.

    Raises IntegrityError when the step of this attempt is recorded already, and when `cost` is not
    the sum of the other three amounts.
    """
    values = {
        "run": run_id,
        "attempt": attempt,
        "step": step,
        "purpose": purpose,
        "user": user_id,
        "hold": hold_id,
        "price": price_id,
        "model": model,
        "assistant": assistant,
        "conversation": conversation,
        "input": tokens.input,
        "cached": tokens.cached,
        "output": tokens.output,
        "reasoning": tokens.reasoning,
        "source": source,
        "cost": cost,
        "charged": charged,
        "shortfall": shortfall,
        "absorbed": absorbed,
        "finish": finish,
        "now": timezone.now(),
    }
    rows.change(RECORD, values)


RECORD = """
INSERT INTO billing_usagerecord (run_id, attempt, step, purpose, user_id, hold_id, price_id, model,
  assistant, conversation, input_tokens, cached_tokens, output_tokens, reasoning_tokens, source,
  cost, charged, shortfall, absorbed, finish, created_at)
VALUES (%(run)s, %(attempt)s, %(step)s, %(purpose)s, %(user)s, %(hold)s, %(price)s, %(model)s,
  %(assistant)s, %(conversation)s, %(input)s, %(cached)s, %(output)s, %(reasoning)s, %(source)s,
  %(cost)s, %(charged)s, %(shortfall)s, %(absorbed)s, %(finish)s, %(now)s)
"""


def typical_output(user_id: int, model: str) -> int:
    """How long this model's replies to the user are: the mean of the last 20, in tokens.

    TYPICAL_OUTPUT while there are none. Only the user's latest 500 calls are looked at, so that a
    model which is hardly used costs no more to ask about.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            REPLIES,
            {"user": user_id, "model": model, "chat": Purpose.CHAT, "ends": list(ENDED_WELL)},
        )
        (mean,) = cursor.fetchone()
    return TYPICAL_OUTPUT if mean is None else round(mean)


# Read lazily, from the newest on: it ends with the twentieth reply.
REPLIES = """
SELECT avg(output_tokens) FROM (
  SELECT output_tokens FROM (
    SELECT created_at, model, purpose, finish, output_tokens FROM billing_usagerecord
    WHERE user_id = %(user)s ORDER BY created_at DESC LIMIT 500
  ) AS calls
  WHERE model = %(model)s AND purpose = %(chat)s AND finish = ANY(%(ends)s)
  ORDER BY created_at DESC LIMIT 20
) AS replies
"""


def roll_up(now: datetime) -> None:
    """Add up the days that are over and were not yet, and once more the latest RECOUNTED_DAYS.

    May run twice at once and any number of times: one statement, in which a sum only ever grows,
    as no record is changed or deleted.
    """
    last = timezone.localdate(now - SETTLING, timezone.get_default_timezone()) - DAY
    rolled = _last_rolled()
    first_moment = None if rolled is None else start_of(rolled - RECOUNTED_DAYS + DAY)
    with connection.cursor() as cursor:
        cursor.execute(
            ROLL_UP,
            {
                "zone": settings.TIME_ZONE,
                "first": first_moment,
                "end": start_of(last + DAY),
            },
        )


ROLL_UP = """
INSERT INTO billing_dailyusage AS d
  (day, user_id, model, assistant, purpose, calls, input_tokens, cached_tokens, output_tokens,
   reasoning_tokens, cost, charged, shortfall, absorbed)
SELECT (created_at AT TIME ZONE %(zone)s)::date AS day, user_id, model, assistant, purpose,
  count(*), sum(input_tokens), sum(cached_tokens), sum(output_tokens), sum(reasoning_tokens),
  sum(cost), sum(charged), sum(shortfall), sum(absorbed)
FROM billing_usagerecord
WHERE created_at < %(end)s AND (%(first)s::timestamptz IS NULL OR created_at >= %(first)s)
GROUP BY 1, 2, 3, 4, 5
ORDER BY 1, 2, 3, 4, 5  -- two at once then lock the rows in the same order
ON CONFLICT (user_id, day, model, assistant, purpose) DO UPDATE SET
  calls = EXCLUDED.calls, input_tokens = EXCLUDED.input_tokens,
  cached_tokens = EXCLUDED.cached_tokens, output_tokens = EXCLUDED.output_tokens,
  reasoning_tokens = EXCLUDED.reasoning_tokens, cost = EXCLUDED.cost, charged = EXCLUDED.charged,
  shortfall = EXCLUDED.shortfall, absorbed = EXCLUDED.absorbed
WHERE d.calls < EXCLUDED.calls  -- never back to what a slower twin saw
"""


@dataclass(frozen=True, slots=True)
class Sums:
    """Calls, tokens and micro-credits, added up. `cached_tokens` are part of the input tokens,
    `reasoning_tokens` of the output tokens; `cost` is `charged`, `shortfall` and `absorbed`.
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
    """What one model was used on one day."""

    day: date
    model: str
    sums: Sums


@dataclass(frozen=True, slots=True)
class ModelRow:
    """What one model was used in a span of days."""

    model: str
    sums: Sums


@dataclass(frozen=True, slots=True)
class AssistantRow:
    """What one assistant was used in a span of days; its name is empty for calls without one."""

    assistant: str
    sums: Sums


@dataclass(frozen=True, slots=True)
class Report:
    """A user's usage: by day and model (oldest day first), by assistant (dearest first), in all."""

    rows: list[DayRow]
    by_assistant: list[AssistantRow]
    total: Sums


def report(user_id: int, *, first: date, last: date) -> Report:
    """What a user used from the first to the last day, both included."""
    by_day: dict[tuple[date, str], Sums] = {}
    by_assistant: dict[str, Sums] = {}
    total = Sums()
    for (day, model, assistant), sums in _read(["day", "model", "assistant"], first, last, user_id):
        by_day[day, model] = by_day.get((day, model), Sums()) + sums
        by_assistant[assistant] = by_assistant.get(assistant, Sums()) + sums
        total += sums
    return Report(
        rows=[DayRow(*key, by_day[key]) for key in sorted(by_day)],
        by_assistant=[AssistantRow(*item) for item in _dearest_first(by_assistant)],
        total=total,
    )


def by_model(first: date, last: date) -> list[ModelRow]:
    """What everybody used from the first to the last day, both included; the dearest model first."""
    models: dict[str, Sums] = {}
    for (model,), sums in _read(["model"], first, last, None):
        models[model] = models.get(model, Sums()) + sums
    return [ModelRow(*item) for item in _dearest_first(models)]


def csv_rows(found: Report) -> Iterator[list[str]]:
    """A report as rows for `statements.to_csv`, the names of the columns first.

    Amounts are credits. Names are as they are: a spreadsheet may take one for a formula.
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
        yield [
            row.day.isoformat(),
            row.model,
            *(str(count) for count in counts),
            exact(sums.charged),
        ]


def _read(
    keys: list[str], first: date, last: date, user_id: int | None
) -> Iterator[tuple[tuple[Any, ...], Sums]]:
    """Sums by the keys, of days that are rolled up and of those since; a key may come twice.

    Records stay where they are when their day is rolled up. So it is enough to decide once which
    days are read from where, even while a roll-up runs.
    """
    rolled = _last_rolled()
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


def _last_rolled() -> date | None:
    """Until when days are rolled up: all users' at once, and no day is left out."""
    last: date | None = DailyUsage.objects.aggregate(last=Max("day"))["last"]
    return last


def _dearest_first(sums: dict[str, Sums]) -> list[tuple[str, Sums]]:
    return sorted(sums.items(), key=lambda item: (-item[1].cost, item[0]))
