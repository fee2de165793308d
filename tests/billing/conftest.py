"""Fixtures of all tests of billing."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.models import User
from billing.models import Account
from tests.support import money
from tests.support.fakepay.fixture import fakepay

__all__ = ["fakepay"]


@pytest.fixture(autouse=True)
def no_signup_credits(settings) -> None:
    """New accounts are empty."""
    settings.SIGNUP_CREDITS = 0


@pytest.fixture
def account() -> Account:
    """The empty account of a new user."""
    return money.open_account()


@pytest.fixture
def boss(client: Client) -> User:
    """A superuser, signed in on `client`."""
    user = User.objects.create_superuser("boss@example.org", "correct horse battery")
    client.force_login(user)
    return user


@pytest.fixture
def sandbox(settings, valkey_url: str) -> None:
    """The test bank is open, and the queue is empty."""
    settings.DEBUG = True
    settings.PAYMENTS_SANDBOX = True
    settings.CURRENCIES = ["USD", "EUR", "INR"]
    settings.BILLING_ALERT_EMAIL = ["staff@example.org"]
    settings.SITE_URL = "https://parley.example.org"
