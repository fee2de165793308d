"""Automatic top-ups: consent, charging of the saved card, the monthly cap, and failures."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core import mail
from django.utils import timezone

from accounts.privacy import leaving
from billing import jobs, privacy, queue, receivers
from billing.credits import MICRO
from billing.models import Account, AutoTopUp, CreditPackage, Order, SandboxPayment
from billing.payments import auto_top_up, checkout, poller
from billing.payments.auto_top_up import TopUpRefused
from billing.payments.providers import sandbox as bank
from billing.payments.providers.base import ProviderError
from billing.signals import balance_changed
from tests.support import money, purchases

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("sandbox")]

FULL = 1100 * MICRO
THRESHOLD = 50 * MICRO


@pytest.fixture
def package() -> CreditPackage:
    return purchases.package()


@pytest.fixture
def consent(account, package, settings) -> AutoTopUp:
    """The user agreed to USD 15.00 a month at most, and has paid once by card since."""
    settings.AUTO_TOP_UP = True
    agree(account, package)
    assert purchases.paid(account, package).kind == "manual"
    money.spend(account, FULL)
    mail.outbox.clear()
    queue._queue().empty()
    return AutoTopUp.objects.get()


@pytest.fixture
def stripe_card(consent, fakepay) -> None:
    """The saved card is one of Stripe's."""
    AutoTopUp.objects.update(provider="stripe", customer_ref="cus_1", payment_method_ref="pm_1")


def agree(account: Account, package: CreditPackage, **fields) -> AutoTopUp:
    return auto_top_up.consent(
        **{
            "user_id": account.user_id,
            "package_id": package.pk,
            "currency": "USD",
            "threshold": THRESHOLD,
            "monthly_cap_minor": 1500,
            **fields,
        }
    )


def spend_all(account: Account) -> None:
    account.refresh_from_db()
    money.spend(account, account.available)


def end_cooldown() -> None:
    AutoTopUp.objects.update(cooldown_until=timezone.now() - timedelta(seconds=1))


def pending_charge(account: Account, package: CreditPackage) -> Order:
    """Create an automatic order whose charge is still pending at the bank."""
    return Order.objects.create(
        user_id=account.user_id, account=account, kind="auto", status="pending",
        client_key="auto:pending", package=package, package_name="Small", credits=1,
        amount_minor=500, currency="USD", provider="sandbox", provider_order_id="sbx_slow",
    )  # fmt: skip


def charged() -> int:
    return AutoTopUp.objects.get().charged_this_month_minor


def set_card(card: str) -> None:
    AutoTopUp.objects.update(payment_method_ref=card)


# --- The decision ------------------------------------------------------------------------------


def test_nothing_is_bought_without_flag_consent_and_card(account, package, settings):
    with pytest.raises(TopUpRefused, match="not offered"):
        agree(account, package)
    assert auto_top_up.check(account.pk) is None
    settings.AUTO_TOP_UP = True
    assert auto_top_up.check(account.pk) is None
    agree(account, package)
    assert auto_top_up.check(account.pk) is None
    assert not Order.objects.exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"monthly_cap_minor": 499}, "monthly limit"),
        ({"threshold": 0}, "above zero"),
        ({"threshold": 1000 * MICRO}, "lower one"),
        ({"currency": "JPY"}, "no longer available"),
        ({"package_id": 0}, "no longer available"),
    ],
)
def test_contradictory_terms_are_refused(account, package, settings, fields, words):
    settings.AUTO_TOP_UP = True
    with pytest.raises(TopUpRefused, match=words):
        agree(account, package, **fields)
    assert not AutoTopUp.objects.exists()


def test_consent_saves_a_card_until_withdrawal(account, consent):
    assert (consent.provider, consent.payment_method_ref) == ("sandbox", bank.CARD)
    auto_top_up.withdraw(account.user_id)
    consent.refresh_from_db()
    assert (consent.enabled, consent.payment_method_ref, consent.consented_at) == (False, "", None)
    assert auto_top_up.check(account.pk) is None


def test_purchase_without_consent_saves_no_card(account, package, settings):
    settings.AUTO_TOP_UP = True
    purchases.paid(account, package)
    assert not AutoTopUp.objects.exists()


