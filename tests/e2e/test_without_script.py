"""With JavaScript off everything works by plain forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import PHONE, Site
from tests.support.fake_llm import reply_text

pytestmark = pytest.mark.e2e


@pytest.fixture
def browser(open_browser: Callable[..., Browser], email: str) -> Browser:
    browser = open_browser(PHONE, scripting=False)
    browser.sign_up(email)
    return browser


def test_page_reloads_until_the_reply_is_complete(site: Site, browser: Browser):
    message = "[[tokens=40 rate=12]] No script"
    browser.write(message)
    browser.click("[data-send-button]")
    conversation = browser.conversation
    assert browser.status == "pending"
    assert browser.shown("[data-stop]")
    assert not browser.shown("textarea")
    assert "reloads automatically" in browser.texts("chat-composer noscript")[0]

    browser.wait_for_status("done")
    assert site.reply(conversation) == (reply_text(40, message), "done")
    assert browser.find(".own-text").text == message
    assert browser.shown("textarea")
    assert not browser.shown(".needs-script")


def test_stop_rename_and_delete_work(site: Site, browser: Browser):
    browser.write("[[tokens=2000 rate=20]] Long")
    browser.click("[data-send-button]")
    conversation = browser.conversation
    browser.click("[data-stop]")
    browser.wait_for_status("stopped")

    browser.click("[data-chat-menu] summary")
    field = browser.find("[data-rename]")
    field.clear()
    field.send_keys("Renamed")
    browser.click("[data-chat-menu] form button")
    wait_until(lambda: browser.find("h1").text == "Renamed", "renamed")

    browser.click(".topbar [popovertarget=sidebar]")
    wait_until(lambda: browser.shown("chat-sidebar"), "the sheet opens")
    assert browser.find("chat-sidebar .sidebar-title").text == "Renamed"
    browser.click("chat-sidebar .sidebar-head button")
    wait_until(lambda: not browser.shown("chat-sidebar"), "the sheet closes")

    browser.click("[data-chat-menu] summary")
    browser.click("[data-chat-menu] .menu-item-danger")
    browser.click("[data-chat-menu] .button-danger")
    wait_until(lambda: browser.path == "/chats/", "the list")
    assert "was deleted. Removed for good after" in browser.find(".notices").text
    assert site.rows(
        "SELECT deleted_at IS NOT NULL FROM chat_conversation WHERE id = %s", conversation
    ) == [(True,)]
    browser.click(".notices button")
    wait_until(lambda: browser.texts(".chats-title") == ["Renamed"], "the deletion is undone")
    browser.open("/search/?q=renam")
    wait_until(lambda: browser.texts(".result-title") == ["Renamed"], "it is found")


def test_prompt_and_regeneration_work(site: Site, browser: Browser):
    browser.click(".prompt")
    conversation = browser.conversation
    browser.wait_for_status("done")
    browser.click("[data-regenerate]")
    wait_until(lambda: site.count_runs(conversation) == 2, "another run")
    browser.wait_for_status("done")
