from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import User
from billing.ledger import postings, signup, staff_actions
from billing.metering import limits, usage
from billing.metering.limits import LimitReached
from billing.metering.pricing import Tokens
from billing.models import Account, AuditRecord, Hold, Plan, SpendingLimit, UsageRecord
from chatproject.lib.db import money_transaction

pytestmark = pytest.mark.django_db(transaction=True)

CREDIT = 1_000_000
CHAT = uuid.UUID(int=1)
OTHER_CHAT = uuid.UUID(int=2)


def open_account(name: str = "somebody") -> Account:
    user = User.objects.create_user(f"{name}@example.org")
    account = money_transaction(signup.open_account, user_id=user.pk)
    money_transaction(postings.grant, account_id=account.pk, amount=1_000 * CREDIT, key=name)
    return account


@pytest.fixture
def account(settings) -> Account:
    settings.SIGNUP_CREDITS = 0
    return open_account()


def enforce(account: Account, credits: float, *, model="m", conversation=CHAT) -> None:
    money_transaction(
        limits.enforce,
        account_id=account.pk,
        user_id=account.user_id,
        model=model,
        conversation=conversation,
        amount=round(credits * CREDIT),
    )


def hold(account: Account, credits: float, *, model="m", conversation=CHAT, key="") -> Hold:
    return money_transaction(
        postings.hold,
        account_id=account.pk,
        amount=round(credits * CREDIT),
        key=key or f"run:{uuid.uuid4()}",
        expires_at=timezone.now() + timedelta(minutes=5),
        model=model,
        conversation=conversation,
    )


def spend(account: Account, credits: float, *, model="m", conversation=CHAT) -> None:
    """What a run does at its end: its hold is settled and its usage recorded."""

    def end() -> None:
        charged = postings.settle(hold_id=held.pk, cost=held.amount).charged
        usage.record(
            run_id=uuid.uuid4(),
            attempt=1,
            user_id=account.user_id,
            model=model,
            tokens=Tokens(1, output=1),
            source=UsageRecord.Source.PROVIDER,
            cost=charged,
            charged=charged,
            shortfall=0,
            absorbed=0,
            finish=UsageRecord.Finish.COMPLETE,
            hold_id=held.pk,
            conversation=conversation,
        )

    held = hold(account, credits, model=model, conversation=conversation)
    money_transaction(end)


def limit(account: Account | None, credits: float, period="day", **fields) -> SpendingLimit:
    return SpendingLimit.objects.create(
        account=account, amount=round(credits * CREDIT), period=period, **fields
    )


def test_a_limit_lets_through_what_just_fits(account):
    limit(account, 50)
    spend(account, 30)
    hold(account, 19)
    enforce(account, 1)
    with pytest.raises(LimitReached) as refused:
        enforce(account, 1.000001)
    assert (refused.value.limit, refused.value.used) == (50 * CREDIT, 49 * CREDIT)


def test_the_sentence_says_whose_limit_it_is_and_what_to_do(account):
    limits.set_own(account_id=account.pk, period=SpendingLimit.Period.DAY, amount=50 * CREDIT)
    spend(account, 49.2)
    with pytest.raises(LimitReached) as refused:
        enforce(account, 1.3)
    assert refused.value.message == (
        "You have set a limit of 50 credits a day; 49.20 are used or reserved, and this message may"
        " cost up to 1.30. Raise the limit or wait until tomorrow."
    )
    limit(account, 20, "month", model="m")
    with pytest.raises(LimitReached) as refused:
        enforce(account, 1.3)
    assert refused.value.message == (
        "The staff have set a limit of 20 credits a month with m; 49.20 are used or reserved, and"
        " this message may cost up to 1.30. Ask the staff or wait until next month."
    )
    limit(None, 1, "conversation")
    with pytest.raises(LimitReached) as refused:
        enforce(account, 1.3)
    assert refused.value.message == (
        "The staff have set a limit of 1 credits for one chat; this message alone may cost up to"
        " 1.30. Ask the staff to raise it or choose a cheaper model."
    )


