"""The admin with rows as long as those of a real site: its pages fit, and no list scrolls sideways."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse
from pytest_django.live_server_helper import LiveServer
from selenium import webdriver

from billing.models import Account, Order
from chat.models import Conversation, Run
from tests.e2e.browser import Browser
from tests.e2e.conftest import DESKTOP, PHONE
from tests.support import staff_rows

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_url"),
]

# By how many pixels the page, and each list on it, are wider than their place.
EXCESS = """
return [document.documentElement, ...document.querySelectorAll(".results")].map(
  (element) => element.scrollWidth - element.clientWidth)
"""


def pages() -> Iterator[str]:
    """The pages of the admin: the list and a row of each table, and those of its own."""
    for model in admin.site._registry:
        if not model._meta.managed:  # of the queues, which are no table
            continue
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        row = model._base_manager.order_by("pk").last()
        assert row is not None, model
        yield reverse(f"{name}_changelist")
        yield reverse(f"{name}_change", args=[row.pk])
    account = Account.objects.order_by("pk").last()
    assert account is not None
    for name, key in (
        ("accounts_user_access", account.user_id),
        ("accounts_user_deactivate", account.user_id),
        ("accounts_user_history", account.user_id),
        ("billing_account_give", account.pk),
        ("billing_order_refund", Order.objects.latest("pk").pk),
        ("chat_conversation_messages", Conversation.objects.latest("pk").pk),
        ("chat_run_stop", Run.objects.latest("pk").pk),
    ):
        yield reverse(f"admin:{name}", args=[key])
    for name in ("admin:index", "chat_live_queue", "billing_report"):
        yield reverse(name)


@pytest.mark.long
def test_pages_and_lists_fit_with_long_rows(live_server: LiveServer, driver: webdriver.Chrome):
    client = Client()
    client.force_login(staff_rows.make())
    key = client.cookies["sessionid"].value
    browser = Browser(driver, live_server.url, DESKTOP)
    browser.open("/accounts/login/")
    driver.add_cookie({"name": "sessionid", "value": key})
    wide = []
    for page in pages():
        browser.resize(DESKTOP)
        browser.open(page)
        assert browser.path == page
        if max(browser.run(EXCESS)) > 0:
            wide.append(f"{page} at 1280 px")
        browser.resize(PHONE)
        # A list scrolls in its own place on a phone.
        if browser.run(EXCESS)[0] > 0:
            wide.append(f"{page} at 390 px")
    assert wide == []
