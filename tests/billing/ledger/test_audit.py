"""Each rule of the audit, broken by changes that bypass the ledger."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from billing.ledger import audit, postings
from billing.models import (
    CreditPackage,
    Dispute,
    LedgerCheck,
    Order,
    PromoCode,
    PromoRedemption,
    Refund,
)
from tests.support import money

pytestmark = pytest.mark.django_db(transaction=True)


@contextmanager
def without_constraint(table: str, name: str) -> Iterator[None]:
    """Drop a constraint; afterwards it is restored, and the table emptied of rows that break it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s", [name]
        )
        [definition] = cursor.fetchone()
        cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
        try:
            yield
        finally:
            cursor.execute(f"TRUNCATE {table} CASCADE")
            cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")


def codes() -> set[str]:
    return {problem.code for problem in audit.check()}


@pytest.fixture
def lived_in(account):
    """An account with every kind of event, which the audit finds consistent."""
    made = money.order(account, 1000, bonus=100)
    money.grant(account, 50, expires_at=timezone.now() + timedelta(days=5))
    money.settle(money.hold(account, 300), 200)
    money.release(money.hold(account, 300))
    money.hold(account, 40)
    refund = Refund.objects.create(order=made, amount_minor=30, initiated_by="staff", credits=66)
    money.refund(made, 66, key=f"refund:{refund.pk}", refund=refund)
    dispute = Dispute.objects.create(
        order=made, provider_dispute_id="d", amount_minor=400, credits=844, debt=16, returned=True
    )
    money.refund(made, 860, key=f"dispute:{dispute.pk}", dispute=dispute)
    money.give_back(made, 844, 16, key=f"dispute:{dispute.pk}:won", dispute=dispute)
    assert codes() == set()
    return account


TAMPERED = [
    ("balance_lots", "UPDATE billing_account SET balance = balance + 1"),
    ("balance_lots", "UPDATE billing_creditlot SET remaining = remaining - 1 WHERE remaining > 0"),
    ("balance_entries", "UPDATE billing_account SET balance = balance + 1"),
    ("balance_entries", "DELETE FROM billing_ledgerentry WHERE kind = 'dispute_won'"),
    ("balance_last", "UPDATE billing_account SET seq = seq + 1"),
    ("balance_last", "UPDATE billing_account SET balance = balance - 1"),
    ("held", "UPDATE billing_account SET held = held - 1"),
    (
        "held",
        "UPDATE billing_hold SET status = 'released', settled = 0, resolved_at = now()"
        " WHERE status = 'active'",
    ),
    ("debt", "UPDATE billing_account SET debt = debt + 1"),
    ("debt", "UPDATE billing_debtentry SET amount = 7 WHERE amount = 16"),
    ("free_in_debt", "UPDATE billing_account SET debt = 1"),
    ("chain", "UPDATE billing_ledgerentry SET seq = seq + 1 WHERE kind = 'dispute_won'"),
    ("chain", "DELETE FROM billing_ledgerentry WHERE seq = 2"),
    (
        "chain",
        "UPDATE billing_ledgerentry SET balance_before = balance_before + 1,"
        " balance_after = balance_after + 1 WHERE seq = 3",
    ),
    (
        "entry_without_lots",
        "DELETE FROM billing_lotmove WHERE entry_id ="
        " (SELECT id FROM billing_ledgerentry WHERE kind = 'usage')",
    ),
    ("entry_moves", "UPDATE billing_lotmove SET amount = amount + 1 WHERE amount > 0"),
    (
        "move_abroad",
        "UPDATE billing_creditlot SET account_id = %s WHERE id ="
        " (SELECT min(lot_id) FROM billing_lotmove)",
    ),
    ("lot_moves", "UPDATE billing_creditlot SET remaining = remaining - 1 WHERE remaining > 0"),
    ("lot_moves", "UPDATE billing_creditlot SET granted = granted + 1"),
    ("lot_moves", "DELETE FROM billing_lotmove WHERE amount > 0"),
    ("hold_entry", "DELETE FROM billing_ledgerentry WHERE kind = 'usage'"),
    ("hold_entry", "UPDATE billing_hold SET settled = settled + 1 WHERE status = 'settled'"),
    (
        "hold_entry",
        "UPDATE billing_ledgerentry SET hold_id ="
        " (SELECT id FROM billing_hold WHERE status = 'active') WHERE kind = 'usage'",
    ),
    (
        "hold_entry",
        "UPDATE billing_ledgerentry SET hold_id ="
        " (SELECT id FROM billing_hold WHERE status = 'released') WHERE kind = 'usage'",
    ),
    ("usage_without_hold", "UPDATE billing_ledgerentry SET hold_id = NULL WHERE kind = 'usage'"),
    (
        "hold_usage",
        "UPDATE billing_usagerecord SET charged = charged - 1, absorbed = absorbed + 1",
    ),
    (
        "hold_usage",
        "UPDATE billing_usagerecord SET shortfall = 1, cost = cost + 1 WHERE hold_id IS NOT NULL",
    ),
    ("hold_without_usage", "DELETE FROM billing_usagerecord"),
    ("usage_unpaid", "UPDATE billing_usagerecord SET finish = 'empty' WHERE charged > 0"),
    ("usage_unpaid", "UPDATE billing_usagerecord SET finish = 'crashed' WHERE charged > 0"),
    (
        "hold_overdue",
        "UPDATE billing_hold SET expires_at = now() - interval '11 minutes'"
        " WHERE status = 'active'",
    ),
    ("order_purchase", "UPDATE billing_order SET credits = credits + 1"),
    ("order_purchase", "DELETE FROM billing_ledgerentry WHERE kind = 'purchase'"),
    ("order_purchase", "UPDATE billing_order SET status = 'pending'"),
    ("order_bonus", "UPDATE billing_order SET bonus = bonus + 1"),
    ("order_bonus", "UPDATE billing_order SET bonus = 0"),
    ("order_bonus", "DELETE FROM billing_ledgerentry WHERE kind = 'bonus'"),
    ("order_bonus", "UPDATE billing_order SET status = 'review'"),
    (
        "purchase_without_order",
        "UPDATE billing_ledgerentry SET order_id = NULL WHERE kind = 'purchase'",
    ),
    ("order_refunded", "UPDATE billing_refund SET amount_minor = 501, status = 'succeeded'"),
    (
        "order_taken_back",
        "UPDATE billing_ledgerentry SET amount = -1200, balance_before = 1300, balance_after = 100"
        " WHERE kind = 'refund'",
    ),
    ("order_money_back", "UPDATE billing_refund SET credits = credits + 1"),
    ("order_money_back", "UPDATE billing_refund SET amount_minor = 31"),
    ("refund", "UPDATE billing_refund SET credits = credits + 1"),
    ("refund", "UPDATE billing_refund SET status = 'failed'"),
    ("refund", "DELETE FROM billing_ledgerentry WHERE kind = 'refund'"),
    ("refund", "UPDATE billing_ledgerentry SET refund_id = NULL"),
    ("dispute", "UPDATE billing_dispute SET credits = credits + 1"),
    ("dispute", "UPDATE billing_dispute SET returned = FALSE"),
    ("dispute", "DELETE FROM billing_debtentry WHERE amount > 0"),
    ("dispute", "DELETE FROM billing_ledgerentry WHERE kind = 'dispute_won'"),
]


