"""A chat deleted in one tab disappears from every other tab, also from a busy or offline one."""

from __future__ import annotations

import time

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site

pytestmark = pytest.mark.e2e

DELETED = "This chat was deleted."
IS_OPEN = "return document.querySelector('chat-app').connection.isOpen"


def delete(browser: Browser) -> None:
    browser.click("[data-chat-menu] summary")
    browser.click("[data-chat-menu] .menu-item-danger")
    browser.click("[data-chat-menu] .button-danger")
    wait_until(lambda: browser.path == "/chats/", "the list")


def pause(browser: Browser) -> None:
    """Close the socket of this tab; `wake` opens it."""
    browser.run("document.querySelector('chat-app').connection.pause()")


def wake(browser: Browser) -> None:
    browser.run("document.querySelector('chat-app').connection.wake()")


def test_deleted_chat_disappears_from_all_tabs(browser: Browser):
    browser.ask("[[tokens=3 rate=0]] Stays")
    browser.open("/")
    browser.send("[[tokens=2000 rate=30]] Goes")
    wait_until(lambda: browser.reply, "text comes")
    chat = browser.path
    first = browser.tab
    others = [browser.new_tab(path) for path in (chat, "/", "/chats/")]

    browser.go_to_tab(first)
    delete(browser)
    # The reply that was being written ends after the deletion.
    time.sleep(1)
    for tab in (first, *others):
        browser.go_to_tab(tab)
        wait_until(lambda: len(browser.texts(".sidebar-title")) == 1, "it leaves the list")
        assert "Goes" not in browser.texts(".sidebar-title")[0]
        assert not any("Goes" in title for title in browser.texts(".chats-title"))
        assert browser.complaints == []

    browser.go_to_tab(others[0])
    browser.wait_for_text("[data-deleted]", DELETED)
    wait_until(lambda: browser.status == "stopped", "the reply has ended")
    assert not browser.shown("chat-composer, .action-edit, .action-again, [data-chat-menu]")
    browser.click("[data-deleted] a")
    wait_until(lambda: browser.path == "/", "a new chat")


def test_late_event_does_not_restore_a_deleted_chat(browser: Browser):
    browser.ask("[[tokens=3 rate=0]] Goes")
    here = browser.tab
    conversation = browser.conversation
    browser.new_tab(browser.path)
    delete(browser)
    browser.go_to_tab(here)
    browser.wait_for_text("[data-deleted]", DELETED)
    browser.run(
        "const detail = {type: 'conversation.updated', conversation: arguments[0], title: 'Late',"
        "  url: '/c/x/', updated_at: new Date().toISOString()};"
        "document.querySelector('chat-app').connection"
        "  .dispatchEvent(new CustomEvent('message', {detail}))",
        conversation,
    )
    assert browser.texts(".sidebar-title") == []


@pytest.mark.parametrize("is_reply_written", [False, True], ids=["idle", "mid_reply"])
def test_tab_that_was_offline_shows_the_deletion(browser: Browser, is_reply_written: bool):
    browser.ask("[[tokens=3 rate=0]] Goes")
    if is_reply_written:
        browser.send("[[tokens=2000 rate=30]] On")
        wait_until(lambda: browser.reply, "text comes")
    here = browser.tab
    chat = browser.path
    browser.write("half a sentence")
    pause(browser)
    browser.new_tab(chat)
    delete(browser)

    browser.go_to_tab(here)
    assert browser.shown("chat-composer")
    wake(browser)
    browser.wait_for_text("[data-deleted]", "Your text is kept for a new chat.")
    wait_until(lambda: browser.texts(".sidebar-title") == [], "it leaves the list")
    browser.click("[data-deleted] a")
    wait_until(lambda: browser.path == "/", "a new chat")
    assert browser.draft == "half a sentence"


def test_list_that_was_offline_loses_the_chat(browser: Browser):
    browser.ask("[[tokens=3 rate=0]] Stays")
    browser.open("/")
    browser.ask("[[tokens=3 rate=0]] Goes")
    chat = browser.path
    browser.open("/chats/")
    wait_until(lambda: browser.run(IS_OPEN), "the socket is open")
    here = browser.tab
    pause(browser)
    browser.new_tab(chat)
    delete(browser)

    browser.go_to_tab(here)
    assert len(browser.texts(".chats-title")) == 2
    wake(browser)
    wait_until(lambda: len(browser.texts(".chats-title")) == 1, "the row is removed")
    assert "Stays" in browser.texts(".chats-title")[0]
    assert browser.complaints == []


def test_send_into_a_deleted_chat_keeps_the_text(site: Site, browser: Browser):
    # Deleted by staff: no event.
    browser.ask("[[tokens=3 rate=0]] First")
    site.execute(
        "UPDATE chat_conversation SET deleted_at = now() WHERE id = %s", browser.conversation
    )
    browser.send("Into nowhere")
    browser.wait_for_text("[data-deleted]", DELETED)
    assert browser.own_messages == ["[[tokens=3 rate=0]] First"]
    browser.click("[data-deleted] a")
    wait_until(lambda: browser.path == "/", "a new chat")
    assert browser.draft == "Into nowhere"


def test_changed_edit_of_deleted_chat_is_kept(browser: Browser):
    browser.ask("[[tokens=3 rate=0]] First")
    edit = f"{browser.path}?edit={browser.find('.message.own').get_attribute('data-id')}"
    here = browser.tab
    browser.new_tab(browser.path)
    other = browser.tab
    browser.go_to_tab(here)
    browser.open(edit)
    browser.write(" and more")
    browser.new_tab(edit)
    unchanged = browser.tab
    browser.go_to_tab(other)
    delete(browser)

    browser.go_to_tab(here)
    browser.wait_for_text("[data-deleted]", "Your text is kept for a new chat.")
    browser.go_to_tab(unchanged)
    browser.wait_for_text("[data-deleted]", DELETED)
    assert "kept" not in browser.texts("[data-deleted]")[0]
    assert not browser.shown(".own-state, [data-edited]")


def test_back_button_does_not_show_a_deleted_chat(browser: Browser):
    browser.ask("[[tokens=3 rate=0]] Goes")
    chat = browser.path
    here = browser.tab
    browser.open("/chats/")
    browser.new_tab(chat)
    delete(browser)
    browser.go_to_tab(here)
    browser.driver.back()
    wait_until(
        lambda: browser.texts("[data-deleted]") or "Page not found" in browser.texts("h1"),
        "the page shows the deletion",
    )
