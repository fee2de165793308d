"""Purchases, for tests: packages, orders at the test bank, webhooks, and the billing queue's jobs."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

from django.db import connection
from django.test import Client

from billing import queue
from billing.credits import MICRO
from billing.models import Account, CreditPackage, Order, PackagePrice, SandboxPayment
from billing.payments import checkout
from billing.payments.providers import sandbox as bank

T = TypeVar("T")

RETURN_URL = "http://testserver/billing/back/"
CANCEL_URL = "http://testserver/billing/away/"


def package(**fields: Any) -> CreditPackage:
    """Create a package: 1,000 credits and a bonus of 100 for USD 5.00, EUR 5.00 or INR 500.00."""
    made = CreditPackage.objects.create(
        **{
            "slug": uuid.uuid4().hex,
            "name": "Small",
            "credits": 1000 * MICRO,
            "bonus": 100 * MICRO,
            **fields,
        }
    )
    for currency, amount in (("USD", 500), ("EUR", 500), ("INR", 50_000)):
        PackagePrice.objects.create(package=made, currency=currency, amount_minor=amount)
    return made


def order(account: Account, of: CreditPackage | None = None, **fields: Any) -> Order:
    """Create an order."""
    return checkout.create_order(
        **{
            "user_id": account.user_id,
            "package_id": (of or package()).pk,
            "currency": "USD",
            "provider": "sandbox",
            "client_key": uuid.uuid4().hex,
            **fields,
        }
    )


def begun(account: Account, of: CreditPackage | None = None, **fields: Any) -> Order:
    """Create an order whose buyer is at the provider's page."""
    made = order(account, of, **fields)
    checkout.begin(made.pk, return_url=RETURN_URL, cancel_url=CANCEL_URL)
    made.refresh_from_db()
    return made


def paid(account: Account, of: CreditPackage | None = None, **fields: Any) -> Order:
    """Create an order at the test bank that is paid and credited."""
    made = begun(account, of, **fields)
    bank.pay(there(made))
    return checkout.sync_order(made.pk)


def there(of: Order) -> str:
    """The provider's id of an order that was begun."""
    assert of.provider_order_id
    return of.provider_order_id


def payment(of: Order) -> SandboxPayment:
    """The test bank's payment for an order."""
    return SandboxPayment.objects.get(order_id=of.pk)


def deliver(of: Order, event_type: str, client: Client | None = None) -> int:
    """Deliver the bank's webhook for an order; returns the status of the answer."""
    body, headers = bank.make_webhook(payment(of), event_type)
    status: int = post(body, headers, client=client).status_code
    return status


def post(
    body: bytes,
    headers: dict[str, str],
    *,
    provider: str = "sandbox",
    client: Client | None = None,
) -> Any:
    """Post a webhook as a provider does: without session and token."""
    return (client or Client(enforce_csrf_checks=True)).post(
        f"/billing/webhooks/{provider}/",
        data=body,
        content_type="application/json",
        headers=headers,
    )


def receive(provider: str, body: bytes, headers: dict[str, str]) -> int:
    """The receiver for fakepay's postman."""
    kept = {name: value for name, value in headers.items() if name != "Content-Type"}
    status: int = post(body, kept, provider=provider).status_code
    return status


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


def at_once(times: int, call: Callable[[], T]) -> list[T]:
    """Call a function in so many threads that begin together. Raises an exception of one of them."""
    barrier = Barrier(times)

    def run() -> T:
        barrier.wait()
        try:
            return call()
        finally:
            connection.close()

    with ThreadPoolExecutor(times) as pool:
        return [future.result() for future in [pool.submit(run) for _ in range(times)]]