def test_cap_is_never_below_this_months_charges(account, package, consent):
    auto_top_up.check(account.pk)
    spend_all(account)
    end_cooldown()
    auto_top_up.check(account.pk)
    with pytest.raises(TopUpRefused, match="charged this month"):
        agree(account, package, monthly_cap_minor=999)
    AutoTopUp.objects.update(month="2020-01-01")
    agree(account, package, monthly_cap_minor=999)
    assert charged() == 0


# --- Buying ------------------------------------------------------------------------------------


def test_low_balance_charges_the_saved_card(account, consent):
    order = auto_top_up.check(account.pk)
    assert (order.kind, order.status, order.amount_minor) == ("auto", "paid", 500)
    assert money.state(account) == (FULL, 0, 0)
    assert charged() == 500
    purchases.work()
    assert [message.to for message in mail.outbox] == [[account.user.email]]
    assert money.problems() == []


def test_sufficient_balance_buys_nothing(account, consent):
    money.grant(account, THRESHOLD)
    assert auto_top_up.check(account.pk) is None
    money.hold(account, 1)
    assert auto_top_up.check(account.pk) is not None


def test_fifty_concurrent_checks_buy_once(account, consent):
    purchases.at_once(50, lambda: auto_top_up.check(account.pk))
    assert Order.objects.filter(kind="auto").count() == 1
    assert SandboxPayment.objects.count() == 2
    assert charged() == 500
    assert money.state(account) == (FULL, 0, 0)


def test_second_purchase_waits_for_an_hour(account, consent):
    assert auto_top_up.check(account.pk)
    spend_all(account)
    assert auto_top_up.check(account.pk) is None
    end_cooldown()
    assert auto_top_up.check(account.pk)


def test_monthly_cap_is_never_exceeded(account, consent):
    for _ in range(3):
        assert auto_top_up.check(account.pk)
        spend_all(account)
        end_cooldown()
    assert charged() == 1500
    assert auto_top_up.check(account.pk) is None
    assert charged() == 1500
    # The next month starts at zero.
    AutoTopUp.objects.update(month="2020-01-01")
    assert auto_top_up.check(account.pk)
    assert charged() == 500


def test_pending_charge_blocks_a_second_one(account, package, consent):
    pending_charge(account, package)
    assert auto_top_up.check(account.pk) is None
    assert Order.objects.filter(kind="auto").count() == 1


def test_frozen_account_is_not_topped_up(account, consent):
    order = Order.objects.get()
    bank.dispute(purchases.bank_id(order))
    checkout.sync_order(order.pk)
    assert auto_top_up.check(account.pk) is None


def test_spending_enqueues_the_check(account, consent):
    balance_changed.connect(receivers.consider_top_up)
    try:
        money.grant(account, 200 * MICRO)
        assert queue._queue().count == 0
        money.spend(account, 160 * MICRO)
        assert queue._queue().count >= 1
        purchases.work()
        assert money.state(account) == (FULL + 40 * MICRO, 0, 0)
        assert Order.objects.filter(kind="auto").count() == 1
    finally:
        balance_changed.disconnect(receivers.consider_top_up)


# --- When the card is declined -----------------------------------------------------------------


def test_declining_card_is_tried_three_times_hourly(account, consent):
    set_card(bank.DECLINED_CARD)
    for attempt in (1, 2, 3):
        order = auto_top_up.check(account.pk)
        assert (order.status, order.problem) == ("failed", "The card was declined.")
        assert auto_top_up.check(account.pk) is None  # the claim is kept
        assert charged() == attempt * 500
        end_cooldown()
    consent.refresh_from_db()
    assert (consent.enabled, consent.failures) == (False, 3)
    assert consent.last_failure == "The card was declined."
    assert auto_top_up.check(account.pk) is None
    [message] = mail.outbox
    assert "until you turn it on again" in message.body
    assert money.state(account) == (0, 0, 0)


def test_success_resets_the_failures(account, consent):
    set_card(bank.DECLINED_CARD)
    auto_top_up.check(account.pk)
    set_card(bank.CARD)
    end_cooldown()
    assert auto_top_up.check(account.pk).is_paid
    assert AutoTopUp.objects.get().failures == 0


