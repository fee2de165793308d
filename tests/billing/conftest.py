"""Fixtures of all tests of billing."""

from __future__ import annotations

import pytest

from billing.models import Account
from tests.support import money
from tests.support.fakepay.fixture import fakepay

__all__ = ["fakepay"]


@pytest.fixture
def account(settings) -> Account:
    """The account of a new user, with nothing in it."""
    settings.SIGNUP_CREDITS = 0
    return money.open_account()


@pytest.fixture
def sandbox(settings, valkey_url: str) -> None:
    """The test bank is open, and the queue is empty."""
    settings.DEBUG = True
    settings.PAYMENTS_SANDBOX = True
    settings.CURRENCIES = ["USD", "EUR", "INR"]
    settings.BILLING_ALERT_EMAIL = ["staff@example.org"]
    settings.SITE_URL = "https://parley.example.org"
