"""Fixtures of all tests of payments."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from billing import queue
from billing.models import Account, Order
from billing.payments.providers import sandbox as bank
from chatproject.lib.redis.clients import sync_client
from chatproject.local.servers import ValkeyServer
from tests.support import purchases


@pytest.fixture
def begun(sandbox: None, account: Account) -> Order:
    """An order whose buyer is at the page of the test bank."""
    return purchases.begun(account)


@pytest.fixture
def uncredited(begun: Order) -> Order:
    """An order that is paid at the test bank, while our rows do not show it yet."""
    bank.pay(purchases.bank_id(begun))
    return begun


@pytest.fixture
def paid(sandbox: None, account: Account) -> Order:
    """An order that is paid and credited."""
    return purchases.paid(account)


@pytest.fixture(params=["stripe", "razorpay"])
def provider(request) -> str:
    """The name of each real provider in turn."""
    return str(request.param)


@pytest.fixture
def provider_order(sandbox: None, account: Account, fakepay, provider: str) -> Order:
    """An order whose buyer is at the page of a real provider."""
    return purchases.begun(account, provider=provider)


@pytest.fixture
def side(fakepay, provider: str):
    """The fake of the real provider, with the actions of its buyers and its staff."""
    return getattr(fakepay, provider)


@pytest.fixture
def queue_server(settings, own_valkey: ValkeyServer) -> Iterator[ValkeyServer]:
    """A Valkey of this test alone behind the queue: to be stopped and started again."""
    settings.REDIS_URL = own_valkey.url
    sync_client.cache_clear()
    queue._queue.cache_clear()
    yield own_valkey
    sync_client.cache_clear()
    queue._queue.cache_clear()
