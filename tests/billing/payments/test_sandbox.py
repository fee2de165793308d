from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing.credits import MICRO
from billing.models import Order, SandboxPayment
from billing.payments import checkout, poller, providers
from billing.payments.providers import sandbox as bank
from tests.support import money, purchases

FULL = 1100 * MICRO


@pytest.fixture
def site(sandbox, live_server, account) -> tuple[Client, Order]:
    """The buyer's browser, and an order of theirs at the bank of a site that really listens."""
    client = Client()
    client.force_login(account.user)
    made = purchases.order(account)
    checkout.begin(
        made.pk,
        return_url=live_server.url + reverse("billing:order_return", args=[made.pk]),
        cancel_url=live_server.url + reverse("billing:order", args=[made.pk]),
    )
    made.refresh_from_db()
    return client, made


def page(order: Order) -> str:
    return reverse("billing:sandbox", args=[order.provider_order_id])


@pytest.mark.django_db(transaction=True)
class TestThePage:
    def test_it_says_what_is_paid_to_whom_and_that_no_money_moves(self, site, account):
        client, order = site
        text = client.get(page(order)).content.decode()
        for words in ("Test bank", "No real money moves here", "USD 5.00", "Small", "Parley"):
            assert words in text
        assert account.user.email in text

    def test_it_is_the_buyers_own(self, site):
        _, order = site
        stranger = Client()
        assert stranger.get(page(order)).status_code == 302
        stranger.force_login(money.open_account().user)
        assert stranger.get(page(order)).status_code == 404
        assert stranger.post(page(order), {"action": "pay"}).status_code == 404

    def test_it_is_gone_without_debug(self, site, settings):
        client, order = site
        settings.DEBUG = False
        assert client.get(page(order)).status_code == 404
        assert client.post(page(order), {"action": "pay"}).status_code == 404
        assert not SandboxPayment.objects.filter(status="paid").exists()

    def test_paying_reports_by_http_and_credits_once(self, site, account):
        client, order = site
        answer = client.post(page(order), {"action": "pay"})
        assert answer["Location"].endswith(reverse("billing:order_return", args=[order.pk]))
        # Two webhooks by real requests, their two events, and the receipt of the first.
        assert purchases.work() == 5
        order.refresh_from_db()
        assert order.status == "paid"
        assert order.events.count() == 2
        assert money.state(account) == (FULL, 0, 0)
        assert client.post(page(order), {"action": "pay"}).status_code == 302
        assert purchases.work() == 0
        assert "This payment is complete" in client.get(page(order)).content.decode()

    @pytest.mark.parametrize(
        ("action", "status", "back"),
        [("decline", "failed", "billing:order_return"), ("cancel", "canceled", "billing:order")],
    )
    def test_declining_and_cancelling_give_nothing(self, site, account, action, status, back):
        client, order = site
        answer = client.post(page(order), {"action": action})
        assert answer["Location"].endswith(reverse(back, args=[order.pk]))
        purchases.work()
        order.refresh_from_db()
        assert order.status == status
        assert money.state(account) == (0, 0, 0)

    def test_a_late_payment_arrives_after_the_buyer_has_left(self, site, account):
        client, order = site
        client.post(page(order), {"action": "later"})
        assert purchases.work() == 0
        assert checkout.sync_order(order.pk).status == "pending"
        poller.poll(timezone.now() + bank.LATE - timedelta(seconds=5))
        assert purchases.work() == 0
        poller.poll(timezone.now() + bank.LATE)
        assert purchases.work() == 5
        assert money.state(account) == (FULL, 0, 0)

    def test_another_button_is_not_found(self, site):
        client, order = site
        assert client.post(page(order), {"action": "rob"}).status_code == 404


@pytest.mark.django_db
def test_it_is_no_provider_without_debug(settings):
    settings.PAYMENTS_SANDBOX = True
    settings.DEBUG = False
    assert [provider.name for provider in providers.enabled()] == []
    with pytest.raises(LookupError):
        providers.get("sandbox")
    with pytest.raises(ImproperlyConfigured):
        bank.SandboxProvider()


@pytest.mark.parametrize(("debug", "sandbox", "starts"), [("0", "1", False), ("1", "1", True)])
def test_a_site_does_not_start_with_it_unless_debug_is_on(debug, sandbox, starts):
    environment = os.environ | {"DEBUG": debug, "PAYMENTS_SANDBOX": sandbox}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from chatproject import settings; print(settings.PAYMENTS_SANDBOX)",
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) is starts
    assert starts or "PAYMENTS_SANDBOX is for development" in done.stderr


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("sandbox")
def test_saved_refunds_are_sent_once(account):
    order = purchases.paid(account)
    refund = order.refunds.create(amount_minor=100, initiated_by="staff")
    first = bank.SandboxProvider().refund(order, refund)
    assert bank.SandboxProvider().refund(order, refund) == first
    assert purchases.payment(order).refunded_minor == 100
