"""The fake payment providers: their pages, signatures and faults."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import urlencode

import pytest

from billing.payments.providers import razorpay, stripe
from billing.payments.providers.base import BadSignature
from tests.support.fakepay import FakePay, Switches, unsaved
from tests.support.fakepay.fixture import fakepay as fakepay

pytestmark = pytest.mark.django_db

PROVIDERS: dict[str, Any] = {
    "stripe": stripe.StripeProvider(),
    "razorpay": razorpay.RazorpayProvider(),
}
URLS = {"return_url": "http://localhost/return", "cancel_url": "http://localhost/cancel"}


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def http_error_303(self, request, answer, code, message, headers):
        return answer


def ask(url: str, **fields: str) -> tuple[str, str]:
    """Return a page, and where it redirects. Fields are posted."""
    data = urlencode(fields).encode() if fields else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect())
    with opener.open(url, data, timeout=10) as answer:
        return answer.read().decode(), answer.headers.get("Location") or ""


def opened(provider: str) -> tuple[str, str, dict[str, str]]:
    made = PROVIDERS[provider].create_checkout(unsaved.order(provider), **URLS)
    return made.provider_order_id, made.url, dict(made.fields)


def received(fakepay: FakePay, answers: dict[int, int] | None = None) -> list[tuple[str, str]]:
    """Deliver all waiting webhooks; returns the type and the verdict of each.

    `answers` are the statuses to answer with, by the number of the delivery.
    """
    seen: list[tuple[str, str]] = []

    def receive(provider: str, body: bytes, headers: dict[str, str]) -> int:
        event = json.loads(body)
        try:
            PROVIDERS[provider].verify(body, headers)
            verdict = "good"
        except BadSignature:
            verdict = "bad"
        seen.append((event.get("type") or event["event"], verdict))
        return (answers or {}).get(len(seen), 200 if verdict == "good" else 400)

    fakepay.postman.flush(receive)
    return seen


# --- The page ---------------------------------------------------------------------------------


def test_stripe_page_takes_money_and_leads_back(fakepay):
    session, url, _ = opened("stripe")
    page, _ = ask(url)
    for button in ("Pay", "Fail", "Pay late", "Close"):
        assert f">{button}</button>" in page
    assert ask(url, button="close")[1] == URLS["cancel_url"]
    assert "declined" in ask(url, button="fail")[0]
    assert ask(url, button="pay")[1] == URLS["return_url"]
    assert fakepay.stripe.sessions[session]["payment_status"] == "paid"


def test_razorpay_page_posts_the_result_back(fakepay):
    order_id, url, fields = opened("razorpay")
    page, _ = ask(url, **fields)
    [action] = re.findall(r'action="([^"]+)"', page)
    hidden = dict(re.findall(r'name="(\w+_url)" value="([^"]*)">', page))
    assert hidden == {"callback_url": URLS["return_url"], "cancel_url": URLS["cancel_url"]}
    assert ask(fakepay.url + action, button="close", **hidden)[1] == URLS["cancel_url"]
    assert "error[code]" in ask(fakepay.url + action, button="fail", **hidden)[0]
    back, _ = ask(fakepay.url + action, button="pay", **hidden)
    assert f'action="{URLS["return_url"]}"' in back
    returned = dict(re.findall(r'name="(\w+)" value="([^"]*)">', back))
    assert returned["razorpay_order_id"] == order_id
    assert returned["razorpay_payment_id"]


def test_late_payment_settles_after_the_set_time(fakepay):
    fakepay.settle_late_after = 0.01
    session, url, _ = opened("stripe")
    ask(url, button="late")
    for _ in range(1000):
        if "checkout.session.async_payment_succeeded" in fakepay.postman.waiting:
            break
        fakepay.stopped.wait(0.01)
    assert fakepay.stripe.sessions[session]["payment_status"] == "paid"


# --- Webhooks ---------------------------------------------------------------------------------


@pytest.fixture(params=PROVIDERS)
def provider(request, fakepay):
    """A provider with two waiting webhooks about one payment."""
    order_id, _, _ = opened(request.param)
    getattr(fakepay, request.param).pay(order_id)
    assert len(fakepay.postman.waiting) == 2
    return request.param


def test_webhooks_are_signed_as_the_libraries_verify(fakepay, provider):
    assert [verdict for _, verdict in received(fakepay)] == ["good", "good"]
    assert fakepay.postman.waiting == []


def test_webhooks_come_in_copies_and_shuffled(fakepay, provider):
    kinds = fakepay.postman.waiting
    fakepay.postman.switches = Switches(copies=3, shuffle=True)
    assert Counter(received(fakepay)) == Counter({(kind, "good"): 3 for kind in kinds})


def test_webhooks_can_be_lost(fakepay, provider):
    fakepay.postman.switches = Switches(drop=True)
    assert received(fakepay) == []


def test_refused_webhook_is_delivered_again(fakepay, provider):
    first, second = fakepay.postman.waiting
    seen = received(fakepay, answers={1: 500, 2: 503})
    assert [kind for kind, _ in seen] == [first, first, first, second]


def test_webhook_with_a_lost_answer_is_repeated(fakepay, provider):
    first, second = fakepay.postman.waiting
    fakepay.postman.switches = Switches(lose_first_answer=True)
    assert [kind for kind, _ in received(fakepay)] == [first, first, second, second]


@pytest.mark.parametrize(
    ("provider", "fault"),
    [
        ("stripe", "wrong_signature"),
        ("stripe", "tamper"),
        ("stripe", "old_timestamp"),
        ("stripe", "lie_livemode"),
        ("razorpay", "wrong_signature"),
        ("razorpay", "tamper"),
    ],
    indirect=["provider"],
)
def test_spoilt_webhooks_are_refused(fakepay, provider, fault):
    fakepay.postman.switches = Switches(retries=0)
    setattr(fakepay.postman.switches, fault, True)
    assert [verdict for _, verdict in received(fakepay)] == ["bad", "bad"]


def test_lies_are_signed(fakepay, provider):
    fakepay.postman.switches = Switches(lie_amount=1, lie_user="999")
    assert [verdict for _, verdict in received(fakepay)] == ["good", "good"]
    text = fakepay.postman.deliveries[0].body.decode()
    assert '"user_id":"999"' in text
    assert ":500" not in text


def test_webhooks_are_sent_over_http(fakepay):
    arrived = threading.Semaphore(0)

    class Site(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            PROVIDERS["stripe"].verify(body, dict(self.headers))
            self.send_response(200)
            self.end_headers()
            arrived.release()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Site) as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.02,))
        thread.start()
        fakepay.postman.urls["stripe"] = f"http://127.0.0.1:{site.server_address[1]}/hook"
        fakepay.postman.start()
        fakepay.stripe.pay(opened("stripe")[0])
        assert arrived.acquire(timeout=10)
        assert arrived.acquire(timeout=10)
        site.shutdown()
        thread.join()
