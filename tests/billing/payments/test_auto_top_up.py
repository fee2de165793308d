from __future__ import annotations

from datetime import timedelta

import pytest
from django.core import mail
from django.utils import timezone

from billing import queue, receivers
from billing.credits import MICRO
from billing.models import Account, AutoTopUp, CreditPackage, Order, SandboxPayment
from billing.payments import auto_top_up, checkout, poller
from billing.payments.auto_top_up import TopUpRefused
from billing.payments.providers import sandbox as bank
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
    order = purchases.paid(account, package)
    money.settle(money.hold(account, FULL), FULL)
    mail.outbox.clear()
    queue._queue().empty()
    assert order.kind == "manual"
    return AutoTopUp.objects.get()


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
    money.settle(money.hold(account, account.available), account.available)


def cool_down() -> None:
    AutoTopUp.objects.update(cooldown_until=timezone.now() - timedelta(seconds=1))


def charged() -> int:
    return AutoTopUp.objects.get().charged_this_month_minor


def set_card(card: str) -> None:
    AutoTopUp.objects.update(payment_method_ref=card)


# --- The decision ------------------------------------------------------------------------------


def test_nothing_is_bought_without_the_flag_without_consent_or_without_a_card(
    account, package, settings
):
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
def test_terms_that_make_no_sense_are_refused(account, package, settings, fields, words):
    settings.AUTO_TOP_UP = True
    with pytest.raises(TopUpRefused, match=words):
        agree(account, package, **fields)
    assert not AutoTopUp.objects.exists()


def test_consent_keeps_the_card_of_the_next_purchase_and_withdrawing_forgets_it(account, consent):
    assert (consent.provider, consent.payment_method_ref) == ("sandbox", bank.CARD)
    auto_top_up.withdraw(account.user_id)
    consent.refresh_from_db()
    assert (consent.enabled, consent.payment_method_ref, consent.consented_at) == (False, "", None)
    assert auto_top_up.check(account.pk) is None


def test_a_purchase_of_somebody_who_did_not_agree_keeps_no_card(account, package, settings):
    settings.AUTO_TOP_UP = True
    purchases.paid(account, package)
    assert not AutoTopUp.objects.exists()


def test_the_cap_is_not_lowered_below_what_was_charged(account, package, consent):
    auto_top_up.check(account.pk)
    spend_all(account)
    cool_down()
    auto_top_up.check(account.pk)
    with pytest.raises(TopUpRefused, match="charged this month"):
        agree(account, package, monthly_cap_minor=999)
    AutoTopUp.objects.update(month="2020-01-01")
    agree(account, package, monthly_cap_minor=999)
    assert charged() == 0


# --- Buying ------------------------------------------------------------------------------------


def test_a_low_balance_buys_the_package_with_the_saved_card(account, consent):
    order = auto_top_up.check(account.pk)
    assert (order.kind, order.status, order.amount_minor) == ("auto", "paid", 500)
    assert money.state(account) == (FULL, 0, 0)
    assert charged() == 500
    purchases.work()
    assert [message.to for message in mail.outbox] == [[account.user.email]]
    assert money.problems() == []


def test_a_balance_that_is_not_low_buys_nothing(account, consent):
    money.grant(account, THRESHOLD)
    assert auto_top_up.check(account.pk) is None
    money.hold(account, 1)
    assert auto_top_up.check(account.pk) is not None


def test_fifty_at_once_buy_once(account, consent):
    purchases.at_once(50, lambda: auto_top_up.check(account.pk))
    assert Order.objects.filter(kind="auto").count() == 1
    assert SandboxPayment.objects.count() == 2
    assert charged() == 500
    assert money.state(account) == (FULL, 0, 0)


def test_within_an_hour_nothing_more_is_bought(account, consent):
    assert auto_top_up.check(account.pk)
    spend_all(account)
    assert auto_top_up.check(account.pk) is None
    cool_down()
    assert auto_top_up.check(account.pk)


def test_the_cap_of_the_month_is_never_exceeded(account, consent):
    for _ in range(3):
        assert auto_top_up.check(account.pk)
        spend_all(account)
        cool_down()
    assert charged() == 1500
    assert auto_top_up.check(account.pk) is None
    assert charged() == 1500
    # In another month it begins anew.
    AutoTopUp.objects.update(month="2020-01-01")
    assert auto_top_up.check(account.pk)
    assert charged() == 500


def test_an_order_in_flight_keeps_a_second_one_out(account, consent):
    there = SandboxPayment.objects.get()
    SandboxPayment.objects.filter(pk=there.pk).update(idempotency_key="other")
    assert auto_top_up.check(account.pk).is_paid
    Order.objects.filter(kind="auto").update(provider_order_id=None)
    spend_all(account)
    cool_down()
    first = Order.objects.get(kind="auto")
    again = Order.objects.create(
        **{
            field.name: getattr(first, field.name)
            for field in Order._meta.fields
            if field.name not in ("id", "invoice_no", "provider_payment_id")
        }
        | {"client_key": "auto:in-flight", "status": "pending"}
    )
    assert auto_top_up.check(account.pk) is None
    assert Order.objects.filter(kind="auto", status__in=Order.OPEN).get() == again