def test_every_rule_of_the_file_is_read():
    text = Path(audit.__file__).with_name("audit_rules.sql").read_text()
    marked = [line for line in text.splitlines() if line.startswith(("-- rule:", "-- warning:"))]
    assert len({rule.code for rule in audit.RULES}) == len(audit.RULES) == len(marked) == 30
    assert all(rule.message and rule.query.startswith("SELECT ") for rule in audit.RULES)


@pytest.mark.parametrize(
    ("code", "query"), TAMPERED, ids=[f"{n}-{one[0]}" for n, one in enumerate(TAMPERED)]
)
def test_broken_rule_is_found(lived_in, code, query):
    values = [money.open_account().pk] if "%s" in query else []
    money.tamper(query, *values)
    found = [problem for problem in audit.check() if problem.code == code]
    assert found
    assert {problem.account_id for problem in found} == {lived_in.pk}
    assert all(problem.where and problem.message for problem in found)
    # It is also found by account and by time, and only in its own account.
    assert code in {one.code for one in audit.check(account_id=lived_in.pk)}
    other = money.open_account(5)
    assert audit.check(account_id=other.pk) == []
    hour = timedelta(hours=1)
    assert code in {one.code for one in audit.check(since=timezone.now() - hour)}


# Rules that repeat a CHECK constraint, in case one was dropped.
BEYOND_CHECKS = [
    ("bounds", "billing_account", "account_covers_its_holds", "SET held = balance + 1"),
    (
        "entry_adds_up",
        "billing_ledgerentry",
        "entry_adds_up",
        "SET balance_after = balance_after + 1",
    ),
    ("lot_bounds", "billing_creditlot", "lot_remaining_in_bounds", "SET remaining = granted + 1"),
    ("usage_adds_up", "billing_usagerecord", "usage_adds_up", "SET cost = cost + 1"),
    (
        "order_refunded",
        "billing_order",
        "order_amounts_in_bounds",
        "SET amount_refunded_minor = amount_minor + 1",
    ),
]


@pytest.mark.parametrize(("code", "table", "constraint", "change"), BEYOND_CHECKS)
def test_broken_rule_is_found_without_its_constraint(lived_in, code, table, constraint, change):
    with without_constraint(table, constraint):
        money.tamper(f"UPDATE {table} {change}")
        assert {code, "constraint_missing"} <= codes()
    assert "constraint_missing" not in codes()


