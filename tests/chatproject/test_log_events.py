"""Business events: each is documented, logged with ids alone, and counted."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from billing.models import CreditPackage, Refund
from billing.payments import refunds
from chatproject.lib import metrics
from tests.support import money, purchases

pytestmark = pytest.mark.django_db(transaction=True)

PROJECT = Path(__file__).resolve().parents[2]
NAMES = re.compile(r"\blog_event,?\(?\s*\"(\w+)\"")


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    return [
        (record.getMessage(), record.__dict__["fields"])
        for record in caplog.records
        if record.name == "parley.events"
    ]


@pytest.fixture(autouse=True)
def level(caplog):
    caplog.set_level(logging.INFO, "parley.events")


def test_documented_events_are_those_in_the_code():
    sources = [
        path.read_text()
        for package in ("accounts", "billing", "chat", "chatproject")
        for path in (PROJECT / package).rglob("*.py")
    ]
    named = {name for text in sources for name in NAMES.findall(text)}
    document = (PROJECT / "docs" / "operations" / "logs.md").read_text()
    section = document.split("## Business events")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == named
    assert len(named) >= 7


@pytest.mark.usefixtures("valkey_url")
def test_sign_up_is_an_event(caplog):
    before = metrics.BUSINESS_EVENTS.labels("sign_up")._value.get()
    Client().post(
        "/accounts/signup/", {"email": "new@example.org", "password1": "a-long-password-17"}
    )
    user = User.objects.get()
    assert events(caplog) == [("sign_up", {"user_id": user.pk})]
    assert metrics.BUSINESS_EVENTS.labels("sign_up")._value.get() == before + 1


@pytest.mark.usefixtures("valkey_url")
def test_purchase_and_refund_are_events(caplog, settings):
    settings.PAYMENTS_SANDBOX = settings.DEBUG = True
    account = money.open_account()
    order = purchases.paid(account)
    [(name, fields)] = events(caplog)
    assert name == "order_paid"
    assert fields == {
        "order_id": order.pk,
        "user_id": account.user_id,
        "provider": "sandbox",
        "amount_minor": order.amount_minor,
        "currency": "USD",
        "microcredits": order.credits + order.bonus,
    }
    caplog.clear()
    refund = refunds.request_refund(
        order_id=order.pk,
        amount_minor=None,
        actor_id=account.user_id,
        reason="Not needed",
        initiated_by=Refund.Initiator.STAFF,
        nonce="n1",
    )
    found = [(name, fields["status"], fields["refund_id"]) for name, fields in events(caplog)]
    assert ("refund", "succeeded", refund.pk) in found


@pytest.mark.usefixtures("valkey_url")
def test_form_of_the_admin_is_an_event(caplog):
    boss = User.objects.create_superuser("boss@example.org")
    client = Client()
    client.force_login(boss)
    package = CreditPackage.objects.create(name="Small", credits=1_000_000)
    change = reverse("admin:billing_creditpackage_change", args=[package.pk])
    client.get(change)
    client.post(change, {"name": ""})  # shown again with its errors
    assert events(caplog) == []
    deletion = reverse("admin:billing_creditpackage_delete", args=[package.pk])
    client.post(deletion, {})  # asks for confirmation first
    client.post(deletion, {"post": "yes"})
    other = CreditPackage.objects.create(name="Large", credits=2_000_000)
    client.post(
        reverse("admin:billing_creditpackage_changelist"),
        {"action": "delete_selected", "_selected_action": [other.pk]},
    )  # asks for confirmation, too
    assert CreditPackage.objects.get() == other
    [(name, fields)] = events(caplog)
    assert name == "staff_action"
    assert fields["user_id"] == boss.pk
    assert fields["view"] == "admin:billing_creditpackage_delete"
    assert fields["object"] == str(package.pk)
