"""The cost of a message in the chat: estimate, charge and balance."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site

pytestmark = pytest.mark.e2e

TAKE_ALL_BUT = """
from accounts.models import User
from billing.ledger import postings
from chatproject.lib.db import money_transaction
user = User.objects.get(email={email!r})
money_transaction(
    postings.adjust, account_id=user.account.pk, amount={left} - user.account.balance,
    key=user.email, actor_id=user.pk, note="for a test",
)
"""


def text_of(browser: Browser, selector: str) -> str:
    script = "return document.querySelector(arguments[0])?.textContent.trim() ?? ''"
    return str(browser.run(script, selector))


def test_estimate_cost_and_balance_are_shown(site: Site, browser: Browser, email: str):
    assert text_of(browser, "[data-balance-available]") == "100"
    browser.write("[[tokens=40 rate=0]] What does a lighthouse cost?")
    wait_until(
        lambda: text_of(browser, "chat-composer [data-cost]").startswith("About"), "an estimate"
    )
    assert "at most" in text_of(browser, "chat-composer [data-cost]")
    browser.find("chat-composer textarea").send_keys(Keys.ENTER)
    browser.wait_for_status("done")
    [(charged, balance)] = site.rows(
        "SELECT r.charged, a.balance FROM chat_run r JOIN billing_account a USING (user_id)"
        " JOIN accounts_user u ON u.id = a.user_id WHERE u.email = %s",
        email,
    )
    assert balance == 100_000_000 - charged
    assert text_of(browser, ".reply [data-cost]") == "<0.01 credits"
    wait_until(lambda: text_of(browser, "[data-balance-available]") == "99.99", "the new balance")
    assert browser.complaints == []


def test_insufficient_credits_keep_the_draft(site: Site, browser: Browser, email: str):
    site.manage("shell", "--verbosity", "0", "-c", TAKE_ALL_BUT.format(email=email, left=1_000))
    wait_until(lambda: text_of(browser, "[data-balance-available]") == "<0.01", "the new balance")
    message = "[[tokens=5 rate=0]] Hello"
    browser.send(message)
    wait_until(lambda: "Buy" in text_of(browser, "[data-error-text]"), "the refusal")
    assert "you have <0.01" in text_of(browser, "[data-error-text]")
    assert browser.shown("[data-buy]")
    assert browser.draft == message
    assert site.rows(
        "SELECT count(*) FROM chat_message m JOIN chat_conversation c ON c.id = m.conversation_id"
        " JOIN accounts_user u ON u.id = c.owner_id WHERE u.email = %s",
        email,
    ) == [(0,)]


def test_staff_grant_is_audited(site: Site, browser: Browser, email: str):
    site.execute(
        "UPDATE accounts_user SET is_staff = true, is_superuser = true WHERE email = %s", email
    )
    browser.open(f"/admin/billing/account/?q={email}")
    browser.click("#result_list tbody th a")
    browser.click("a[href*='/give/']")
    browser.find("[name=amount]").send_keys("12.5")
    browser.find("[name=reason]").send_keys("For the outage on Sunday")
    browser.click("input[type=submit].default")
    browser.wait_for_text(".messagelist", "12.5")

    browser.open(f"/admin/billing/auditrecord/?q={email}")
    browser.wait_for_text("#result_list", "For the outage on Sunday")
    browser.open("/billing/history/")
    assert text_of(browser, "[data-balance-available]") == "112.50"
    assert "For the outage on Sunday" in text_of(browser, "main")
