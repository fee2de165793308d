"""The test bank: its page, its webhooks over HTTP, and its absence without DEBUG."""

from __future__ import annotations

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
    """The buyer's browser, and an order of theirs at the bank of a site that takes connections."""
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
class TestPage:
    def test_page_names_buyer_amount_and_test_mode(self, site, account):
        client, order = site
        text = client.get(page(order)).content.decode()
        for words in ("Test bank", "No real money moves here", "USD 5.00", "Small", "Parley"):
            assert words in text
        assert account.user.email in text

    def test_page_opens_for_the_buyer_only(self, site):
        _, order = site
        stranger = Client()
        assert stranger.get(page(order)).status_code == 302
        stranger.force_login(money.open_account().user)
        assert stranger.get(page(order)).status_code == 404
        assert stranger.post(page(order), {"action": "pay"}).status_code == 404

    def test_page_is_not_found_without_debug(self, site, settings):
        client, order = site
        settings.DEBUG = False
        assert client.get(page(order)).status_code == 404
        assert client.post(page(order), {"action": "pay"}).status_code == 404
        assert not SandboxPayment.objects.filter(status="paid").exists()

    def test_paying_sends_webhooks_and_credits_once(self, site, account):
        client, order = site
        answer = client.post(page(order), {"action": "pay"})
        assert answer["Location"].endswith(reverse("billing:order_return", args=[order.pk]))
        # Two webhooks by real requests, their two events, and the receipt of the first.
        assert purchases.work() == 4
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

    def test_late_payment_arrives_after_the_buyer_left(self, site, account):
        client, order = site
        client.post(page(order), {"action": "later"})
        assert purchases.work() == 0
        assert checkout.sync_order(order.pk).status == "pending"
        poller.poll(timezone.now() + bank.LATE - timedelta(seconds=5))
        assert purchases.work() == 0
        poller.poll(timezone.now() + bank.LATE)
        assert purchases.work() == 4
        assert money.state(account) == (FULL, 0, 0)

    def test_unknown_action_is_not_found(self, site):
        client, order = site
        assert client.post(page(order), {"action": "rob"}).status_code == 404


@pytest.mark.django_db
def test_sandbox_is_no_provider_without_debug(settings):
    settings.PAYMENTS_SANDBOX = True
    settings.DEBUG = False
    assert [provider.name for provider in providers.enabled()] == []
    with pytest.raises(LookupError):
        providers.get("sandbox")
    with pytest.raises(ImproperlyConfigured):
        bank.SandboxProvider()


@pytest.mark.django_db(transaction=True)
def test_refund_is_sent_once(paid):
    refund = paid.refunds.create(amount_minor=100, initiated_by="staff")
    first = bank.SandboxProvider().refund(paid, refund)
    assert bank.SandboxProvider().refund(paid, refund) == first
    assert purchases.payment(paid).refunded_minor == 100
