"""Spending limits and the message quotas of plans."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from functools import partial
from unittest.mock import patch

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing.credits import MICRO
from billing.ledger import postings, staff_actions
from billing.metering import limits
from billing.metering.limits import LimitReached
from billing.models import Account, AuditRecord, Hold, Plan, SpendingLimit, UsageRecord
from chatproject.lib.db import money_transaction
from tests.support import money
from tests.support.threads import race

pytestmark = pytest.mark.django_db(transaction=True)

CHAT = uuid.UUID(int=1)
OTHER_CHAT = uuid.UUID(int=2)


@pytest.fixture
def account() -> Account:
    return money.open_account(1_000 * MICRO)


def enforce_inside(account: Account, credits: float, *, model="m", conversation=CHAT) -> None:
    """Enforce the limits in the caller's transaction."""
    limits.enforce(
        account_id=account.pk,
        user_id=account.user_id,
        model=model,
        conversation=conversation,
        amount=round(credits * MICRO),
    )


def enforce(account: Account, credits: float, **fields) -> None:
    money_transaction(enforce_inside, account, credits, **fields)


def refusal(account: Account, credits: float, **fields) -> LimitReached:
    with pytest.raises(LimitReached) as refused:
        enforce(account, credits, **fields)
    return refused.value


def refusing(account: Account, credits: float, **fields) -> tuple[float, float]:
    """The limit that refuses, and its use, in credits."""
    refused = refusal(account, credits, **fields)
    return refused.limit / MICRO, refused.used / MICRO


def hold(account: Account, credits: float, **fields) -> Hold:
    fields = {"model": "m", "conversation": CHAT, "key": f"run:{uuid.uuid4()}"} | fields
    return money.hold(account, round(credits * MICRO), **fields)


def spend(account: Account, credits: float, **fields) -> None:
    held = hold(account, credits, **fields)
    money.settle(held, held.amount)


def limit(account: Account | None, credits: float, period="day", **fields) -> SpendingLimit:
    return SpendingLimit.objects.create(
        account=account, amount=round(credits * MICRO), period=period, **fields
    )


def make_default_plan(messages: int) -> None:
    Plan.objects.create(slug="free", name="Free", monthly_messages=messages, is_default=True)


def give_plan(account: Account, messages: int | None) -> None:
    account.plan = Plan.objects.create(slug="own", name="Own", monthly_messages=messages)
    account.save(update_fields=["plan"])


def test_limit_admits_exactly_its_amount(account):
    limit(account, 50)
    spend(account, 30)
    hold(account, 19)
    enforce(account, 1)
    assert refusing(account, 1.000001) == (50, 49)


def test_message_names_the_limit_and_a_remedy(account):
    limits.set_own(account_id=account.pk, period=SpendingLimit.Period.DAY, amount=50 * MICRO)
    spend(account, 49.2)
    assert refusal(account, 1.3).message == (
        "You have set a limit of 50 credits a day; 49.20 are used or reserved, and this message may"
        " cost up to 1.30. Raise the limit or wait until tomorrow."
    )
    limit(account, 20, "month", model="m")
    assert refusal(account, 1.3).message == (
        "The staff have set a limit of 20 credits a month with m; 49.20 are used or reserved, and"
        " this message may cost up to 1.30. Ask the staff or wait until next month."
    )
    limit(None, 1, "conversation")
    assert refusal(account, 1.3).message == (
        "The staff have set a limit of 1 credits for one chat; this message alone may cost up to"
        " 1.30. Ask the staff to raise it, or send less."
    )


def test_limit_for_all_counts_each_account_separately(account):
    other = money.open_account()
    limit(None, 10)
    spend(account, 10)
    refusal(account, 1)
    enforce(other, 10)
    refusal(other, 11)


def test_limit_of_another_account_does_not_count(account):
    limit(money.open_account(), 0)
    enforce(account, 100)


def test_limit_of_a_model_counts_that_model(account):
    limit(account, 10, model="dear")
    spend(account, 9, model="dear")
    spend(account, 100, model="cheap")
    enforce(account, 1, model="dear")
    enforce(account, 100, model="cheap")
    hold(account, 1, model="dear")
    refusal(account, 1, model="dear")


def test_limit_of_a_conversation_counts_each_separately(account):
    limit(account, 10, "conversation")
    spend(account, 6)
    hold(account, 3)
    hold(account, 100, conversation=OTHER_CHAT)
    enforce(account, 1)
    assert refusing(account, 2) == (10, 9)
    enforce(account, 500, conversation=None)  # outside of any conversation


def test_limits_of_several_kinds_have_separate_sums(account):
    limit(account, 100, "month")
    limit(account, 50, "day")
    limit(account, 20, "day", model="m")
    limit(account, 10, "conversation")
    spend(account, 8, conversation=OTHER_CHAT)
    spend(account, 7)
    spend(account, 11, model="other", conversation=None)
    hold(account, 2)
    assert refusing(account, 2) == (10, 9)
    assert refusing(account, 4, conversation=OTHER_CHAT) == (10, 8)
    assert refusing(account, 4, conversation=None) == (20, 17)
    assert refusing(account, 23, conversation=None, model="other") == (50, 28)


