"""Processes killed while a payment provider holds back its answer: each request has one effect.

The provider has done what was asked. Its lists lack the newest objects, so that the request has to be
sent again, unchanged and with its key.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from django.utils import timezone

from billing import queue
from billing.credits import MICRO
from billing.models import Account, AutoTopUp, Order, ProviderRequest, Refund
from billing.payments import auto_top_up, checkout, poller
from tests.support import money, purchases
from tests.support.fakepay import FakePay, postman, razorpay_side, stripe_side
from tests.support.people import session_key
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("sandbox"),
    pytest.mark.timeout(120),
]

FULL = 1100 * MICRO
POLLED = timedelta(minutes=3)


@pytest.fixture
def stack(fakepay: FakePay, server_folder: Path) -> Iterator[Stack]:
    environment = {
        "AUTO_TOP_UP": "1",
        "CURRENCIES": "USD,INR",
        "STRIPE_SECRET_KEY": stripe_side.KEY,
        "STRIPE_WEBHOOK_SECRETS": postman.STRIPE_SECRET,
        "STRIPE_API_BASE": fakepay.url,
        "RAZORPAY_KEY_ID": razorpay_side.KEY_ID,
        "RAZORPAY_KEY_SECRET": razorpay_side.KEY_SECRET,
        "RAZORPAY_WEBHOOK_SECRETS": postman.RAZORPAY_SECRET,
        "RAZORPAY_API_BASE": fakepay.url,
    }
    with Stack(server_folder, provider_url=fakepay.url, environment=environment) as stack:
        yield stack


def post(stack: Stack, account: Account, path: str, **form: str) -> int:
    """Post a form as the account's user; return the status of the answer, 0 without one."""
    token = "t" * 32
    cookies = {"csrftoken": token, "sessionid": session_key(account.user)}
    with suppress(requests.ConnectionError):
        return requests.post(
            stack.base + path,
            {"csrfmiddlewaretoken": token, **form},
            cookies=cookies,
            allow_redirects=False,
            timeout=60,
        ).status_code
    return 0


def kill_amid(stack: Stack, fakepay: FakePay, account: Account, path: str, **form: str) -> None:
    """Kill the web process while the provider holds back its answer to a form's request."""
    stack.start("web")
    status: list[int] = []
    posting = threading.Thread(target=lambda: status.append(post(stack, account, path, **form)))
    posting.start()
    assert fakepay.held.wait(30)
    stack.kill("web")
    posting.join()
    assert status == [0]


def sent(fakepay: FakePay, word: str) -> list[str]:
    """Return the bodies of the requests that ask for an object."""
    return [text for method, path, text in fakepay.requests if method == "POST" and word in path]


def test_purchase_is_made_once_after_a_kill(account, fakepay, stack):
    order = purchases.order(account, provider="stripe")
    fakepay.fault("hold")
    path = f"/billing/orders/{order.pk}/pay/"
    kill_amid(stack, fakepay, account, path)
    stack.start("web")
    assert post(stack, account, path) == 302
    [session] = fakepay.stripe.sessions
    assert len(set(sent(fakepay, "sessions"))) == 1
    fakepay.stripe.pay(session)
    purchases.flush(fakepay)
    assert money.state(account) == (FULL, 0, 0)
    assert ProviderRequest.objects.get().closed_at is None
    assert money.problems() == []


def test_refund_is_made_once_after_a_kill(account, fakepay, stack, side, provider_order):
    side.pay(provider_order.provider_order_id)
    purchases.flush(fakepay)
    assert money.state(account) == (FULL, 0, 0)
    side.lists_lag = True
    fakepay.fault("", "hold")  # the list of refunds, then the refund
    path = f"/billing/orders/{provider_order.pk}/refund/"
    kill_amid(stack, fakepay, account, path, nonce="a" * 8)
    assert money.state(account) == (0, 0, 0)
    assert Refund.objects.get().status == "requested"
    poller.poll(timezone.now() + POLLED)
    purchases.work()
    [made] = side.refunds.values()
    first, again = sent(fakepay, "refund")
    assert first == again
    refund = Refund.objects.get()
    assert (refund.status, refund.provider_refund_id) == ("succeeded", made["id"])
    side.lists_lag = False
    purchases.flush(fakepay)
    assert Refund.objects.count() == 1
    assert money.state(account) == (0, 0, 0)
    assert money.problems() == []


def test_top_up_is_charged_once_after_a_kill(account, fakepay, stack, settings):
    settings.AUTO_TOP_UP = True
    auto_top_up.consent(
        user_id=account.user_id, package_id=purchases.package().pk, currency="USD",
        threshold=50 * MICRO, monthly_cap_minor=5000,
    )  # fmt: skip
    AutoTopUp.objects.update(provider="stripe", customer_ref="cus_1", payment_method_ref="pm_1")
    fakepay.stripe.lists_lag = True
    fakepay.fault("", "hold")  # the list of charges, then the charge
    stack.start("low")
    queue.enqueue_top_up(account.pk)
    assert fakepay.held.wait(30)
    stack.kill("low")
    assert Order.objects.get().status == "created"
    AutoTopUp.objects.update(payment_method_ref="pm_2")
    poller.poll(timezone.now() + POLLED)
    purchases.work()
    assert len(fakepay.stripe.intents) == 1
    first, again = sent(fakepay, "payment_intents")
    assert first == again
    fakepay.stripe.lists_lag = False
    purchases.flush(fakepay)
    checkout.sync_order(Order.objects.get().pk)
    assert Order.objects.get().status == "paid"
    assert AutoTopUp.objects.get().charged_this_month_minor == 500
    assert money.state(account) == (FULL, 0, 0)
    assert money.problems() == []
