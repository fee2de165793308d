"""The next message: written, edited and removed during a reply, on all devices, and sent when it has ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import PHONE, Site

pytestmark = pytest.mark.e2e

FIELD = "chat-composer textarea"
NEXT = "chat-next:not([data-sending]) [data-text]"  # as the server has it
QUICK = "[[tokens=3 rate=0]]"


def begin(site: Site, browser: Browser, key: str) -> None:
    """Send a message whose reply is held until its key is released."""
    browser.write(f"{QUICK[:-2]} hold=1 key={key}]] First")
    browser.click("[data-send-button]")
    wait_until(lambda: site.provider.counts["held"] == 1, "the reply has begun")


def test_next_message_is_edited_and_sent(site: Site, browser: Browser):
    begin(site, browser, "next")
    browser.conversation  # noqa: B018 # waits for the address
    first, address = browser.tab, browser.path
    browser.send(f"{QUICK} Second")
    browser.wait_for_text(NEXT, "Second")
    assert not browser.texts("[data-error-text]")
    other = browser.new_tab(address)
    browser.wait_for_text(NEXT, "Second")
    browser.send("and more")
    browser.wait_for_text(NEXT, f"{QUICK} Second\n\nand more")
    wait_until(lambda: not browser.shown("chat-next[data-sending]"), "the server has it")
    browser.find(FIELD).send_keys(Keys.ARROW_UP)
    wait_until(lambda: browser.draft == f"{QUICK} Second\n\nand more", "it is edited")
    assert browser.texts(NEXT) == []
    browser.write(" text")
    browser.click("[data-send-button]")
    browser.go_to_tab(first)
    browser.wait_for_text(NEXT, "and more text")
    browser.open("/")  # no page of the chat follows it
    browser.go_to_tab(other)
    browser.open("/")
    site.provider.release("next")
    browser.open(address)
    wait_until(lambda: len(browser.own_messages) == 2, "it is sent")
    browser.wait_for_status("done")
    assert browser.own_messages[1] == f"{QUICK} Second\n\nand more text"
    wait_until(lambda: browser.texts(NEXT) == [], "it waits no longer")
    assert browser.draft == ""  # that of the text which was taken back
    assert browser.complaints == []


def test_stopped_reply_asks_before_next_message(site: Site, browser: Browser):
    begin(site, browser, "asks")
    browser.send(f"{QUICK} Second")
    browser.wait_for_text(NEXT, "Second")
    browser.click("[data-stop]")
    browser.wait_for_status("stopped")
    browser.wait_for_text(
        "[data-problem]", "The reply was stopped. Your next message was not sent."
    )
    browser.find(FIELD).send_keys(Keys.ARROW_UP)
    wait_until(lambda: "Second" in browser.draft, "it is edited")
    browser.find(FIELD).send_keys(Keys.ENTER)
    browser.wait_for_status("done")
    assert len(browser.own_messages) == 2
    browser.find(FIELD).send_keys(Keys.ARROW_UP)
    wait_until(lambda: "edit=" in browser.path, "the last own message is edited")
    assert "Second" in browser.draft
    assert browser.complaints == []


def test_next_message_works_without_script(
    site: Site, open_browser: Callable[..., Browser], email: str
):
    browser = open_browser(PHONE, scripting=False)
    browser.sign_up(email)
    begin(site, browser, "plain")
    browser.click("noscript a")
    browser.write(f"{QUICK} Second")
    browser.click("[data-send-button]")
    browser.wait_for_text(NEXT, "Second")
    browser.click("chat-next [value=edit]")
    browser.click("noscript a")
    wait_until(lambda: browser.draft == f"{QUICK} Second", "it is edited")
    browser.click("[data-send-button]")
    browser.wait_for_text(NEXT, "Second")
    site.provider.release("plain")
    wait_until(lambda: len(browser.own_messages) == 2, "it is sent")
    browser.wait_for_status("done")
    assert browser.draft == ""
