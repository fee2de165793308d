"""Feedback on a reply, in two tabs and a dialog."""

from __future__ import annotations

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site
from tests.support import axe

pytestmark = pytest.mark.e2e

PRESSED = "return [...document.querySelectorAll('.rating [aria-pressed=true]')].map((b) => b.title)"


def test_rating_reaches_the_other_tab_and_takes_details(site: Site, browser: Browser):
    browser.ask("[[tokens=3 rate=0]] Hello")
    first, second = browser.tab, browser.new_tab(browser.path)
    browser.go_to_tab(first)
    browser.click(".rating [name=bad]")
    wait_until(lambda: browser.shown("[data-dialog-form]"), "the dialog")
    assert axe.violations(browser.driver) == []
    browser.find("[data-dialog-form] select").send_keys("It is incomplete")
    browser.find("[data-dialog-form] textarea").send_keys("More, please")
    browser.click("[data-dialog-form] .button-primary")
    wait_until(lambda: not browser.shown("[data-dialog-form]"), "its end")
    query = (
        "SELECT rating, reason, f.text FROM chat_messagefeedback f JOIN chat_message m"
        " ON m.id = f.message_id WHERE conversation_id = %s"
    )
    assert site.rows(query, browser.conversation) == [("bad", "incomplete", "More, please")]
    assert browser.run(PRESSED) == ["Bad reply"]
    browser.go_to_tab(second)
    wait_until(lambda: browser.run(PRESSED) == ["Bad reply"], "the rating in the other tab")
    browser.click(".rating [name=unrate]")
    wait_until(lambda: browser.run(PRESSED) == [], "no rating")
    browser.go_to_tab(first)
    wait_until(lambda: browser.run(PRESSED) == [], "no rating in the first tab")
    assert browser.complaints == []
