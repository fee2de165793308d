"""Balances: the low-balance warning and the typical cost of a message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from billing.credits import MICRO
from billing.metering import usage
from billing.models import Account, Dispute, Order
from billing.reports import balances
from tests.support import money

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def account() -> Account:
    """An account with 300 of 1,000 credits left, as each test begins with."""
    account = money.open_account()
    money.order(account, 1_000 * MICRO)
    for _ in range(14):
        money.spend(account, 50 * MICRO)
    return account


def low(account: Account) -> str:
    """The warning as pages and as the socket show it."""
    whole, brief = balances.of_account(account.pk), balances.brief(account.pk)
    assert whole.low == brief.low
    return brief.low


def order(account: Account, credits: int, **fields: Any) -> Order:
    return money.order(account, credits * MICRO, client_key=f"order-{credits}", **fields)


def test_refunded_purchase_does_not_warn(account):
    bought = order(account, 10_000, bonus=500 * MICRO)
    assert low(account) == ""
    money.refund(bought, 10_500 * MICRO)
    Order.objects.filter(pk=bought.pk).update(status=Order.Status.REFUNDED)
    assert balances.brief(account.pk).balance == 300 * MICRO
    assert balances.of_account(account.pk).last_lot == 1_000 * MICRO
    assert low(account) == ""


def test_partial_refund_lowers_the_threshold(account):
    bought = order(account, 2_000)
    money.refund(bought, 1_500 * MICRO)
    assert balances.of_account(account.pk).last_lot == 500 * MICRO


def test_disputed_purchase_does_not_warn(account):
    bought = order(account, 10_000)
    dispute = money.claim(bought, "dispute")
    assert isinstance(dispute, Dispute)
    taken = money.refund(bought, 10_000 * MICRO, dispute=dispute)
    assert low(account) == ""
    money.undo_claim(dispute)
    money.give_back(bought, taken.credits, taken.debt, dispute=dispute)
    assert balances.of_account(account.pk).last_lot == 10_000 * MICRO


def test_failed_refund_restores_the_threshold(account):
    bought = order(account, 2_000)
    money.spend(account, 1_000 * MICRO)
    refund = money.claim(bought, "refund")
    taken = money.refund(bought, 500 * MICRO, refund=refund)
    money.undo_claim(refund)
    money.give_back(bought, taken.credits, taken.debt, refund=refund)
    # Its reversal makes a lot of 500; the purchase was of 2,000.
    assert balances.of_account(account.pk).last_lot == 2_000 * MICRO


def test_expired_gift_does_not_warn(account):
    past = timezone.now() + timedelta(milliseconds=1)
    money.grant(account, 9_000 * MICRO, expires_at=past)
    while timezone.now() <= past:
        pass
    money.expire(account)
    assert low(account) == ""


def test_fifth_of_last_purchase_warns(account):
    money.spend(account, 101 * MICRO)
    assert low(account) == "low"
    bought = order(account, 100)
    assert low(account) == ""
    money.refund(bought, 100 * MICRO)
    assert low(account) == "low"


# --- Rows read ---------------------------------------------------------------------------------


def scans(plan: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the index and the number of rows read of each scan of the usage records."""
    if plan.get("Relation Name") == "billing_usagerecord":
        rows = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        yield plan.get("Index Name", ""), rows * plan["Actual Loops"]
    for part in plan.get("Plans", ()):
        yield from scans(part)


FILL = """
INSERT INTO billing_usagerecord (run_id, attempt, step, purpose, user_id, model, assistant,
  input_tokens, cached_tokens, output_tokens, reasoning_tokens, source, cost, charged, shortfall,
  absorbed, finish, created_at)
SELECT gen_random_uuid(), 1, 0, 'chat', %(user)s, 'model ' || n %% 7, '', 1, 0, 1, 0, 'provider', 5,
  %(charged)s, 0, 5 - %(charged)s, 'complete', %(until)s - n * interval '1 second'
FROM generate_series(1, %(calls)s) AS n
"""


@pytest.mark.parametrize("charged", [0, 5])
@pytest.mark.parametrize("others", [0, 1, 300])
def test_typical_figures_read_bounded_rows(charged, others):
    """Of a user's 20,000 calls 500 at most are read, and none of the newer ones of other users."""
    account = money.open_account(MICRO)
    now = timezone.now()
    with connection.cursor() as cursor:

        def fill(user_id: int, calls: int, until: datetime) -> None:
            values = {"user": user_id, "calls": calls, "until": until, "charged": charged}
            cursor.execute(FILL, values)

        fill(account.user_id, 20_000, now - timedelta(days=1))
        for _ in range(others):
            fill(money.open_account().user_id, 12_000 // others, now)
        cursor.execute("ANALYZE billing_usagerecord")
        brief: dict[str, Any] = {"id": account.pk, "typical_of": balances.TYPICAL_OF}
        replies: dict[str, Any] = {
            "user": account.user_id, "model": "none", "chat": "chat", "ends": ["complete"],
        }  # fmt: skip
        found: list[tuple[str, float]] = []
        for query, values in [(balances.BRIEF, brief), (usage.REPLIES, replies)]:
            # As a connection prepares it: planned for these values, and later for any.
            for number, name in enumerate(values, start=1):
                query = query.replace(f"%({name})s", f"${number}")
            cursor.execute(f"PREPARE figures AS {query}")
            for mode in ("custom", "generic"):
                cursor.execute(f"SET plan_cache_mode = force_{mode}_plan")
                holes = ", ".join(["%s"] * len(values))
                cursor.execute(
                    f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE figures ({holes})", [*values.values()]
                )
                [(plan,)] = cursor.fetchall()
                found += scans((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])
            cursor.execute("RESET plan_cache_mode")
            cursor.execute("DEALLOCATE figures")
    assert [index for index, _ in found] == ["usage_of_user"] * 4
    assert max(rows for _, rows in found) <= usage.READ_CALLS
    assert balances.of_account(account.pk).typical == charged
    assert usage.typical_output(account.user_id, "model 3") == 1
