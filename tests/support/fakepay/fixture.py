"""The fixture `fakepay`; tests/billing/conftest.py offers it to all tests of billing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fakepay.postman import RAZORPAY_SECRET, STRIPE_SECRET
from tests.support.fakepay.razorpay_side import KEY_ID, KEY_SECRET
from tests.support.fakepay.server import FakePay
from tests.support.fakepay.stripe_side import KEY


@pytest.fixture
def fakepay(settings, monkeypatch) -> Iterator[FakePay]:
    """Both providers, running and configured. Webhooks wait for `fakepay.postman.flush(…)`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FakePay() as pay:
        settings.STRIPE_SECRET_KEY = KEY
        settings.STRIPE_WEBHOOK_SECRETS = [STRIPE_SECRET]
        settings.STRIPE_LIVEMODE = False
        settings.STRIPE_TAX = False
        settings.STRIPE_API_BASE = pay.url
        settings.RAZORPAY_KEY_ID = KEY_ID
        settings.RAZORPAY_KEY_SECRET = KEY_SECRET
        settings.RAZORPAY_WEBHOOK_SECRETS = [RAZORPAY_SECRET]
        settings.RAZORPAY_API_BASE = pay.url
        yield pay
