"""With JavaScript off everything works by plain forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import PHONE, Site
from tests.support.fake_llm import reply_text

pytestmark = pytest.mark.e2e


@pytest.fixture
def browser(open_browser: Callable[..., Browser]) -> Browser:
    return open_browser(PHONE, scripting=False)


def test_sending_shows_a_page_that_reloads_itself_until_the_reply_is_there(
    site: Site, browser: Browser, email: str
):
    message = "[[tokens=40 rate=12]] No script"
    browser.sign_up(email)
    browser.write(message)
    browser.click("[data-send-button]")
    conversation = browser.conversation
    assert browser.find(".message.reply").get_attribute("data-status") == "pending"
    assert browser.shown("[data-stop]")
    assert not browser.shown("textarea")
    assert "reloads automatically" in browser.texts("chat-composer noscript")[0]

    wait_until(
        lambda: browser.find(".message.reply").get_attribute("data-status") == "done",
        "the page shows the finished reply by itself",
    )
    assert site.reply(conversation) == (reply_text(40, message), "done")
    assert browser.find(".own-text").text == message
    assert browser.shown("textarea")
    assert not browser.shown(".needs-script")


def test_the_list_of_chats_opens_and_stop_rename_and_delete_work(
    site: Site, browser: Browser, email: str
):
    browser.sign_up(email)
    browser.write("[[tokens=2000 rate=20]] Long")
    browser.click("[data-send-button]")
    conversation = browser.conversation
    browser.click("[data-stop]")
    wait_until(
        lambda: browser.find(".message.reply").get_attribute("data-status") == "stopped", "stopped"
    )

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
    browser.click("[data-chat-menu] details summary")
    browser.click("[data-chat-menu] .button-danger")
    wait_until(lambda: browser.path == "/chats/", "the list")
    assert "Renamed” is deleted" in browser.find(".notices").text
    assert site.rows(
        "SELECT deleted_at IS NOT NULL FROM chat_conversation WHERE id = %s", conversation
    ) == [(True,)]


def test_a_prompt_and_another_reply_by_forms(site: Site, browser: Browser, email: str):
    browser.sign_up(email)
    browser.click(".prompt")
    conversation = browser.conversation
    wait_until(
        lambda: browser.find(".message.reply").get_attribute("data-status") == "done", "a reply"
    )
    browser.click("[data-regenerate]")
    wait_until(
        lambda: (
            site.rows("SELECT count(*) FROM chat_run WHERE conversation_id = %s", conversation)
            == [(2,)]
        ),
        "another run",
    )
    wait_until(
        lambda: browser.find(".message.reply").get_attribute("data-status") == "done", "a reply"
    )
