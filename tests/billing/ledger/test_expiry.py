"""Holds that nobody resolved, credits past their date, and the mails that come before."""

from __future__ import annotations

import threading
import time
import uuid
from datetime import datetime, timedelta
from smtplib import SMTPException

import pytest
from django.core import mail
from django.db import connections, transaction
from django.utils import timezone

from accounts.models import User
from billing.ledger import expiry, postings, signup
from billing.models import Account, CreditLot, ExpiryNotice, Hold
from chatproject.lib.db import money_transaction

pytestmark = pytest.mark.django_db(transaction=True)

CREDIT = 1_000_000


@pytest.fixture
def account(settings) -> Account:
    settings.SIGNUP_CREDITS = 0
    return make_account()


def make_account(name: str = "reader") -> Account:
    user = User.objects.create_user(f"{name}@example.org")
    return money_transaction(signup.open_account, user_id=user.pk)


def grant(account: Account, amount: int, *, expires_at: datetime | None = None) -> CreditLot:
    posted = money_transaction(
        postings.grant,
        account_id=account.pk,
        amount=amount,
        key=uuid.uuid4().hex,
        expires_at=expires_at,
    )
    return CreditLot.objects.get(moves__entry=posted.entry)


def hold(account: Account, amount: int, expires_at: datetime) -> Hold:
    return money_transaction(
        postings.hold,
        account_id=account.pk,
        amount=amount,
        key=f"run:{uuid.uuid4()}",
        expires_at=expires_at,
    )


def soon() -> datetime:
    return timezone.now() + timedelta(minutes=10)


def test_only_holds_past_their_end_are_released(account, caplog, monkeypatch):
    monkeypatch.setattr(expiry, "BATCH", 2)
    grant(account, 100)
    now = timezone.now()
    overdue = [hold(account, 10, now - timedelta(seconds=1)) for _ in range(5)]
    running = hold(account, 20, soon())
    assert expiry.release_holds(now) == 5
    assert expiry.release_holds(now) == 0
    account.refresh_from_db()
    assert (account.balance, account.held) == (100, 20)
    for one in overdue:
        one.refresh_from_db()
        assert (one.status, one.resolved_by, one.settled) == ("released", "expiry", 0)
        assert f"hold {one.key} of account {account.pk} was never resolved" in caplog.text
    running.refresh_from_db()
    assert running.status == Hold.Status.ACTIVE


def test_a_hold_that_somebody_settles_now_is_left_to_them(account):
    grant(account, 100)
    held = hold(account, 40, timezone.now() - timedelta(seconds=1))
    other = hold(account, 10, timezone.now() - timedelta(seconds=1))
    locked, looked = threading.Event(), threading.Event()

    def settle() -> None:
        def slowly() -> None:
            Hold.objects.select_for_update(no_key=True).get(pk=held.pk)
            locked.set()
            assert looked.wait(30)
            postings.settle(hold_id=held.pk, cost=25)

        try:
            money_transaction(slowly)
        finally:
            connections.close_all()

    thread = threading.Thread(target=settle)
    thread.start()
    assert locked.wait(30)
    assert expiry.release_holds(timezone.now()) == 1
    looked.set()
    thread.join(30)
    held.refresh_from_db()
    other.refresh_from_db()
    assert (held.status, held.settled) == ("settled", 25)
    assert other.status == "released"


def test_a_hold_that_was_extended_meanwhile_stays(account):
    grant(account, 100)
    held = hold(account, 40, timezone.now() - timedelta(seconds=1))
    money_transaction(postings.extend, hold_id=held.pk, expires_at=soon())
    assert expiry.release_holds(timezone.now()) == 0


def test_credits_past_their_date_go_and_what_is_held_stays(account, monkeypatch):
    monkeypatch.setattr(expiry, "BATCH", 1)
    date = timezone.now() + timedelta(milliseconds=300)
    other, later = make_account("other"), make_account("later")
    for one in (account, other):
        grant(one, 100, expires_at=date)
    grant(later, 100, expires_at=soon())
    held = hold(account, 60, soon())
    while timezone.now() <= date:
        time.sleep(0.01)
    assert expiry.expire_lots(timezone.now()) == 2
    assert expiry.expire_lots(timezone.now()) == 0
    assert balances() == {"reader": 60, "other": 0, "later": 100}
    money_transaction(postings.release, hold_id=held.pk)
    assert balances()["reader"] == 0


def balances() -> dict[str, int]:
    accounts = Account.objects.select_related("user")
    return {account.user.email.partition("@")[0]: account.balance for account in accounts}


def test_the_owner_is_told_fourteen_and_three_days_before(account):
    now = timezone.now()
    grant(account, 12 * CREDIT, expires_at=now + timedelta(days=20))
    grant(account, 3 * CREDIT, expires_at=now + timedelta(days=21))
    grant(account, 100 * CREDIT)
    assert expiry.notify(now) == 0
    fortnight = now + timedelta(days=8)
    assert expiry.notify(fortnight) == 1
    assert expiry.notify(fortnight) == 0
    [first] = mail.outbox
    assert first.to == ["reader@example.org"]
    assert first.subject == "Parley: 15 credits expire within 14 days"
    assert "12 credits on " in first.body
    assert "3 credits on " in first.body
    assert expiry.notify(now + timedelta(days=18)) == 1
    assert mail.outbox[1].subject == "Parley: 15 credits expire within 3 days"
    assert ExpiryNotice.objects.count() == 4


def test_who_is_told_late_is_told_once(account):
    now = timezone.now()
    grant(account, CREDIT, expires_at=now + timedelta(days=20))
    assert expiry.notify(now + timedelta(days=18)) == 1
    assert [one.subject for one in mail.outbox] == ["Parley: 1 credits expire within 3 days"]


def test_nobody_is_told_of_what_was_given_for_a_few_days_or_comes_every_month(account):
    now = timezone.now()
    grant(account, CREDIT, expires_at=now + timedelta(days=3))
    money_transaction(
        postings.grant,
        account_id=account.pk,
        amount=CREDIT,
        key=f"allowance:{account.pk}:2099-01",
        expires_at=now + timedelta(days=20),
    )
    for day in range(21):
        assert expiry.notify(now + timedelta(days=day)) == 0


def test_spent_credits_and_users_who_left_are_passed_over(account):
    now = timezone.now()
    grant(account, CREDIT, expires_at=now + timedelta(days=20))
    held = hold(account, CREDIT, soon())
    money_transaction(postings.settle, hold_id=held.pk, cost=CREDIT)
    gone = make_account("gone")
    grant(gone, CREDIT, expires_at=now + timedelta(days=20))
    User.objects.filter(email="gone@example.org").update(is_active=False)
    assert expiry.notify(now + timedelta(days=10)) == 0


def test_a_mail_that_was_not_sent_is_sent_later(account, monkeypatch, caplog):
    now = timezone.now()
    grant(account, CREDIT, expires_at=now + timedelta(days=20))

    def refuse(*_: object) -> None:
        raise SMTPException("no")

    with monkeypatch.context() as patch:
        patch.setattr("django.core.mail.EmailMessage.send", refuse)
        assert expiry.notify(now + timedelta(days=10)) == 0
    assert "expiry notice of account" in caplog.text
    assert not transaction.get_connection().in_atomic_block
    assert expiry.notify(now + timedelta(days=10)) == 1
