"""Assistants: made and used without a script on a phone; chosen in the composer's list by keyboard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import PHONE, Site
from tests.e2e.test_screens import LOW_CONTRAST, OVERFLOW, SMALL
from tests.support.axe import violations

pytestmark = pytest.mark.e2e


def test_assistant_is_made_without_script_and_picked_with_one(
    site: Site, open_browser: Callable[..., Browser], email: str
):
    browser = open_browser(PHONE, scripting=False)
    browser.sign_up(email)
    browser.open("/assistants/")
    browser.click("[href='/assistants/new/']")
    browser.find("[name=name]").send_keys("Tutor of maths")
    browser.click(".icon-choice:has([value=cap])")
    browser.find("[name=system_prompt]").send_keys("Ask back.")
    browser.find("[name=suggestions]").send_keys("[[tokens=3 rate=0]] Fractions?")
    assert browser.run(OVERFLOW) <= 0
    assert browser.run(SMALL, 44) == []
    assert browser.run(LOW_CONTRAST) == []
    browser.click(".assistant-form [type=submit]")
    browser.wait_for_text(".notice", "is ready")
    browser.click(".prompt")
    browser.wait_for_status("done")
    name = "SELECT name FROM chat_assistant a JOIN chat_conversation c ON a.id = assistant_id WHERE c.id = %s"
    assert site.rows(name, browser.conversation) == [("Tutor of maths",)]

    # With a script: from the list below the message field, which keeps the typed text.
    browser = open_browser()
    browser.sign_in(email)
    browser.write("[[tokens=3 rate=0]] Typed before")
    browser.click(".model-menu > summary")
    wait_until(lambda: len(browser.shown(".model-assistant")) >= 2, "the list is loaded")
    field = browser.driver.switch_to.active_element
    field.send_keys("tutor maths")
    wait_until(lambda: len(browser.shown("[role=option]")) == 1, "the others are hidden")
    field.send_keys(Keys.ENTER)
    browser.wait_for_text(".start-with", "You are chatting with Tutor of maths")
    assert browser.path.startswith("/?assistant=")
    assert browser.draft == "[[tokens=3 rate=0]] Typed before"
    browser.find("textarea").send_keys(Keys.ENTER)
    browser.wait_for_status("done")
    assert site.rows(name, browser.conversation) == [("Tutor of maths",)]
    assert browser.texts(".chat-assistant bdi") == ["Tutor of maths"]
    browser.ask("[[tokens=3 rate=0]] More")
    assert browser.complaints == []


def test_instructions_of_a_chat_reach_other_tabs(site: Site, browser: Browser):
    browser.ask("[[tokens=3 rate=0]] Hi")
    browser.wait_for_status("done")
    chat = browser.conversation
    first = browser.tab
    browser.new_tab(f"/c/{chat}/")
    browser.click("[data-chat-menu] > summary")
    browser.click("[data-instructions]")
    field = browser.find("dialog[open] textarea")
    assert browser.driver.switch_to.active_element == field
    field.send_keys("Answer in verse.")
    assert violations(browser.driver) == []
    browser.click("dialog[open] .instructions-form [type=submit]")
    browser.wait_for_text("[data-toast]", "The instructions are saved")
    stored = "SELECT system_prompt FROM chat_conversation WHERE id = %s"
    assert site.rows(stored, chat) == [("Answer in verse.",)]
    browser.go_to_tab(first)
    browser.click("[data-chat-menu] > summary")
    browser.wait_for_text("[data-instructions-set]", "set")
    browser.click("[data-instructions]")
    assert browser.find("dialog[open] textarea").get_attribute("value") == "Answer in verse."
    browser.find("dialog[open] textarea").send_keys(Keys.ESCAPE)
    wait_until(lambda: not browser.shown("dialog[open]"), "Escape closes it")
    assert browser.complaints == []


def test_context_gauge_follows_replies_and_models(site: Site, browser: Browser):
    browser.ask("[[tokens=3 rate=0]] Hi")
    browser.wait_for_status("done")
    assert not browser.shown(".context")
    [(model, tokens)] = site.rows(
        "SELECT id, context_tokens FROM chat_languagemodel WHERE enabled LIMIT 1"
    )
    sizes = (
        "UPDATE chat_languagemodel SET context_tokens = %s, max_output_tokens = %s WHERE id = %s"
    )
    [(longest,)] = site.rows(
        "SELECT max_output_tokens FROM chat_languagemodel WHERE id = %s", model
    )
    try:
        site.execute(sizes, 1_024, 64, model)
        browser.driver.refresh()
        browser.ask("[[tokens=4 rate=2]] " + "word " * 480)  # longer than the delay of the gauge
        browser.wait_for_text(".context", "full")
        assert violations(browser.driver) == []
        browser.ask("[[tokens=3 rate=0]] " + "next " * 200)
        browser.wait_for_text(".context", "Older messages left out")
        line = browser.find(".messages [data-context-line]")
        assert "no longer gets the messages above" in line.text
        browser.driver.refresh()
        assert len(browser.shown(".messages [data-context-line]")) == 1  # by the server
        browser.resize(PHONE)
        assert browser.run(OVERFLOW) <= 0
    finally:
        site.execute(sizes, tokens, longest, model)
    assert browser.complaints == []
