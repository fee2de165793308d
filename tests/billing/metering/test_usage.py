"""Usage records, their sums by day, and the reports that read both."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

import pytest
from django.db import IntegrityError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from accounts.models import User
from billing.metering import usage
from billing.metering.pricing import Tokens
from billing.models import DailyUsage, UsageRecord
from billing.models.usage import Purpose
from billing.reports import statements, usage_report
from tests.support.threads import race

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
DAY = timedelta(days=1)
TODAY = NOON.date()


@pytest.fixture
def user(db) -> User:
    return User.objects.create_user("reader@example.org")


def record(user: User, at: datetime = NOON, **fields) -> None:
    """Record usage at a time: by default 10 + 5 tokens that cost 7."""
    defaults: dict[str, Any] = {
        "run_id": uuid.uuid4(), "attempt": 1, "user_id": user.pk, "model": "m",
        "tokens": Tokens(10, cached=4, output=5, reasoning=2), "assistant": "parley",
        "source": UsageRecord.Source.PROVIDER, "cost": 7, "charged": 4, "shortfall": 2,
        "absorbed": 1, "finish": UsageRecord.Finish.COMPLETE,
    }  # fmt: skip
    with patch.object(timezone, "now", lambda: at):
        usage.record(**defaults | fields)


def report(
    user: User, first: date = TODAY - 40 * DAY, last: date = TODAY
) -> usage_report.UsageReport:
    return usage_report.report(user.pk, first=first, last=last)


def calls(found: usage_report.UsageReport) -> dict[tuple[date, str], int]:
    return {(row.day, row.model): row.sums.calls for row in found.rows}


def test_call_is_recorded_once_by_one_statement(user):
    run_id, conversation = uuid.uuid4(), uuid.uuid4()
    with CaptureQueriesContext(connection) as captured:
        record(user, run_id=run_id, conversation=conversation, step=2, purpose=Purpose.TOOL)
    assert len(captured) == 1
    made = UsageRecord.objects.get()
    assert (made.run_id, made.conversation, made.step, made.purpose) == (
        run_id, conversation, 2, "tool",
    )  # fmt: skip
    assert (made.input_tokens, made.cached_tokens) == (10, 4)
    assert (made.output_tokens, made.reasoning_tokens) == (5, 2)
    assert (made.cost, made.charged, made.shortfall, made.absorbed) == (7, 4, 2, 1)
    with pytest.raises(IntegrityError, match="usage_once_per_step"):
        record(user, run_id=run_id, step=2)


def test_inconsistent_amounts_are_refused(user):
    with pytest.raises(IntegrityError, match="usage_adds_up"):
        record(user, cost=8)


def test_report_is_unchanged_by_roll_ups(user):
    for back in (0, 1, 1, 2, 4, 30):
        record(user, NOON - back * DAY)
        record(user, NOON - back * DAY, model="other", assistant="", purpose=Purpose.TITLE)
    before, models = report(user), usage_report.by_model(TODAY - 40 * DAY, TODAY)
    assert before.total == usage_report.Sums(12, 120, 48, 60, 24, 84, 48, 24, 12)
    assert calls(before)[TODAY - DAY, "m"] == 2
    for now in (NOON - 3 * DAY, NOON - DAY, NOON, NOON + DAY):
        usage.roll_up(now)
        assert report(user) == before
        assert usage_report.by_model(TODAY - 40 * DAY, TODAY) == models
        usage.roll_up(now)
        assert report(user) == before
    assert DailyUsage.objects.count() == 10


def test_rolled_days_are_read_from_their_sums(user):
    record(user, NOON - DAY)
    record(user, NOON)
    usage.roll_up(NOON)
    DailyUsage.objects.update(calls=100)
    assert calls(report(user)) == {(TODAY - DAY, "m"): 100, (TODAY, "m"): 1}
    assert calls(report(user, first=TODAY)) == {(TODAY, "m"): 1}
    assert calls(report(user, last=TODAY - DAY)) == {(TODAY - DAY, "m"): 100}
    assert report(user, first=TODAY, last=TODAY - DAY) == usage_report.UsageReport(
        [], [], usage_report.Sums()
    )


def test_days_without_usage_leave_no_gap(user):
    record(user, NOON - 10 * DAY)
    usage.roll_up(NOON - 9 * DAY)
    usage.roll_up(NOON - 5 * DAY)
    record(user, NOON - 3 * DAY)
    assert report(user).total.calls == 2
    usage.roll_up(NOON)
    assert report(user).total.calls == 2
    assert DailyUsage.objects.count() == 2


def test_day_is_rolled_up_after_its_last_commit(user):
    record(user, NOON - DAY)
    midnight = datetime(2026, 3, 10, tzinfo=UTC)
    usage.roll_up(midnight + timedelta(minutes=14))
    assert not DailyUsage.objects.exists()
    usage.roll_up(midnight + timedelta(minutes=15))
    assert DailyUsage.objects.get().day == TODAY - DAY


def test_late_record_counts_in_the_next_roll_up(user):
    record(user, NOON - DAY)
    record(user, NOON - 3 * DAY)
    usage.roll_up(NOON)
    record(user, NOON - DAY)
    record(user, NOON - 3 * DAY)
    record(user, NOON - 3 * DAY, model="new")
    usage.roll_up(NOON)
    assert calls(report(user)) == {
        (TODAY - DAY, "m"): 2, (TODAY - 3 * DAY, "m"): 2, (TODAY - 3 * DAY, "new"): 1,
    }  # fmt: skip


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York", "Asia/Beirut"])
@pytest.mark.parametrize("rolled", [False, True])
def test_days_are_the_sites_in_any_active_zone(user, settings, zone, rolled):
    settings.TIME_ZONE = zone
    # Summer time begins: in Beirut on the 29th at midnight, in New York on the 8th at two.
    days = (date(2026, 3, 8), date(2026, 3, 29), date(2026, 3, 30))
    for day in days:
        first = usage.start_of(day).astimezone(UTC)
        record(user, first)
        record(user, first - timedelta(microseconds=1), model="the day before")
    with timezone.override(ZoneInfo("Pacific/Auckland")):
        if rolled:
            usage.roll_up(datetime(2026, 5, 1, tzinfo=UTC))
        found = calls(report(user, last=date(2026, 4, 1)))
    assert found == {(day, "m"): 1 for day in days} | {
        (day - DAY, "the day before"): 1 for day in days
    }


days = st.integers(0, 12)


@pytest.mark.django_db
@hypothesis_settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(st.lists(st.sampled_from(["a", "b", "roll up"]), max_size=16), days, days)
def test_no_roll_up_doubles_or_loses_a_day(steps, first, last):
    """Every 17 hours a model is used, or the days are rolled up."""
    DailyUsage.objects.all().delete()  # of the previous example
    user = User.objects.create_user(f"{uuid.uuid4()}@example.org")
    now = NOON
    expected: dict[tuple[date, str], int] = {}
    for step in steps:
        now += timedelta(hours=17)
        if step == "roll up":
            usage.roll_up(now)
        else:
            record(user, now, model=step)
            if TODAY + first * DAY <= now.date() <= TODAY + last * DAY:
                expected[now.date(), step] = expected.get((now.date(), step), 0) + 1
    assert calls(report(user, TODAY + first * DAY, TODAY + last * DAY)) == expected


@pytest.mark.django_db(transaction=True)
def test_concurrent_roll_ups_count_once():
    users = [User.objects.create_user(f"{number}@example.org") for number in range(5)]
    for user in users:
        for back in range(1, 6):
            record(user, NOON - back * DAY)
    usage.roll_up(NOON - 3 * DAY)
    assert race([partial(usage.roll_up, NOON)] * 8) == [None] * 8
    assert DailyUsage.objects.count() == 25
    assert {report(user).total.calls for user in users} == {5}


def test_report_is_of_one_user_dearest_assistant_first(user):
    for cost, assistant in ((1, "cheap"), (9, "dear"), (0, "")):
        record(user, cost=cost, charged=cost, shortfall=0, absorbed=0, assistant=assistant)
    record(User.objects.create_user("other@example.org"))
    found = report(user)
    assert [(row.assistant, row.sums.charged) for row in found.by_assistant] == [
        ("dear", 9), ("cheap", 1), ("", 0),
    ]  # fmt: skip
    assert found.total.calls == 3
    (row,) = usage_report.by_model(TODAY, TODAY)
    assert (row.model, row.sums.calls, row.sums.cost) == ("m", 4, 17)


@pytest.mark.parametrize("rolled", [False, True])
def test_report_takes_three_queries(user, django_assert_num_queries, rolled):
    for back in range(20):
        record(user, NOON - back * DAY, model=f"m{back % 3}")
    if rolled:
        usage.roll_up(NOON)
    with django_assert_num_queries(3):
        report(user)
    with django_assert_num_queries(3):
        usage_report.by_model(TODAY - 40 * DAY, TODAY)


def test_csv_has_a_line_per_day_and_model(user):
    record(user, cost=1_500_000, charged=1_500_000, shortfall=0, absorbed=0)
    record(user, NOON - DAY, model="=evil()")
    assert statements.to_csv(usage_report.csv_rows(report(user))).splitlines() == [
        "day,model,calls,input tokens,cached input tokens,output tokens,reasoning tokens,credits",
        "2026-03-09,'=evil(),1,10,4,5,2,0.000004",
        "2026-03-10,m,1,10,4,5,2,1.5",
    ]


def test_typical_output_averages_twenty_replies(user, django_assert_num_queries):
    assert usage.typical_output(user.pk, "m") == 300
    record(user, NOON - DAY, tokens=Tokens(1, output=100_000))
    for turn in range(20):
        record(user, NOON + turn * DAY, tokens=Tokens(1, output=100 + turn % 2))
    record(user, NOON + DAY, tokens=Tokens(1, output=9_000), purpose=Purpose.TITLE)
    record(user, NOON + DAY, tokens=Tokens(1), finish=UsageRecord.Finish.FAILED)
    record(user, NOON + DAY, tokens=Tokens(1, output=9_000), model="other")
    with django_assert_num_queries(1):
        assert usage.typical_output(user.pk, "m") == 100
    assert usage.typical_output(user.pk, "other") == 9_000
    assert usage.typical_output(user.pk + 1, "m") == 300
