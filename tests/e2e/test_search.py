"""The search of the sidebar: as one types, with the keyboard, and without a script."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site

pytestmark = pytest.mark.e2e


def test_search_opens_a_message_with_the_keyboard(browser: Browser, site: Site):
    browser.ask("[[tokens=600 rate=0]] About zugzwang")
    found = browser.conversation
    browser.click(".sidebar-new a")
    browser.wait_for_text("[data-title]", "New chat")
    browser.ask("[[tokens=3 rate=0]] Other")
    site.manage("shell", "-c", "from chat.conversations import search_index as i; i.index_batch()")
    browser.run("document.activeElement.blur()")
    browser.find("body").send_keys("/")
    field = browser.driver.switch_to.active_element
    field.send_keys("zugz")
    browser.wait_for_text(".result-snippet mark", "zugzwang")
    assert not browser.shown("[data-list]")
    field.send_keys(Keys.ARROW_DOWN)
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    browser.wait_for_text("[data-title]", "zugzwang")
    assert browser.conversation == found
    assert "?message=" in browser.path
    wait_until(
        lambda: browser.run(
            "return document.querySelector('.own').getBoundingClientRect().top > 0"
        ),
        "the message is in view",
    )
    field.send_keys(Keys.ESCAPE)
    wait_until(lambda: browser.shown("[data-list]"), "the list is back")
    assert browser.complaints == []
