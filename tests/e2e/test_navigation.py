"""Switching chats replaces title, top bar and main, and keeps everything else of the page."""

from __future__ import annotations

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site

pytestmark = pytest.mark.e2e

SCROLLED = "return document.scrollingElement.scrollTop"


def mark(browser: Browser) -> None:
    """Mark the document: a load of the whole page loses the mark."""
    browser.run("window.isKept = true; window.sidebar = document.querySelector('chat-sidebar')")


def is_kept(browser: Browser) -> bool:
    script = (
        "return window.isKept === true && window.sidebar === document.querySelector('chat-sidebar')"
    )
    return bool(browser.run(script))


def switch(browser: Browser, title: str) -> None:
    """Click a chat of the sidebar, and wait until it is shown."""
    browser.run(
        "[...document.querySelectorAll('chat-sidebar [data-id] a')]"
        ".find((link) => link.textContent.includes(arguments[0])).click()",
        title,
    )
    browser.wait_for_text("[data-title]", title)


def test_switching_chats_keeps_page_and_running_reply(browser: Browser):
    browser.ask("[[tokens=900 rate=0]] Long")
    browser.run("document.querySelector('.messages').scrollIntoView()")
    browser.write("kept for later")
    long = browser.conversation
    mark(browser)
    browser.click(".sidebar-new a")
    browser.wait_for_text("[data-title]", "New chat")
    assert browser.path == "/"
    assert browser.run("return document.activeElement.matches('chat-composer textarea')")

    browser.send("[[tokens=400 rate=30]] Running")
    wait_until(lambda: browser.reply, "text comes")
    running = browser.conversation

    switch(browser, "Long")
    assert browser.conversation == long
    assert browser.run("return document.title").startswith("[[tokens=900 rate=0]] Long")
    assert browser.draft == "kept for later"
    wait_until(lambda: browser.run(SCROLLED) < 200, "the reader's place")
    current = browser.texts("chat-sidebar [aria-current=page]")
    assert len(current) == 1
    assert "Long" in current[0]

    browser.driver.back()
    browser.wait_for_text("[data-title]", "Running")
    assert browser.conversation == running
    before = len(browser.reply)
    wait_until(lambda: len(browser.reply) > before, "the reply goes on")
    browser.click("[data-stop]")
    browser.wait_for_status("stopped")
    browser.driver.forward()
    browser.wait_for_text("[data-title]", "Long")
    browser.click(".sidebar-foot [data-page]")
    browser.wait_for_text(".topbar-title", "All chats")
    browser.wait_for_text(".chats-title", "Running")
    assert is_kept(browser)
    assert browser.complaints == []


def test_page_of_another_release_is_loaded_whole(browser: Browser, site: Site):
    browser.ask("[[tokens=3 rate=0]] First")
    browser.run("document.querySelector('chat-app').dataset.assets = 'of the last release'")
    mark(browser)
    browser.click(".sidebar-new a")
    wait_until(lambda: browser.path == "/" and not is_kept(browser), "a load")

    # A chat that is not found: the browser shows the page of the error.
    mark(browser)
    site.execute("UPDATE chat_conversation SET deleted_at = now()")
    browser.run("document.querySelector('chat-sidebar [data-id] a').click()")
    browser.wait_for_text("h1", "not found")
    assert not is_kept(browser)
