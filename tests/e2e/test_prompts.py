"""The prompt library in the message field: "/" opens it, variables are asked for, the text is inserted."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site

pytestmark = pytest.mark.e2e

FIELD = "chat-composer textarea"
SEARCH = "chat-prompts [role=combobox]"


def test_slash_inserts_prompt_with_variables(site: Site, browser: Browser):
    browser.click("chat-prompts [data-open]")
    browser.wait_for_text(".palette-empty", "You have no prompts yet")
    for title, text in (("Summary", "Sum up:"), ("Translate", "Into {{language}}: {{text}}")):
        browser.open("/prompts/")
        browser.find("[name=title]").send_keys(title)
        browser.find("textarea[name=text]").send_keys(text)
        browser.find("[name=title]").submit()
        browser.wait_for_text(".prompt-row", title)
    browser.open("/")
    browser.write("/")
    browser.find(SEARCH).send_keys("trans")
    wait_until(lambda: browser.texts("#prompt-options li") == ["Translate"], "it is found")
    browser.find(SEARCH).send_keys(Keys.ENTER)
    language, value = browser.shown("[data-fields] input")
    language.send_keys("Latin")
    value.send_keys("Hello", Keys.ENTER)
    wait_until(lambda: browser.draft == "Into Latin: Hello", "it is inserted")
    assert browser.own_messages == []
    browser.find(FIELD).clear()
    browser.write("/")
    browser.find(SEARCH).send_keys("etc", Keys.ESCAPE)
    wait_until(lambda: browser.draft == "/etc", "it is a text after all")
    browser.click("chat-prompts [data-open]")
    wait_until(lambda: len(browser.texts("#prompt-options li")) == 2, "both are offered")
    browser.find(SEARCH).send_keys(Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.ENTER)
    wait_until(lambda: browser.draft == "Sum up:\n\n/etc", "it is inserted before the text")
    assert browser.complaints == []
