"""Projects in the browser: a chat moves by drag and by menu, in all tabs, and new chats begin in a project."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.action_chains import ActionChains

from tests.e2e.browser import Browser, wait_until
from tests.e2e.test_lists import ROW

pytestmark = pytest.mark.e2e

PROJECTS = "chat-projects [data-project-id]:not(.sidebar-out)"


def test_chat_moves_between_projects_in_all_tabs(browser: Browser):
    browser.ask("[[tokens=3 rate=0]] First")
    chat = browser.conversation
    row = ROW.format(chat)
    here = browser.tab
    there = browser.new_tab("/projects/")
    browser.find("[name=name]").send_keys("Tides")
    browser.click(".form [type=submit]")
    browser.wait_for_text(".topbar-title", "Tides")
    browser.go_to_tab(here)
    browser.wait_for_text(f"{PROJECTS} .sidebar-title", "Tides")

    # Chromium's synthetic pointer starts a native drag.
    drag = ActionChains(browser.driver)
    drag.drag_and_drop(browser.find(f"{row} a"), browser.find(f"{PROJECTS} a")).perform()
    browser.wait_for_text("[data-toast-text]", "was moved to")
    browser.wait_for_text("[data-chat-project]", "Tides")
    browser.wait_for_text(f"{row} .row-project", "Tides")
    browser.go_to_tab(there)
    wait_until(lambda: browser.shown(f"chat-list [data-id='{chat}']"), "the project lists the chat")

    browser.go_to_tab(here)
    browser.click("[data-toast-undo]")
    wait_until(lambda: not browser.shown("[data-chat-project]"), "the chat is in no project")
    browser.run(f'document.querySelector("{row} [data-row-menu]").click()')
    browser.click("#row-menu details > summary")
    browser.click("#row-menu [data-move-items] [data-move]")
    browser.wait_for_text("[data-chat-project]", "Tides")

    browser.click("[data-chat-project]")
    browser.wait_for_text(".topbar-title", "Tides")
    browser.click(".project-head a")
    browser.wait_for_text("[data-title]", "New chat")
    browser.ask("[[tokens=3 rate=0]] Second")
    browser.wait_for_text("[data-chat-project]", "Tides")

    browser.go_to_tab(there)
    wait_until(lambda: len(browser.shown("chat-list [data-id]")) == 2, "both chats")
    browser.click(".project-settings > summary")
    browser.click(".project-delete > summary")
    browser.click(".project-delete [type=submit]")
    browser.wait_for_text(".notices", "Its chats are kept.")
    browser.go_to_tab(here)
    wait_until(lambda: not browser.shown(PROJECTS), "the project is removed")
    wait_until(lambda: not browser.shown(".row-project"), "its marks are removed")
    browser.go_to_tab(there)
    browser.click("[name=undo]")
    browser.go_to_tab(here)
    wait_until(lambda: len(browser.shown(".sidebar-list .row-project")) == 2, "all is back")

    # The pages about credits keep the sidebar and the socket.
    browser.run("document.querySelector('chat-sidebar').dataset.kept = ''")
    browser.click(".account > summary")
    browser.click(".account [href='/billing/usage/']")
    browser.wait_for_text(".tabs [aria-current]", "Usage")
    browser.click(".tabs [href='/billing/']")
    browser.wait_for_text(".sum-main", "credits available")
    assert browser.shown("chat-sidebar[data-kept]")
    browser.click(f"{row} a")
    browser.wait_for_text("[data-chat-project]", "Tides")
    assert browser.complaints == []