def recorded_at(account: Account, moment: datetime, credits: int) -> None:
    with patch.object(timezone, "now", lambda: moment):
        UsageRecord.objects.create(
            run_id=uuid.uuid4(), attempt=1, user_id=account.user_id, model="m",
            source="provider", cost=credits * MICRO, charged=credits * MICRO, finish="complete",
        )  # fmt: skip


def test_day_and_month_begin_by_the_sites_zone(account, settings, monkeypatch):
    settings.TIME_ZONE = "Asia/Kolkata"  # 5 h 30 min ahead
    monkeypatch.setattr(timezone, "now", lambda: datetime(2026, 3, 31, 20, 0, tzinfo=UTC))
    # It is 1 April there, 1:30; the day and the month began at 18:30 by UTC.
    recorded_at(account, datetime(2026, 3, 31, 18, 29, 59, tzinfo=UTC), 500)
    recorded_at(account, datetime(2026, 3, 31, 18, 30, tzinfo=UTC), 4)
    for period in ("day", "month"):
        made = limit(account, 4, period)
        with timezone.override("America/New_York"):
            assert refusing(account, 1) == (4, 4)
        made.delete()


def test_without_a_limit_one_query_takes_no_lock(account):
    limit(money.open_account(), 0)
    limit(account, 0, model="another model")
    Plan.objects.create(slug="free", name="Free", monthly_messages=0)

    def enforce_and_count() -> list[str]:
        with CaptureQueriesContext(connection) as captured:
            enforce_inside(account, 1)
        return [query["sql"] for query in captured]

    (only,) = money_transaction(enforce_and_count)
    assert "FOR NO KEY UPDATE" not in only


def test_limits_are_enforced_in_money_transactions_only(account):
    with pytest.raises(RuntimeError):
        enforce_inside(account, 1)


def test_plan_counts_the_messages_of_the_month(account):
    give_plan(account, 3)
    hold(account, 1)
    spend(account, 1)
    hold(account, 1, key="title:1")
    money.release(hold(account, 1))
    enforce(account, 1)
    hold(account, 1)
    refused = refusal(account, 1)
    assert refused.message == (
        "Your plan has 3 messages a month, and all are used. Wait until next month or ask the staff"
        " for another plan."
    )
    assert (refused.limit, refused.used, refused.period) == (3, 3, "messages")


def test_messages_count_from_their_last_reset(account):
    give_plan(account, 1)
    hold(account, 1)
    assert limits.quota(account) == limits.Quota(limit=1, used=1)
    refusal(account, 1)
    staff_actions.reset_messages(
        actor_id=account.user_id, account_id=account.pk, reason="Our fault", ip=None
    )
    account.refresh_from_db()
    assert limits.quota(account) == limits.Quota(limit=1, used=0)
    enforce(account, 1)
    hold(account, 1)
    refusal(account, 1)
    assert AuditRecord.objects.get().reason == "Our fault"


def test_default_plan_counts_for_accounts_without_one(account):
    make_default_plan(1)
    hold(account, 1)
    refusal(account, 1)
    give_plan(account, None)
    enforce(account, 1)


def test_messages_of_last_month_do_not_count(account, monkeypatch):
    make_default_plan(1)
    hold(account, 1)
    later = timezone.now() + timedelta(days=32)
    monkeypatch.setattr(timezone, "now", lambda: later)
    enforce(account, 1)


@pytest.mark.parametrize("kind", ["limit", "plan"])
def test_concurrent_messages_never_exceed_a_limit(account, kind):
    if kind == "limit":
        limit(account, 3)
    else:
        make_default_plan(3)

    def enforce_and_hold() -> Hold:
        enforce_inside(account, 1)
        return postings.hold(
            account_id=account.pk, amount=MICRO, key=f"run:{uuid.uuid4()}", model="m",
            conversation=CHAT, expires_at=timezone.now() + timedelta(minutes=5),
        )  # fmt: skip

    done = race([partial(money_transaction, enforce_and_hold)] * 20, threads=20)
    assert sorted(type(one).__name__ for one in done) == ["Hold"] * 3 + ["LimitReached"] * 17
    assert Hold.objects.filter(account=account).count() == 3


def test_users_manage_their_own_limits(account):
    limit(account, 7, "day")  # by staff
    day = SpendingLimit.Period.DAY
    limits.set_own(account_id=account.pk, period=day, amount=5)
    limits.set_own(account_id=account.pk, period=day, amount=6)
    limits.set_own(account_id=account.pk, period=SpendingLimit.Period.MONTH, amount=9)
    assert [(one.period, one.amount) for one in limits.own(account.pk)] == [
        ("day", 6),
        ("month", 9),
    ]
    limits.set_own(account_id=account.pk, period=day, amount=None)
    assert [one.period for one in limits.own(account.pk)] == ["month"]
    assert SpendingLimit.objects.get(period="day").amount == 7 * MICRO
    with pytest.raises(ValueError, match="negative"):
        limits.set_own(account_id=account.pk, period=day, amount=-1)
