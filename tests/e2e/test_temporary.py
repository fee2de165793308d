"""A temporary chat: marked, in no list, purged when its page is closed, kept on request."""

from __future__ import annotations

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site

pytestmark = pytest.mark.e2e


def test_temporary_chat_is_closed_or_kept(site: Site, browser: Browser):
    def closed(chat: str) -> bool:
        query = "SELECT closed_at IS NOT NULL FROM chat_conversation WHERE id = %s"
        [(found,)] = site.rows(query, chat)
        return bool(found)

    browser.click("[data-temporary]")
    browser.wait_for_text("chat-temporary", "Temporary chat")
    browser.ask("[[tokens=3 rate=0]] Secret")
    chat = browser.conversation
    assert browser.texts("chat-sidebar .sidebar-title") == []
    browser.driver.refresh()
    browser.wait_for_text("chat-temporary", "Keep this chat")
    browser.click("chat-sidebar a[href='/']")  # without a load
    wait_until(lambda: closed(chat), "it is closed")
    browser.driver.back()
    browser.wait_for_text("chat-temporary", "Keep this chat")
    wait_until(lambda: not closed(chat), "it is open again")
    browser.click("[data-keep] button")
    wait_until(lambda: browser.texts("chat-sidebar .sidebar-title"), "it is in the list")
    assert not browser.shown("chat-temporary")
    browser.open("/")
    assert not closed(chat)
    assert browser.complaints == []
