"""Usage records of single provider calls, and their sums by day.

A day is one of the site's time zone (TIME_ZONE). Ended days are rolled up into `DailyUsage`, which
reports read instead of the records (billing.reports.usage_report).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import date, datetime, time, timedelta
from uuid import UUID

from django.conf import settings
from django.db.models import Max
from django.utils import timezone
from django.utils.crypto import salted_hmac

from billing.metering.pricing import Tokens
from billing.models import DailyUsage, UsageRecord
from billing.models.usage import Purpose
from chatproject.lib.db import limits, prepared

DAY = timedelta(days=1)

# A record carries the time at which its transaction wrote it, and becomes visible when that commits:
# a day is rolled up this long after its end.
COMMIT_DELAY = timedelta(minutes=15)
# Days that each roll-up counts again, in case a record became visible even later.
RECOUNTED_DAYS = timedelta(days=3)

ERASED = "erased "  # before the digest of an assistant's name

READ_CALLS = 500  # of a user's latest calls, to find typical ones
TYPICAL_OUTPUT = 300  # tokens of a reply, for users without replies
ENDED_WELL = (UsageRecord.Finish.COMPLETE, UsageRecord.Finish.STOPPED)


def today() -> date:
    """Return today by the site's time zone, even if a request has activated another one."""
    return timezone.localdate(timezone=timezone.get_default_timezone())


def start_of(day: date) -> datetime:
    """Return the first moment of a day by the site's time zone."""
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
    api_key: int | None = None,
) -> None:
    """Record one provider call in the caller's transaction. Amounts are micro-credits.

    Raises IntegrityError if the step of this attempt is already recorded, and if `cost` is not the
    sum of the other three amounts.
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
        "api_key": api_key,
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
    prepared.change(RECORD, values)


# Plain SQL, since each message needs it: see lib.db.prepared.
RECORD = """
INSERT INTO billing_usagerecord (run_id, attempt, step, purpose, user_id, hold_id, price_id, model,
  assistant, conversation, api_key, input_tokens, cached_tokens, output_tokens, reasoning_tokens, source,
  cost, charged, shortfall, absorbed, finish, created_at)
VALUES (%(run)s, %(attempt)s, %(step)s, %(purpose)s, %(user)s, %(hold)s, %(price)s, %(model)s,
  %(assistant)s, %(conversation)s, %(api_key)s, %(input)s, %(cached)s, %(output)s, %(reasoning)s, %(source)s,
  %(cost)s, %(charged)s, %(shortfall)s, %(absorbed)s, %(finish)s, %(now)s)
"""


def erase_assistants(user_id: int, kept: Collection[str]) -> None:
    """Replace the names of assistants in a user's records by digests, except `kept` ones, which staff gave.

    A digest is keyed, and the same at each call: sums by assistant stay. A trigger permits no other change.
    """
    for rows in (
        UsageRecord.objects.filter(user=user_id),
        DailyUsage.objects.filter(user=user_id),
    ):
        named = rows.exclude(assistant__in=["", *kept]).exclude(assistant__startswith=ERASED)
        for name in list(named.order_by().values_list("assistant", flat=True).distinct()):
            digest = salted_hmac("billing.usage", f"{user_id} {name}").hexdigest()[:16]
            rows.filter(assistant=name).update(assistant=f"{ERASED}{digest}")


def typical_output(user_id: int, model: str) -> int:
    """Return the mean length in tokens of the model's last 20 replies to the user.

    TYPICAL_OUTPUT without any. Only the user's latest READ_CALLS calls are read, which bounds the
    cost for a rarely used model.
    """
    values = {"user": user_id, "model": model, "chat": Purpose.CHAT, "ends": list(ENDED_WELL)}
    [(mean,)] = prepared.all(REPLIES, values)
    return TYPICAL_OUTPUT if mean is None else round(mean)


def typical_outputs(user_id: int, models: Iterable[str]) -> dict[str, int]:
    """Return the `typical_output` of each of several models, in one query."""
    values = {"user": user_id, "chat": Purpose.CHAT, "ends": list(ENDED_WELL)}
    means = {model: round(mean) for model, mean in prepared.all(REPLIES_OF_EACH, values)}
    return {model: means.get(model, TYPICAL_OUTPUT) for model in models}


def latest_calls(user: str, columns: str) -> str:
    """Return SQL that selects a user's READ_CALLS latest calls, and reads no other rows.

    With `user_id = x ORDER BY created_at` the planner may read the calls of all users by time until it
    has found enough, or sort all of the user's calls. The range instead of an equality keeps `user_id`
    in the order, which only the index `usage_of_user` has, and a LIMIT that is unknown to the planner
    makes reading in that order the cheapest way.
    """
    return f"""SELECT {columns} FROM billing_usagerecord
      WHERE user_id BETWEEN {user} AND {user}
      ORDER BY user_id, created_at DESC LIMIT (SELECT {READ_CALLS})"""  # noqa: S608 # of names alone


REPLIES = f"""
SELECT avg(output_tokens) FROM (
  SELECT output_tokens FROM (
    {latest_calls("%(user)s", "created_at, model, purpose, finish, output_tokens")}
  ) AS calls
  WHERE model = %(model)s AND purpose = %(chat)s AND finish = ANY(%(ends)s)
  ORDER BY created_at DESC LIMIT 20
) AS replies
"""  # noqa: S608 # of names alone


REPLIES_OF_EACH = f"""
SELECT model, avg(output_tokens) FROM (
  SELECT model, output_tokens, row_number() OVER (PARTITION BY model ORDER BY created_at DESC) AS place
  FROM ({latest_calls("%(user)s", "created_at, model, purpose, finish, output_tokens")}) AS calls
  WHERE purpose = %(chat)s AND finish = ANY(%(ends)s)
) AS replies WHERE place <= 20 GROUP BY model
"""  # noqa: S608 # of names alone


@limits.statements(limits.LONG_STATEMENT)
def roll_up(now: datetime) -> None:
    """Roll up the ended days that are not yet, and again the latest RECOUNTED_DAYS.

    May run any number of times and concurrently: it is one statement, and its sums only ever grow,
    since no record is changed or deleted.
    """
    end = timezone.localdate(now - COMMIT_DELAY, timezone.get_default_timezone())
    rolled = last_rolled_day()
    first = None if rolled is None else start_of(rolled - RECOUNTED_DAYS + DAY)
    prepared.change(ROLL_UP, {"zone": settings.TIME_ZONE, "first": first, "end": start_of(end)})


def last_rolled_day() -> date | None:
    """Return the last day that is rolled up: for all users at once, and without gaps before it."""
    last: date | None = DailyUsage.objects.aggregate(last=Max("day"))["last"]
    return last


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
ORDER BY 1, 2, 3, 4, 5  -- concurrent roll-ups then lock the rows in the same order
ON CONFLICT (user_id, day, model, assistant, purpose) DO UPDATE SET
  calls = EXCLUDED.calls, input_tokens = EXCLUDED.input_tokens,
  cached_tokens = EXCLUDED.cached_tokens, output_tokens = EXCLUDED.output_tokens,
  reasoning_tokens = EXCLUDED.reasoning_tokens, cost = EXCLUDED.cost, charged = EXCLUDED.charged,
  shortfall = EXCLUDED.shortfall, absorbed = EXCLUDED.absorbed
WHERE d.calls < EXCLUDED.calls  -- never back to the smaller sum of a slower concurrent roll-up
"""