def test_miscounted_promo_code_is_found(account):
    code = PromoCode.objects.create(code="HELLO", credits=5, max_redemptions=3, redeemed=1)
    assert codes() == {"promo_count"}
    entry = money.grant(account, 5, kind=postings.Kind.PROMO).entry
    PromoRedemption.objects.create(code=code, user_id=account.user_id, number=1, entry=entry)
    assert codes() == set()


def test_only_paid_orders_need_credits(account):
    money.order(account, status=Order.Status.PENDING)
    assert codes() == set()
    package = CreditPackage.objects.get()
    Order.objects.create(
        user_id=account.user_id, account=account, status="paid", client_key=uuid.uuid4().hex,
        package=package, credits=7, bonus=3, amount_minor=5, currency="USD", provider="sandbox",
    )  # fmt: skip
    assert codes() == {"order_purchase", "order_bonus"}


@pytest.mark.parametrize("name", audit.TRIGGERS)
def test_disabled_trigger_is_found(name):
    table = audit.TRIGGERS[name]
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER {name}")
        try:
            [problem] = audit.check()
        finally:
            cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER {name}")
    assert (problem.code, problem.where) == ("trigger_missing", table)
    assert name in problem.message
    assert audit.check() == []


def test_dropped_unique_constraint_is_found():
    with without_constraint("billing_ledgerentry", "entry_seq_once"):
        [problem] = audit.check()
    assert problem.message == "The constraint entry_seq_once is missing."
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = 'billing_ledgerentry'::regclass"
            " AND contype = 'u' AND conname LIKE '%idempotency_key%'"
        )
        [[name]] = cursor.fetchall()
    with without_constraint("billing_ledgerentry", name):
        [problem] = audit.check()
    assert problem.message == "The column idempotency_key is not unique."
    assert audit.check() == []


def check_ledger(*arguments: str) -> tuple[int, str]:
    out = StringIO()
    try:
        call_command("check_ledger", *arguments, stdout=out)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


def test_command_prints_problems_and_exits_with_1(lived_in):
    assert check_ledger() == (0, "The ledger is consistent.\n")
    money.tamper("UPDATE billing_account SET held = held - 1")
    assert check_ledger() == (
        1,
        f"account {lived_in.pk}: 0.000039 are held, but its active holds add up to 0.00004. (held)\n"
        "1 problem.\n",
    )
    code, printed = check_ledger("--json")
    assert code == 1
    assert json.loads(printed) == [
        {
            "code": "held",
            "where": f"account {lived_in.pk}",
            "message": "0.000039 are held, but its active holds add up to 0.00004.",
            "account_id": lived_in.pk,
        }
    ]


def test_command_checks_one_account(lived_in):
    other = money.open_account(5)
    money.tamper("UPDATE billing_account SET seq = seq + 1 WHERE id = %s", other.pk)
    assert check_ledger("--account", str(lived_in.pk))[0] == 0
    assert check_ledger("--account", lived_in.user.email.upper())[0] == 0
    assert check_ledger("--account", str(other.pk))[0] == 1
    with pytest.raises(CommandError, match="There is no account nobody"):
        check_ledger("--account", "nobody@example.org")


def test_command_checks_entries_since_a_time(lived_in):
    later = timezone.now() + timedelta(hours=1)
    money.tamper("UPDATE billing_account SET seq = seq + 1")
    assert check_ledger("--since", "2020-01-01")[0] == 1
    assert check_ledger("--since", later.isoformat())[0] == 0
    with pytest.raises(CommandError):
        check_ledger("--since", "yesterday")


def test_inconsistent_accounts_are_frozen(lived_in):
    other = money.open_account(5)
    money.tamper("UPDATE billing_account SET seq = seq + 1 WHERE id = %s", lived_in.pk)
    before = money.state(lived_in)
    code, printed = check_ledger("--freeze")
    assert code == 1
    assert f"account {lived_in.pk}: frozen." in printed
    lived_in.refresh_from_db()
    other.refresh_from_db()
    assert (lived_in.status, other.status) == ("frozen", "active")
    assert money.state(lived_in) == before
    assert "frozen" not in check_ledger("--freeze")[1]


def test_overdue_hold_freezes_no_account(account):
    money.grant(account, 100)
    money.hold(account, 10, expires_at=timezone.now() - timedelta(minutes=11))
    assert check_ledger("--freeze")[0] == 1
    account.refresh_from_db()
    assert account.status == "active"


def test_check_is_stored(lived_in):
    assert audit.run_and_store().problems == []
    money.tamper("UPDATE billing_account SET debt = debt + 1")
    lived_in.refresh_from_db()
    stored = audit.run_and_store(since=timezone.now() - timedelta(minutes=5))
    assert stored == LedgerCheck.objects.first()
    assert (stored.is_full, stored.entries) == (False, lived_in.seq)
    assert {problem["code"] for problem in stored.problems} == {"debt", "free_in_debt"}
