"""Editing an earlier message: which one, what happens to the rest, and the way back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import DESKTOP, PHONE

pytestmark = pytest.mark.e2e

FIELD = "chat-composer textarea"
EDITED = "[data-edited] .own-text"


def edit(browser: Browser, number: int) -> None:
    """Press the edit button of the user's message with this number, from 0."""
    browser.run("document.querySelectorAll('.action-edit')[arguments[0]].click()", number)
    wait_until(lambda: "edit=" in browser.path, "the page to edit opens")


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_edited_message_and_its_effect_are_shown(
    open_browser: Callable[..., Browser], email: str, size: tuple[int, int]
):
    browser = open_browser(size)
    browser.sign_up(email)
    for text in ("[[tokens=300 rate=0]] First", "[[tokens=300 rate=0]] Second"):
        browser.write(text)
        browser.click("[data-send-button]")
        browser.wait_for_text(".message:nth-last-child(2) .own-text", text)
        browser.wait_for_status("done")

    edit(browser, 0)
    assert browser.texts(EDITED) == ["[[tokens=300 rate=0]] First"]
    browser.wait_for_text("[data-edited]", "You are editing this message")
    sentence = browser.texts("[data-editing] span")[0]
    assert "“[[tokens=300 rate=0]] First”" in sentence
    assert "The present version is kept." in sentence
    box = browser.run(f"return document.querySelector({EDITED!r}).getBoundingClientRect()")
    assert box["top"] > 0
    assert box["bottom"] < size[1] - 150


def test_escape_cancels_and_restores_the_draft(browser: Browser):
    browser.ask("[[tokens=3 rate=0]] First")
    browser.write("half a sentence")
    edit(browser, 0)
    assert browser.draft == "[[tokens=3 rate=0]] First"
    browser.write(" changed")

    # The first Escape closes the menu, the second one cancels.
    browser.click("[data-chat-menu] summary")
    browser.find("[data-chat-menu] summary").send_keys(Keys.ESCAPE)
    assert not browser.shown("[data-chat-menu] .menu-panel")
    assert "edit=" in browser.path
    browser.find(FIELD).send_keys(Keys.ESCAPE)
    wait_until(lambda: "edit=" not in browser.path, "the page as before")
    wait_until(lambda: browser.draft == "half a sentence", "the draft is back")
    assert browser.texts("[data-editing]") == []
    assert browser.texts(EDITED) == []
    edit(browser, 0)
    assert browser.draft == "[[tokens=3 rate=0]] First"


def test_escape_during_composition_keeps_the_edit(browser: Browser):
    browser.ask("[[tokens=3 rate=0]] First")
    edit(browser, 0)
    browser.run(
        "document.querySelector(arguments[0]).dispatchEvent(new KeyboardEvent('keydown',"
        "  {key: 'Escape', isComposing: true, bubbles: true}))",
        FIELD,
    )
    assert "edit=" in browser.path
    assert browser.shown("[data-editing]")
