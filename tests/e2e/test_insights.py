"""Insights in the browser: a chat is uploaded, a category is bought, its six cards arrive, one charge."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site
from tests.support.documents import CHAT

pytestmark = pytest.mark.e2e


def test_bought_cards_arrive_for_one_charge(
    site: Site, browser: Browser, email: str, tmp_path: Path
):
    site.stack.start_once("low")
    export = tmp_path / "WhatsApp Chat.txt"
    export.write_text(f"{CHAT}[05.04.24, 18:01:00] Ben: [[json=valid rate=0]]\n")
    browser.open("/documents/")
    browser.find("[name=file]").send_keys(str(export))
    browser.click("[data-upload] [type=submit]")
    wait_until(lambda: browser.shown(".document-offers a"), "the chat is read", 90)
    browser.click(".document-offers a")
    wait_until(lambda: browser.shown(".insight-buy"), "the offer is shown")
    browser.click(".insight-buy [type=submit]")
    wait_until(lambda: browser.shown("chat-insights"), "the cards are shown")
    browser.wait_for_text("[data-part=state]", "6 of 6 are ready")
    browser.wait_for_text("[data-part=state]", "Charged: 30 credits, for 6 of 6")
    assert len(browser.shown(".insight-card .insight-part, .insight-card .insights-note")) >= 6
    charges = site.rows(
        "SELECT e.amount, e.balance_after FROM billing_ledgerentry e"
        " JOIN billing_account a ON a.id = e.account_id JOIN accounts_user u ON u.id = a.user_id"
        " WHERE u.email = %s AND e.kind = 'usage'",
        email,
    )
    assert charges == [(-30_000_000, 70_000_000)]
    wait_until(lambda: browser.texts("[data-balance-available]") == ["70"], "the new balance")
    assert browser.complaints == []