def test_a_frozen_account_is_not_topped_up(account, consent):
    order = Order.objects.get()
    bank.dispute(purchases.there(order))
    checkout.sync_order(order.pk)
    assert auto_top_up.check(account.pk) is None


def test_spending_puts_the_check_into_the_queue(account, consent):
    balance_changed.connect(receivers.consider_top_up)
    try:
        money.grant(account, 200 * MICRO)
        assert queue._queue().count == 0
        money.settle(money.hold(account, 160 * MICRO), 160 * MICRO)
        assert queue._queue().count >= 1
        purchases.work()
        assert money.state(account) == (FULL + 40 * MICRO, 0, 0)
        assert Order.objects.filter(kind="auto").count() == 1
    finally:
        balance_changed.disconnect(receivers.consider_top_up)


# --- When the card does not work ---------------------------------------------------------------


def test_a_declining_card_is_tried_once_an_hour_and_three_times_in_all(account, consent):
    set_card(bank.DECLINED_CARD)
    for attempt in (1, 2, 3):
        order = auto_top_up.check(account.pk)
        assert (order.status, order.problem) == ("failed", "The card was declined.")
        assert auto_top_up.check(account.pk) is None  # the claim is kept
        assert charged() == attempt * 500
        cool_down()
    consent.refresh_from_db()
    assert (consent.enabled, consent.failures) == (False, 3)
    assert consent.last_failure == "The card was declined."
    assert auto_top_up.check(account.pk) is None
    [message] = mail.outbox
    assert "until you turn it on again" in message.body
    assert money.state(account) == (0, 0, 0)


def test_a_success_forgets_the_failures(account, consent):
    set_card(bank.DECLINED_CARD)
    auto_top_up.check(account.pk)
    set_card(bank.CARD)
    cool_down()
    assert auto_top_up.check(account.pk).is_paid
    assert AutoTopUp.objects.get().failures == 0


def test_a_bank_that_wants_to_be_asked_sends_the_user_a_link(account, consent):
    set_card(bank.ASKING_CARD)
    assert auto_top_up.check(account.pk).status == "failed"
    [message] = mail.outbox
    assert message.to == [account.user.email]
    assert "https://parley.example.org/billing/packages/" in message.body
    assert "requires you to confirm the payment" in message.body


def test_a_charge_of_unknown_fate_is_asked_about_and_charged_once(account, consent, fakepay):
    AutoTopUp.objects.update(provider="stripe", customer_ref="cus_1", payment_method_ref="pm_1")
    # Stripe is asked whether it knows the order, charges, and its answer is lost each time.
    fakepay.fault("", "cut", "cut", "cut")
    order = auto_top_up.check(account.pk)
    assert order.status == "created"
    assert len(fakepay.stripe.intents) == 1
    # As a day later.
    fakepay.stripe.replays.forget()
    poller.poll(timezone.now() + timedelta(minutes=3))
    purchases.work()
    order.refresh_from_db()
    assert order.status == "paid"
    assert len(fakepay.stripe.intents) == 1
    assert money.state(account) == (FULL, 0, 0)
    assert charged() == 500


def test_a_charge_that_stays_unknown_is_left_to_staff(account, consent, fakepay):
    AutoTopUp.objects.update(provider="stripe", customer_ref="cus_1", payment_method_ref="pm_1")
    fakepay.fault(*["500"] * 6)
    order = auto_top_up.check(account.pk)
    Order.objects.filter(pk=order.pk).update(created_at=timezone.now() - timedelta(hours=21))
    assert auto_top_up.charge(order.pk).status == "review"
    [message] = mail.outbox
    assert message.to == ["staff@example.org"]


def test_a_charge_that_fails_days_later_counts_as_a_failure(account, consent):
    order = auto_top_up.check(account.pk)
    pending = Order.objects.create(
        user=order.user, account=account, kind="auto", status="pending", client_key="auto:2",
        package=order.package, package_name="Small", credits=1, amount_minor=500, currency="USD",
        provider="sandbox", provider_order_id="sbx_slow",
    )  # fmt: skip
    SandboxPayment.objects.create(
        pk="sbx_slow", order_id=pending.pk, user_id=account.user_id, amount_minor=500,
        currency="USD", status="failed", idempotency_key="slow",
    )  # fmt: skip
    for _ in range(2):
        checkout.sync_order(pending.pk)
    assert AutoTopUp.objects.get().failures == 1


def test_stripes_declines_count_like_all_others(account, consent, fakepay):
    AutoTopUp.objects.update(provider="stripe", customer_ref="cus_1", payment_method_ref="pm_1")
    fakepay.stripe.declined_methods["pm_1"] = "insufficient_funds"
    assert auto_top_up.check(account.pk).status == "failed"
    assert AutoTopUp.objects.get().failures == 1
