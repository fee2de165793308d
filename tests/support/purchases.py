"""Purchases, for tests: packages, orders at the test bank, webhooks, and the billing queue's jobs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from django.core import mail
from django.test import Client

from billing import queue
from billing.credits import MICRO
from billing.models import Account, CreditPackage, Order, PackagePrice, SandboxPayment
from billing.payments import checkout
from billing.payments.providers import sandbox as bank
from tests.support.fakepay import FakePay
from tests.support.threads import race

URLS: dict[str, Any] = {
    "return_url": "http://testserver/billing/back/",
    "cancel_url": "http://testserver/billing/away/",
}
PRICES = {"USD": 500, "EUR": 500, "INR": 50_000}  # in minor units


def package(prices: Mapping[str, int] = PRICES, **fields: Any) -> CreditPackage:
    """Create a package: 1,000 credits and a bonus of 100."""
    defaults = {"slug": uuid.uuid4().hex, "name": "Small", "credits": 1000 * MICRO}
    made = CreditPackage.objects.create(**{**defaults, "bonus": 100 * MICRO, **fields})
    for currency, amount in prices.items():
        PackagePrice.objects.create(package=made, currency=currency, amount_minor=amount)
    return made


def order(account: Account, of: CreditPackage | None = None, **fields: Any) -> Order:
    """Create an order, in rupees at Razorpay and in dollars elsewhere."""
    return checkout.create_order(
        **{
            "user_id": account.user_id,
            "package_id": (of or package()).pk,
            "currency": "INR" if fields.get("provider") == "razorpay" else "USD",
            "provider": "sandbox",
            "client_key": uuid.uuid4().hex,
            **fields,
        }
    )


def begun(account: Account, of: CreditPackage | None = None, **fields: Any) -> Order:
    """Create an order whose buyer is at the provider's page."""
    made = order(account, of, **fields)
    checkout.begin(made.pk, **URLS)
    made.refresh_from_db()
    return made


def paid(account: Account, of: CreditPackage | None = None, **fields: Any) -> Order:
    """Create an order at the test bank that is paid and credited."""
    made = begun(account, of, **fields)
    bank.pay(bank_id(made))
    return checkout.sync_order(made.pk)


def bank_id(of: Order) -> str:
    """Return the provider's id of an order that was begun."""
    assert of.provider_order_id
    return of.provider_order_id


def payment(of: Order) -> SandboxPayment:
    """Return the test bank's payment for an order."""
    return SandboxPayment.objects.get(order_id=of.pk)


def change_payment(of: Order, **fields: Any) -> None:
    """Have the test bank report other values for an order's payment."""
    SandboxPayment.objects.filter(pk=bank_id(of)).update(**fields)


def deliver(of: Order, event_type: str) -> int:
    """Deliver the bank's webhook for an order; returns the status of the answer."""
    return receive("sandbox", *bank.make_webhook(payment(of), event_type))


def post(body: bytes, headers: dict[str, str], *, provider: str = "sandbox") -> Any:
    """Post a webhook as a provider does: without session and CSRF token."""
    return Client(enforce_csrf_checks=True).post(
        f"/billing/webhooks/{provider}/",
        data=body,
        content_type="application/json",
        headers={name: value for name, value in headers.items() if name != "Content-Type"},
    )


def receive(provider: str, body: bytes, headers: dict[str, str]) -> int:
    """Take a webhook from fakepay's postman; returns the status of the answer."""
    status: int = post(body, headers, provider=provider).status_code
    return status


def flush(fakepay: FakePay) -> set[int]:
    """Deliver all waiting webhooks and run their jobs; returns the statuses of the answers."""
    statuses = set(fakepay.postman.flush(receive))
    work()
    return statuses


def work() -> int:
    """Run all jobs in the queue of billing, as a worker does; returns their number."""
    waiting = queue._queue()
    done = 0
    while waiting.count:
        job_id = waiting.pop_job_id()
        assert job_id
        job = waiting.fetch_job(job_id)
        job.perform()
        job.delete()
        done += 1
    return done


def alerts() -> list[str]:
    """Return the subjects of the mails to staff."""
    return [str(message.subject) for message in mail.outbox if message.to == ["staff@example.org"]]


def at_once(times: int, call: Callable[[], object]) -> list[Any]:
    """Call a function in several threads that start together; raises the first exception."""
    results = race([call] * times, threads=times)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
