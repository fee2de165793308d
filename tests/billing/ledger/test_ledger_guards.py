"""What the database refuses, whoever asks."""

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

REFUSED = {
    "a balance below nothing": "UPDATE billing_account SET balance = -1",
    "a balance below what is held": "UPDATE billing_account SET balance = held - 1",
    "holds below nothing": "UPDATE billing_account SET held = -1",
    "a debt below nothing": "UPDATE billing_account SET debt = -1",
    "a balance without an entry": "UPDATE billing_account SET balance = balance + 1",
    "holds without a hold": "UPDATE billing_account SET held = held + 1",
    "a seq without an entry": "UPDATE billing_account SET seq = seq + 1",
    "a changed entry": "UPDATE billing_ledgerentry SET note = 'x'",
    "an entry that is gone": "DELETE FROM billing_ledgerentry",
    "a changed move": "UPDATE billing_lotmove SET amount = amount + 1",
    "a move that is gone": "DELETE FROM billing_lotmove",
    "a changed debt entry": "UPDATE billing_debtentry SET amount = 1",
    "a debt entry that is gone": "DELETE FROM billing_debtentry",
    "changed usage": "UPDATE billing_usagerecord SET charged = 0, absorbed = cost",
    "usage that is gone": "DELETE FROM billing_usagerecord",
    "a lot below nothing": "UPDATE billing_creditlot SET remaining = -1",
    "a lot above what was given": "UPDATE billing_creditlot SET remaining = granted + 1",
    "a settled hold that settles": "UPDATE billing_hold SET settled = 1 WHERE status = 'settled'",
    "a settled hold that is active": (
        "UPDATE billing_hold SET status = 'active', settled = NULL, resolved_at = NULL"
        " WHERE status = 'settled'"
    ),
    "a hold of another amount": "UPDATE billing_hold SET amount = 1 WHERE status = 'active'",
    "a hold of another account": "UPDATE billing_hold SET account_id = 0 WHERE status = 'active'",
    "a hold of another key": "UPDATE billing_hold SET key = 'x' WHERE status = 'active'",
    "a hold that is gone": "DELETE FROM billing_hold WHERE status = 'active'",
    "a hold settled for nothing": (
        "UPDATE billing_hold SET status = 'settled', settled = 0, resolved_at = now()"
        " WHERE status = 'active'"
    ),
    "an order of another amount": "UPDATE billing_order SET amount_minor = 1",
    "an order of other credits": "UPDATE billing_order SET credits = 1",
    "a paid order that was not": "UPDATE billing_order SET status = 'pending'",
    "an order that is gone": "DELETE FROM billing_order",
    "an entry that does not add up": ENTRY.replace("{before} + {amount}", "{before}").format(
        seq=99, kind="grant", amount=1, before=1, key="'x'"
    ),
    "an entry below nothing": ENTRY.format(seq=99, kind="usage", amount=-9, before=1, key="'x'"),
    "an entry of nothing": ENTRY.format(seq=99, kind="grant", amount=0, before=1, key="'x'"),
    "usage that gives": ENTRY.format(seq=99, kind="usage", amount=1, before=1, key="'x'"),
    "a grant that takes": ENTRY.format(seq=99, kind="grant", amount=-1, before=1, key="'x'"),
    "a seq twice": ENTRY.format(seq="seq", kind="grant", amount=1, before=1, key="'x'"),
    "a key twice": ENTRY.format(seq=99, kind="grant", amount=1, before=1, key="idempotency_key"),
    "a lot of the same source": (
        "INSERT INTO billing_creditlot (account_id, kind, granted, remaining, priority,"
        " effective_at, paid_minor, currency, source_key)"
        " SELECT account_id, kind, 1, 1, 50, now(), 0, '', source_key FROM billing_creditlot"
    ),
    "a hold of the same key": (
        "INSERT INTO billing_hold (id, account_id, key, amount, status, shortfall, model,"
        " expires_at, created_at, resolved_by) SELECT gen_random_uuid(), account_id, key, 1,"
        " 'active', 0, '', now(), now(), '' FROM billing_hold"
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_database_refuses(account, what):
    order = money.order(account, 1000)
    money.grant(account, 50)
    money.settle(money.hold(account, 300), 200)
    money.hold(account, 600)
    money.refund(order, 300)
    assert money.state(account) == (600, 600, 50)
    with pytest.raises(IntegrityError), connection.cursor() as cursor:
        cursor.execute(REFUSED[what])
    assert money.problems() == []


def test_ordinary_deletes_are_refused_too(account):
    money.grant(account, 50)
    for rows in (LedgerEntry.objects.all(), CreditLot.objects.all(), Account.objects.all()):
        with pytest.raises(IntegrityError):
            rows.delete()
    assert money.state(account) == (50, 0, 0)
