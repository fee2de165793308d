"""Statements that the database refuses from any client."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, connection

from billing.models import Account, CreditLot, LedgerEntry
from tests.support import money

pytestmark = pytest.mark.django_db(transaction=True)

ENTRY = (
    "INSERT INTO billing_ledgerentry (account_id, seq, kind, counter_account, amount,"
    " balance_before, balance_after, idempotency_key, note, created_at)"
    " SELECT account_id, {seq}, '{kind}', 'grants', {amount}, {before}, {before} + {amount}, {key},"
    " '', now() FROM billing_ledgerentry WHERE kind = 'grant'"
)

OUT_OF_BALANCE = {
    "balance without an entry": "UPDATE billing_account SET balance = balance + 1",
    "held amount below its holds": "UPDATE billing_account SET held = held - 1",
    "seq without an entry": "UPDATE billing_account SET seq = seq + 1",
}
REFUSED = OUT_OF_BALANCE | {
    "held amount without a hold": "UPDATE billing_account SET held = held + 1",
    "negative balance": "UPDATE billing_account SET balance = -1",
    "balance below the held amount": "UPDATE billing_account SET balance = held - 1",
    "negative held amount": "UPDATE billing_account SET held = -1",
    "negative debt": "UPDATE billing_account SET debt = -1",
    "changed entry": "UPDATE billing_ledgerentry SET note = 'x'",
    "deleted entry": "DELETE FROM billing_ledgerentry",
    "changed lot move": "UPDATE billing_lotmove SET amount = amount + 1",
    "deleted lot move": "DELETE FROM billing_lotmove",
    "changed debt entry": "UPDATE billing_debtentry SET amount = 1",
    "deleted debt entry": "DELETE FROM billing_debtentry",
    "changed usage": "UPDATE billing_usagerecord SET charged = 0, absorbed = cost",
    "deleted usage": "DELETE FROM billing_usagerecord",
    "negative lot": "UPDATE billing_creditlot SET remaining = -1",
    "lot above its grant": "UPDATE billing_creditlot SET remaining = granted + 1",
    "settled hold settled again": "UPDATE billing_hold SET settled = 1 WHERE status = 'settled'",
    "settled hold made active": (
        "UPDATE billing_hold SET status = 'active', settled = NULL, resolved_at = NULL"
        " WHERE status = 'settled'"
    ),
    "hold of another amount": "UPDATE billing_hold SET amount = 1 WHERE status = 'active'",
    "hold of another account": "UPDATE billing_hold SET account_id = 0 WHERE status = 'active'",
    "hold of another key": "UPDATE billing_hold SET key = 'x' WHERE status = 'active'",
    "deleted hold": "DELETE FROM billing_hold WHERE status = 'active'",
    "hold settled for nothing": (
        "UPDATE billing_hold SET status = 'settled', settled = 0, resolved_at = now()"
        " WHERE status = 'active'"
    ),
    "order of another amount": "UPDATE billing_order SET amount_minor = 1",
    "order of other credits": "UPDATE billing_order SET credits = 1",
    "paid order made pending": "UPDATE billing_order SET status = 'pending'",
    "deleted order": "DELETE FROM billing_order",
    "entry that does not add up": ENTRY.replace("{before} + {amount}", "{before}").format(
        seq=99, kind="grant", amount=1, before=1, key="'x'"
    ),
    "entry to a negative balance": ENTRY.format(
        seq=99, kind="usage", amount=-9, before=1, key="'x'"
    ),
    "entry of zero": ENTRY.format(seq=99, kind="grant", amount=0, before=1, key="'x'"),
    "usage that adds credits": ENTRY.format(seq=99, kind="usage", amount=1, before=1, key="'x'"),
    "grant that removes credits": ENTRY.format(
        seq=99, kind="grant", amount=-1, before=1, key="'x'"
    ),
    "seq used twice": ENTRY.format(seq="seq", kind="grant", amount=1, before=1, key="'x'"),
    "key used twice": ENTRY.format(seq=99, kind="grant", amount=1, before=1, key="idempotency_key"),
    "second lot of a source": (
        "INSERT INTO billing_creditlot (account_id, kind, granted, remaining, priority,"
        " effective_at, paid_minor, currency, source_key)"
        " SELECT account_id, kind, 1, 1, 50, now(), 0, '', source_key FROM billing_creditlot"
    ),
    "second hold of a key": (
        "INSERT INTO billing_hold (id, account_id, key, amount, status, shortfall, model,"
        " expires_at, created_at, resolved_by) SELECT gen_random_uuid(), account_id, key, 1,"
        " 'active', 0, '', now(), now(), '' FROM billing_hold"
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_database_refuses(account, what):
    order = money.order(account, 1000)
    money.grant(account, 50)
    money.spend(account, 200)
    money.hold(account, 600)
    money.refund(order, 300)
    assert money.state(account) == (600, 600, 50)
    with pytest.raises(IntegrityError) as refused, connection.cursor() as cursor:
        cursor.execute(REFUSED[what])
    assert ("out of balance" in str(refused.value)) == (what in OUT_OF_BALANCE)
    assert money.problems() == []


def test_deletes_by_the_orm_are_refused(account):
    money.grant(account, 50)
    for rows in (LedgerEntry.objects.all(), CreditLot.objects.all(), Account.objects.all()):
        with pytest.raises(IntegrityError):
            rows.delete()
    assert money.state(account) == (50, 0, 0)