def test_a_limit_for_everybody_counts_what_each_account_uses_itself(account):
    other = open_account("other")
    limit(None, 10)
    spend(account, 10)
    with pytest.raises(LimitReached):
        enforce(account, 1)
    enforce(other, 10)
    with pytest.raises(LimitReached):
        enforce(other, 11)


def test_a_limit_of_another_account_does_not_count(account):
    limit(open_account("other"), 0)
    enforce(account, 100)


def test_a_limit_of_a_model_counts_that_model_only(account):
    limit(account, 10, model="dear")
    spend(account, 9, model="dear")
    spend(account, 100, model="cheap")
    enforce(account, 1, model="dear")
    enforce(account, 100, model="cheap")
    hold(account, 1, model="dear")
    with pytest.raises(LimitReached):
        enforce(account, 1, model="dear")


def test_a_limit_of_a_conversation_counts_each_conversation_by_itself(account):
    limit(account, 10, "conversation")
    spend(account, 6)
    hold(account, 3)
    hold(account, 100, conversation=OTHER_CHAT)
    enforce(account, 1)
    with pytest.raises(LimitReached) as refused:
        enforce(account, 2)
    assert refused.value.used == 9 * CREDIT
    enforce(account, 500, conversation=None)  # belongs to none


def test_limits_of_several_kinds_each_have_their_own_sum(account):
    limit(account, 100, "month")
    limit(account, 50, "day")
    limit(account, 20, "day", model="m")
    limit(account, 10, "conversation")
    spend(account, 8, conversation=OTHER_CHAT)
    spend(account, 7)
    spend(account, 11, model="other", conversation=None)
    hold(account, 2)
    with pytest.raises(LimitReached) as refused:
        enforce(account, 2)
    assert (refused.value.limit, refused.value.used) == (10 * CREDIT, 9 * CREDIT)
    with pytest.raises(LimitReached) as refused:
        enforce(account, 4, conversation=OTHER_CHAT)
    assert (refused.value.limit, refused.value.used) == (10 * CREDIT, 8 * CREDIT)
    with pytest.raises(LimitReached) as refused:
        enforce(account, 4, conversation=None)
    assert (refused.value.limit, refused.value.used) == (20 * CREDIT, 17 * CREDIT)
    with pytest.raises(LimitReached) as refused:
        enforce(account, 23, conversation=None, model="other")
    assert (refused.value.limit, refused.value.used) == (50 * CREDIT, 28 * CREDIT)


def recorded_at(account: Account, moment: datetime, credits: int) -> None:
    with patch.object(timezone, "now", lambda: moment):
        UsageRecord.objects.create(
            run_id=uuid.uuid4(), attempt=1, user_id=account.user_id, model="m",
            source="provider", cost=credits * CREDIT, charged=credits * CREDIT, finish="complete",
        )  # fmt: skip


def test_a_day_and_a_month_begin_by_the_sites_time_zone(account, settings, monkeypatch):
    settings.TIME_ZONE = "Asia/Kolkata"  # 5 h 30 min ahead
    monkeypatch.setattr(timezone, "now", lambda: datetime(2026, 3, 31, 20, 0, tzinfo=UTC))
    # There it is 1 April, 1:30; both began at 18:30 by UTC.
    recorded_at(account, datetime(2026, 3, 31, 18, 29, 59, tzinfo=UTC), 500)
    recorded_at(account, datetime(2026, 3, 31, 18, 30, tzinfo=UTC), 4)
    for period in ("day", "month"):
        made = limit(account, 4, period)
        with timezone.override("America/New_York"), pytest.raises(LimitReached) as refused:
            enforce(account, 1)
        assert refused.value.used == 4 * CREDIT
        made.delete()


def test_without_a_limit_there_is_one_query_and_no_lock(account):
    SpendingLimit.objects.create(account=open_account("other"), amount=0, period="day")
    limit(account, 0, model="another model")
    Plan.objects.create(slug="free", name="Free", monthly_messages=0)

    def count() -> list[str]:
        with CaptureQueriesContext(
            connection,
        ) as captured:
            limits.enforce(
                account_id=account.pk, user_id=account.user_id, model="m", conversation=CHAT,
                amount=1,
            )  # fmt: skip
        return [query["sql"] for query in captured]

    (only,) = money_transaction(count)
    assert "FOR NO KEY UPDATE" not in only


