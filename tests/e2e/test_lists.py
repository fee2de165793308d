"""The lists of chats: unread marks, pins, renaming in a row, selections and undo, in all tabs."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site

pytestmark = pytest.mark.e2e

ROW = "chat-sidebar [data-id='{}']"


def choose(browser: Browser, row: str, action: str) -> None:
    """Choose an action of the menu of a row."""
    browser.run(f'document.querySelector("{row} [data-row-menu]").click()')
    browser.click(f"#row-menu [{action}]")


def make_chats(site: Site, email: str, count: int) -> None:
    """Add chats that the pages know only after a reload."""
    site.execute(
        "INSERT INTO chat_conversation (id, owner_id, assistant_id, title, client_id, created_at, updated_at)"
        " SELECT gen_random_uuid(), accounts_user.id, (SELECT min(id) FROM chat_assistant), 'Old ' || n,"
        " 'old-' || n, now(), now() - n * interval '1 hour'"
        " FROM accounts_user, generate_series(1, %s) AS n WHERE email = %s",
        count,
        email,
    )


def test_reply_finished_in_background_is_marked_unread(browser: Browser):
    browser.ask("[[tokens=3 rate=0]] Other")
    first = browser.tab
    browser.click(".sidebar-new a")
    browser.wait_for_text("[data-title]", "New chat")
    browser.send("[[tokens=40 rate=40]] Background")
    background = browser.conversation
    browser.click(f"{ROW.format(background)} ~ li a, .sidebar-list li:last-child a")
    browser.wait_for_text("[data-title]", "Other")
    wait_until(lambda: browser.shown(f"{ROW.format(background)} .sidebar-unread"), "the mark")
    wait_until(lambda: browser.driver.title.startswith("(1) [["), "the title has the number")

    browser.new_tab(f"/c/{background}/")
    browser.go_to_tab(first)
    wait_until(lambda: not browser.driver.title.startswith("("), "it was read in another tab")
    assert not browser.shown(".sidebar-unread")
    assert browser.complaints == []


def test_row_is_renamed_pinned_and_deleted_with_undo(browser: Browser):
    browser.ask("[[tokens=3 rate=0]] First")
    chat = browser.conversation
    row = ROW.format(chat)
    here = browser.tab
    there = browser.new_tab("/chats/")
    browser.go_to_tab(here)

    choose(browser, row, "data-rename-row")
    browser.find(".row-title").send_keys("Escaped", Keys.ESCAPE)
    assert not browser.shown(".row-title")
    browser.find(f"{row} a").send_keys(Keys.F2)
    browser.find(".row-title").send_keys("Tides", Keys.ENTER)
    browser.wait_for_text("[data-title]", "Tides")
    choose(browser, row, "value=pin")
    browser.wait_for_text("[data-pins]", "Pinned")
    browser.go_to_tab(there)
    browser.wait_for_text(".chats-title", "Tides")
    browser.wait_for_text(".chats-day", "Pinned")

    browser.go_to_tab(here)
    choose(browser, row, "value=delete")
    browser.wait_for_text("[data-deleted]", "This chat was deleted.")
    wait_until(lambda: not browser.shown(row), "the row is removed")
    browser.go_to_tab(there)
    wait_until(lambda: not browser.texts(".chats-title"), "the list is empty")
    browser.go_to_tab(here)
    browser.click("[data-toast-undo]")
    wait_until(lambda: browser.shown(row) and browser.shown("chat-composer"), "all is back")
    browser.go_to_tab(there)
    browser.wait_for_text(".chats-title", "Tides")
    assert browser.complaints == []


def test_selection_with_shift_is_archived_and_restored(browser: Browser, site: Site, email: str):
    make_chats(site, email, 60)
    browser.open("/chats/")
    boxes = browser.shown("input[name=chat]")
    assert not browser.find("[data-bulk]").is_enabled()
    boxes[1].click()
    ActionChains(browser.driver).key_down(Keys.SHIFT).click(boxes[4]).key_up(Keys.SHIFT).perform()
    browser.wait_for_text("[data-count]", "Selected: 4")
    browser.click("[data-bulk][value=archive]")
    browser.wait_for_text("[data-toast-text]", "4 chats were archived.")
    wait_until(lambda: "Old 2" not in browser.texts("chat-sidebar .sidebar-title"), "live")
    browser.click("[data-toast-undo]")
    browser.wait_for_text("[data-toast-text]", "4 chats were restored.")
    wait_until(lambda: "Old 2" in browser.texts(".chats-title"), "the list has them again")

    # The sidebar loads on at its end, and stays as long when a chat is opened.
    browser.run("document.querySelector('[data-more]').scrollIntoView()")
    wait_until(
        lambda: len(browser.shown("chat-sidebar [data-list] [data-id]")) == 60, "all are listed"
    )
    assert not browser.shown("[data-more]")
    assert browser.complaints == []
