"""Shortcuts, the sheet that lists them, and the command palette."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import PHONE, Site
from tests.e2e.test_screens import LOW_CONTRAST, OVERFLOW, SMALL
from tests.support import axe

pytestmark = pytest.mark.e2e

FOCUSED = "return document.activeElement.getAttribute('role') || document.activeElement.tagName"
NAMES = "[...document.querySelectorAll('.palette-option[aria-selected=true]')]"
CHOSEN = f"return {NAMES}.map((option) => option.innerText).join()"


def press(browser: Browser, key: str, *held: str) -> None:
    """Press a key, wherever the focus is."""
    actions = ActionChains(browser.driver)
    for modifier in held:
        actions.key_down(modifier)
    actions.send_keys(key)
    for modifier in held:
        actions.key_up(modifier)
    actions.perform()


def title(browser: Browser) -> str:
    return str(browser.find("[data-title]").text)


def test_keys_act_outside_of_fields_alone(site: Site, browser: Browser):
    for text in ("[[tokens=3 rate=0]] Boats", "[[tokens=3 rate=0]] Cakes"):
        browser.open("/")
        browser.ask(text)
    newest = title(browser)
    browser.write("jn?/ec")
    assert (browser.draft, title(browser)) == ("jn?/ec", newest)
    press(browser, Keys.ESCAPE)
    assert browser.run(FOCUSED) == "BODY"
    press(browser, "j")
    wait_until(lambda: "Boats" in title(browser), "j goes to the next chat")
    press(browser, Keys.ESCAPE)
    press(browser, "k")
    wait_until(lambda: title(browser) == newest, "k goes back")
    assert browser.draft == "jn?/ec"
    press(browser, Keys.ESCAPE)
    press(browser, "?")
    browser.wait_for_text("#keys", "Copy the last reply")
    press(browser, "n")  # keys of the page behind a dialog have no effect
    press(browser, Keys.ESCAPE)
    wait_until(lambda: not browser.shown("#keys"), "Escape closes the sheet")
    press(browser, "m")
    assert browser.run(FOCUSED) == "TEXTAREA"
    press(browser, Keys.ESCAPE)
    press(browser, "e")
    wait_until(lambda: browser.shown("[data-editing]"), "e edits the last message")
    press(browser, Keys.ESCAPE)
    wait_until(lambda: not browser.shown("[data-editing]"), "Escape cancels the edit")
    browser.open("/settings/")
    browser.click("[name=single_keys]")
    browser.wait_for_text("[data-saved]", "Saved")
    browser.run("document.activeElement.blur()")
    press(browser, "n")
    press(browser, "/", Keys.CONTROL)  # not a single key
    browser.wait_for_text("#keys", "Copy the last reply")
    assert browser.path == "/settings/"
    assert site.rows("SELECT single_keys FROM accounts_user ORDER BY id DESC LIMIT 1") == [(False,)]


def test_stop_works_while_typing_and_tooltips_name_keys(browser: Browser):
    browser.send("[[tokens=400 rate=10]] Long")
    wait_until(lambda: browser.reply, "the reply begins")
    ActionChains(browser.driver).move_to_element(browser.find("[data-stop]")).perform()
    assert browser.find("[data-stop]").get_attribute("title") == "Stop (Ctrl .)"
    browser.write("next")
    press(browser, ".", Keys.CONTROL)
    browser.wait_for_status("stopped")
    assert browser.draft == "next"


def opens_palette(browser: Browser) -> bool:
    if not browser.shown("#palette"):
        press(browser, "k", Keys.CONTROL)
    return bool(browser.run(FOCUSED) == "combobox")


def test_palette_finds_chats_actions_and_pages(site: Site, browser: Browser):
    browser.ask("[[tokens=3 rate=0]] Études of a boat")
    browser.ask("[[tokens=3 rate=0]] A zeppelin")
    site.manage("shell", "-c", "from chat.conversations import search_index as i; i.index_batch()")
    chat = browser.path
    browser.open("/settings/")
    wait_until(lambda: opens_palette(browser), "the palette opens")
    browser.wait_for_text(".palette-option", "Études")
    assert axe.violations(browser.driver) == []
    press(browser, "etudes bo")
    wait_until(lambda: len(browser.texts(".palette-option")) == 1, "accents make no difference")
    press(browser, Keys.ENTER)
    wait_until(lambda: browser.path == chat, "it leads to the chat")
    browser.wait_for_text(".message.own", "zeppelin")
    # The address changes before the page's scripts listen to keys.
    wait_until(lambda: opens_palette(browser), "the palette opens")
    press(browser, "zeppelin")  # a word of a message
    wait_until(
        lambda: browser.shown(".palette-option:has([href='#i-search'])"), "messages are found"
    )
    press(browser, Keys.ESCAPE)
    press(browser, "k", Keys.CONTROL)
    press(browser, "zzz")
    browser.wait_for_text(".palette-empty", "No chat or command has these words.")
    press(browser, Keys.ENTER)
    press(browser, "k", Keys.CONTROL)
    wait_until(lambda: not browser.shown("#palette"), "the same keys close it")
    press(browser, "k", Keys.CONTROL)
    press(browser, "set")
    press(browser, Keys.ARROW_UP)  # the last one
    wait_until(lambda: "Settings" in browser.run(CHOSEN), "the arrow goes round")
    press(browser, Keys.ENTER)
    wait_until(lambda: browser.path == "/settings/", "it leads to the settings")
    assert browser.complaints == []


def test_palette_opens_from_the_phone_menu(open_browser: Callable[..., Browser], email: str):
    browser = open_browser(PHONE, dark=True)
    browser.sign_up(email)
    browser.click(".topbar [popovertarget=sidebar]")
    browser.click("chat-sidebar .account summary")
    browser.click("[data-open=palette]")
    browser.wait_for_text(".palette-option", "Settings")
    assert not browser.shown("chat-sidebar")
    assert browser.run(OVERFLOW) <= 0
    assert browser.run(SMALL, 44) == []
    assert browser.run(LOW_CONTRAST) == []
    browser.click(".palette-option:has([href='#i-settings'])")
    wait_until(lambda: browser.path.startswith("/settings/"), "a tap chooses")