def test_confirmation_demanded_by_the_bank_mails_a_link(account, consent):
    set_card(bank.ASKING_CARD)
    assert auto_top_up.check(account.pk).status == "failed"
    [message] = mail.outbox
    assert message.to == [account.user.email]
    assert "https://parley.example.org/billing/packages/" in message.body
    assert "requires you to confirm the payment" in message.body


def test_charge_of_unknown_fate_is_made_once(account, stripe_card, fakepay):
    # The search for the order's charge succeeds; then Stripe charges, and its answers are lost.
    fakepay.fault("", "cut", "cut", "cut")
    order = auto_top_up.check(account.pk)
    assert order.status == "created"
    assert len(fakepay.stripe.intents) == 1
    # As a day later: the charge must be found without its key.
    fakepay.stripe.replays.forget()
    poller.poll(timezone.now() + timedelta(minutes=3))
    purchases.work()
    order.refresh_from_db()
    assert order.status == "paid"
    assert len(fakepay.stripe.intents) == 1
    assert money.state(account) == (FULL, 0, 0)
    assert charged() == 500


def test_charge_unknown_for_hours_is_left_to_staff(account, stripe_card, fakepay):
    fakepay.fault(*["500"] * 6)
    order = auto_top_up.check(account.pk)
    Order.objects.filter(pk=order.pk).update(created_at=timezone.now() - timedelta(hours=21))
    assert auto_top_up.charge(order.pk).status == "review"
    assert len(purchases.alerts()) == len(mail.outbox) == 1
    for night in range(1, 4):
        checkout.sync_order(order.pk)
        poller.poll(timezone.now() + timedelta(days=night))
        purchases.work()
        order.refresh_from_db()
        assert order.status == "review"
    assert len(purchases.alerts()) == 1


def test_charge_that_fails_days_later_counts_once(account, package, consent):
    pending = pending_charge(account, package)
    SandboxPayment.objects.create(
        pk="sbx_slow", order_id=pending.pk, user_id=account.user_id, amount_minor=500,
        currency="USD", status="failed", idempotency_key="slow",
    )  # fmt: skip
    for _ in range(2):
        checkout.sync_order(pending.pk)
    assert AutoTopUp.objects.get().failures == 1


def test_decline_by_stripe_counts_as_a_failure(account, stripe_card, fakepay):
    fakepay.stripe.declined_methods["pm_1"] = "insufficient_funds"
    assert auto_top_up.check(account.pk).status == "failed"
    assert AutoTopUp.objects.get().failures == 1


# --- The account is deleted ---------------------------------------------------------------------


def test_purge_removes_the_card_at_stripe(account, stripe_card, fakepay):
    """Once, also after a job was killed between Stripe's answer and its row; a failure is repeated."""
    user = account.user
    leaving.request(user)
    top_up = AutoTopUp.objects.get()
    assert (top_up.enabled, top_up.payment_method_ref) == (False, "pm_1")
    fakepay.fault("500", "500", "500")
    with pytest.raises(ProviderError):
        privacy.erase_payments(user, 0.0)
    assert AutoTopUp.objects.get().payment_method_ref == "pm_1"
    jobs.forget_method(user.pk)
    assert fakepay.stripe.detached == ["pm_1"]
    assert AutoTopUp.objects.get().payment_method_ref == ""
    AutoTopUp.objects.update(
        provider="stripe", payment_method_ref="pm_1"
    )  # as a killed job left it
    assert privacy.erase_payments(user, 0.0)
    assert fakepay.stripe.detached == ["pm_1"]
    assert not AutoTopUp.objects.exists()


def test_restored_account_keeps_a_new_card(account, stripe_card, fakepay):
    leaving.request(account.user)
    leaving.restore(account.user)
    AutoTopUp.objects.update(enabled=True, payment_method_ref="pm_2")
    jobs.forget_method(account.user_id)
    assert fakepay.stripe.detached == []
    assert AutoTopUp.objects.get().payment_method_ref == "pm_2"