def test_it_is_refused_outside_of_a_money_transaction(account):
    with pytest.raises(RuntimeError):
        limits.enforce(
            account_id=account.pk, user_id=account.user_id, model="m", conversation=None, amount=1
        )


def test_a_plan_counts_the_messages_of_the_month(account):
    account.plan = Plan.objects.create(slug="small", name="Small", monthly_messages=3)
    account.save(update_fields=["plan"])
    hold(account, 1)
    spend(account, 1)
    hold(account, 1, key="title:1")
    free = hold(account, 1)
    money_transaction(postings.release, hold_id=free.pk)
    enforce(account, 1)
    hold(account, 1)
    with pytest.raises(LimitReached) as refused:
        enforce(account, 1)
    assert refused.value.message == (
        "Your plan has 3 messages a month, and all are used. Wait until next month or ask the staff"
        " for another plan."
    )
    assert (refused.value.limit, refused.value.used, refused.value.period) == (3, 3, "messages")


def test_messages_count_from_where_staff_set_the_month_back(account):
    account.plan = Plan.objects.create(slug="small", name="Small", monthly_messages=1)
    account.save(update_fields=["plan"])
    hold(account, 1)
    assert limits.quota(account) == limits.Quota(limit=1, used=1)
    with pytest.raises(LimitReached):
        enforce(account, 1)
    staff_actions.reset_messages(
        actor_id=account.user_id, account_id=account.pk, reason="Our fault", ip=None
    )
    account.refresh_from_db()
    assert limits.quota(account) == limits.Quota(limit=1, used=0)
    enforce(account, 1)
    hold(account, 1)
    with pytest.raises(LimitReached):
        enforce(account, 1)
    assert AuditRecord.objects.get().reason == "Our fault"


def test_the_default_plan_counts_for_accounts_that_have_none(account):
    Plan.objects.create(slug="free", name="Free", monthly_messages=1, is_default=True)
    hold(account, 1)
    with pytest.raises(LimitReached):
        enforce(account, 1)
    account.plan = Plan.objects.create(slug="all", name="All")
    account.save(update_fields=["plan"])
    enforce(account, 1)


def test_messages_of_last_month_do_not_count(account, monkeypatch):
    Plan.objects.create(slug="free", name="Free", monthly_messages=1, is_default=True)
    hold(account, 1)
    later = timezone.now() + timedelta(days=32)
    monkeypatch.setattr(timezone, "now", lambda: later)
    enforce(account, 1)


def test_of_twenty_messages_at_once_three_pass_a_limit_for_three(account):
    limit(account, 3)
    assert at_once(20, lambda: try_to_hold(account)).count(True) == 3
    assert Hold.objects.filter(account=account).count() == 3


def test_of_twenty_messages_at_once_three_pass_a_plan_for_three(account):
    Plan.objects.create(slug="free", name="Free", monthly_messages=3, is_default=True)
    assert at_once(20, lambda: try_to_hold(account)).count(True) == 3


def try_to_hold(account: Account) -> bool:
    def reserve() -> None:
        limits.enforce(
            account_id=account.pk, user_id=account.user_id, model="m", conversation=CHAT,
            amount=CREDIT,
        )  # fmt: skip
        postings.hold(
            account_id=account.pk,
            amount=CREDIT,
            key=f"run:{uuid.uuid4()}",
            expires_at=timezone.now() + timedelta(minutes=5),
            model="m",
            conversation=CHAT,
        )

    try:
        money_transaction(reserve)
    except LimitReached:
        return False
    return True


def at_once(count, call):
    """Call the function in so many threads that all begin together."""
    barrier = threading.Barrier(count)

    def one(_):
        try:
            barrier.wait(timeout=10)
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_users_set_change_and_remove_their_own_limits(account):
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
    assert SpendingLimit.objects.get(period="day").amount == 7 * CREDIT
    with pytest.raises(ValueError, match="negative"):
        limits.set_own(account_id=account.pk, period=day, amount=-1)
