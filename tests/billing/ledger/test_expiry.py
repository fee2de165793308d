"""Unresolved holds, credits past their date, and the mails that announce it."""

from __future__ import annotations

import threading
from datetime import timedelta
from functools import partial
from smtplib import SMTPException

import pytest
from django.core import mail
from django.utils import timezone

from accounts.models import User
from billing.credits import MICRO
from billing.ledger import expiry, postings
from billing.models import ExpiryNotice, Hold
from chatproject.lib.db import money_transaction
from tests.support import money
from tests.support.bad_rows import refused
from tests.support.threads import race

pytestmark = pytest.mark.django_db(transaction=True)


def overdue_hold(account, amount: int) -> Hold:
    return money.hold(account, amount, expires_at=timezone.now() - timedelta(seconds=1))


def test_only_overdue_holds_are_released(account, caplog, monkeypatch):
    monkeypatch.setattr(expiry, "BATCH", 2)
    money.grant(account, 100)
    overdue = [overdue_hold(account, 10) for _ in range(5)]
    running = money.hold(account, 20)
    now = timezone.now()
    assert expiry.release_holds(now) == 5
    assert expiry.release_holds(now) == 0
    assert money.state(account) == (100, 20, 0)
    for one in overdue:
        one.refresh_from_db()
        assert (one.status, one.resolved_by, one.settled) == ("released", "expiry", 0)
        assert f"hold {one.key} of account {account.pk} was never resolved" in caplog.text
    running.refresh_from_db()
    assert running.status == Hold.Status.ACTIVE


def test_hold_being_settled_is_not_released(account):
    money.grant(account, 100)
    held, other = overdue_hold(account, 40), overdue_hold(account, 10)
    locked, released = threading.Event(), threading.Event()

    def settle() -> None:
        Hold.objects.select_for_update(no_key=True).get(pk=held.pk)
        locked.set()
        assert released.wait(30)
        postings.settle(hold_id=held.pk, cost=25)

    def release() -> int:
        assert locked.wait(30)
        count = expiry.release_holds(timezone.now())
        released.set()
        return count

    assert race([partial(money_transaction, settle), release]) == [None, 1]
    held.refresh_from_db()
    other.refresh_from_db()
    assert (held.status, held.settled) == ("settled", 25)
    assert other.status == "released"


def test_extended_hold_is_not_released(account):
    money.grant(account, 100)
    held = overdue_hold(account, 40)
    later = timezone.now() + timedelta(minutes=10)
    money_transaction(postings.extend, hold_id=held.pk, expires_at=later)
    assert expiry.release_holds(timezone.now()) == 0


def test_credits_past_their_date_expire_unless_held(account, monkeypatch):
    monkeypatch.setattr(expiry, "BATCH", 1)
    date = timezone.now() + timedelta(minutes=10)
    other, later = money.open_account(), money.open_account()
    for one, expires_at in ((account, date), (other, date), (later, date + timedelta(minutes=10))):
        money.grant(one, 100, expires_at=expires_at)
    held = money.hold(account, 60)
    monkeypatch.setattr(timezone, "now", lambda: date)
    assert expiry.expire_lots(date) == 2
    assert expiry.expire_lots(date) == 0
    assert [money.state(one)[0] for one in (account, other, later)] == [60, 0, 100]
    money.release(held)
    assert money.state(account) == (0, 0, 0)


def test_owner_is_notified_14_and_3_days_before(account):
    now = timezone.now()
    money.grant(account, 12 * MICRO, expires_at=now + timedelta(days=20))
    money.grant(account, 3 * MICRO, expires_at=now + timedelta(days=21))
    money.grant(account, 100 * MICRO)
    assert expiry.notify(now) == 0
    fortnight = now + timedelta(days=8)
    assert expiry.notify(fortnight) == 1
    assert expiry.notify(fortnight) == 0
    [first] = mail.outbox
    assert first.to == [account.user.email]
    assert first.subject == "Parley: 15 credits expire within 14 days"
    assert "12 credits on " in first.body
    assert "3 credits on " in first.body
    assert expiry.notify(now + timedelta(days=18)) == 1
    assert mail.outbox[1].subject == "Parley: 15 credits expire within 3 days"
    assert ExpiryNotice.objects.count() == 4


def test_late_notice_is_sent_once(account):
    now = timezone.now()
    money.grant(account, MICRO, expires_at=now + timedelta(days=20))
    assert expiry.notify(now + timedelta(days=18)) == 1
    assert [one.subject for one in mail.outbox] == ["Parley: 1 credits expire within 3 days"]


def test_short_lived_and_monthly_credits_get_no_notice(account):
    now = timezone.now()
    money.grant(account, MICRO, expires_at=now + timedelta(days=3))
    key = f"allowance:{account.pk}:2099-01"
    money.grant(account, MICRO, key=key, expires_at=now + timedelta(days=20))
    for day in range(21):
        assert expiry.notify(now + timedelta(days=day)) == 0


def test_spent_credits_and_inactive_users_get_no_notice(account):
    now = timezone.now()
    money.grant(account, MICRO, expires_at=now + timedelta(days=20))
    money.spend(account, MICRO)
    inactive = money.open_account()
    money.grant(inactive, MICRO, expires_at=now + timedelta(days=20))
    User.objects.filter(pk=inactive.user_id).update(is_active=False)
    assert expiry.notify(now + timedelta(days=10)) == 0


def test_failed_notice_is_sent_later(account, monkeypatch):
    now = timezone.now()
    money.grant(account, MICRO, expires_at=now + timedelta(days=20))

    def refuse(*_: object) -> None:
        raise SMTPException("no")

    with monkeypatch.context() as patch:
        patch.setattr("django.core.mail.EmailMessage.send", refuse)
        assert expiry.notify(now + timedelta(days=10)) == 0
    assert expiry.notify(now + timedelta(days=10)) == 1


def test_bad_rows_do_not_stop_the_others(caplog, monkeypatch):
    soon = timezone.now() + timedelta(days=1)
    accounts = [money.open_account() for _ in range(3)]
    for account in accounts:
        money.grant(account, 100, expires_at=soon)
    holds = [overdue_hold(account, 10) for account in accounts]
    with refused("billing_account", f"NEW.id = {accounts[0].pk}"):
        assert expiry.release_holds(timezone.now()) == 2
        monkeypatch.setattr(timezone, "now", lambda: soon)
        assert expiry.expire_lots(soon) == 2
    assert f"hold {holds[0].key} failed" in caplog.text
    assert f"account {accounts[0].pk} failed" in caplog.text
    assert expiry.release_holds(soon) == 1
    assert money.state(accounts[0]) == (0, 0, 0)  # released credits past their date expire at once


def test_bad_notice_does_not_stop_the_others(caplog):
    accounts = [money.open_account() for _ in range(3)]
    for account in accounts:
        money.grant(account, 100, expires_at=timezone.now() + timedelta(days=20))
    now = timezone.now() + timedelta(days=10)
    first = accounts[0].lots.get()
    with refused("billing_expirynotice", f"NEW.lot_id = {first.pk}"):
        assert expiry.notify(now) == 2
    assert f"the notice of expiry for account {accounts[0].pk} failed" in caplog.text
    assert expiry.notify(now) == 1
