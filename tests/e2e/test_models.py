"""The choice of a model: by keyboard, on a phone, without scripts, for one other reply, and live in other tabs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import DESKTOP, PHONE, Site
from tests.e2e.test_screens import LOW_CONTRAST, NARROW, OVERFLOW, SMALL

pytestmark = pytest.mark.e2e

ADD = """
INSERT INTO chat_languagemodel (provider_id, name, provider_model, context_tokens, max_output_tokens, quirks,
  description, tools, efforts, enabled, created_at)
SELECT provider_id, 'Careful thinker', provider_model, context_tokens, max_output_tokens, '{}',
  'Good for proofs and plans.', true, '["low", "high"]', true, now() FROM chat_languagemodel LIMIT 1
"""


@pytest.fixture
def thinker(site: Site) -> Iterator[int]:
    """The key of a second model, with two reasoning efforts."""
    site.execute(ADD)
    [(key,)] = site.rows("SELECT id FROM chat_languagemodel WHERE name = 'Careful thinker'")
    yield int(key)
    site.execute(
        "UPDATE chat_languagemodel SET enabled = false, name = 'old ' || id WHERE id = %s", key
    )


def models_of(site: Site, conversation: str) -> list[str]:
    query = """SELECT model_snapshot->>'name' || coalesce(' ' || (model_snapshot->>'effort'), '')
      FROM chat_run WHERE conversation_id = %s ORDER BY id"""
    return [name for (name,) in site.rows(query, conversation)]


def test_model_is_chosen_by_keyboard(site: Site, thinker: int, browser: Browser):
    browser.write("[[tokens=3 rate=0]] Hi")
    browser.find(".model-menu > summary").send_keys(Keys.ENTER)
    wait_until(lambda: len(browser.shown("[role=option]")) >= 2, "the list is loaded")
    field = browser.driver.switch_to.active_element
    assert field.get_attribute("role") == "combobox"
    field.send_keys("no such model")
    browser.wait_for_text("[data-none]", "Nothing matches")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("PROOFS plans")
    wait_until(lambda: len(browser.shown("[role=option]")) == 1, "the others are hidden")
    option = browser.find("[role=option][data-active]")
    assert field.get_attribute("aria-activedescendant") == option.get_attribute("id")
    wait_until(lambda: "credits" in option.text, "the cost of the message is shown")
    assert "per 1,000 words" in option.text
    field.send_keys(Keys.ENTER)
    assert browser.texts("[data-model-shown]") == ["Careful thinker"]
    assert browser.driver.switch_to.active_element.tag_name == "textarea"
    browser.click(".model-menu > summary")
    Select(browser.find("[name=effort]")).select_by_value("high")
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait_until(lambda: not browser.shown(".model-panel"), "Escape closes it")
    browser.find("textarea").send_keys(Keys.ENTER)
    browser.wait_for_status("done")
    chat = browser.conversation
    assert models_of(site, chat) == ["Careful thinker high"]
    browser.driver.refresh()
    assert browser.texts("[data-model-shown]") == ["Careful thinker"]

    # Escape leaves the list for the button that opened it.
    returned = "return document.activeElement === document.querySelector(arguments[0])"
    for opener in (".message.reply [form=models]", ".composer-compare > summary"):
        browser.find(opener).send_keys(Keys.ENTER)
        wait_until(lambda: browser.shown("[role=combobox]"), "the list is open")
        browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
        wait_until(partial(browser.run, returned, opener), f"the focus returns to {opener}", 5)

    # One other reply with another model leaves the choice as it is.
    browser.click(".message.reply [form=models]")
    wait_until(lambda: len(browser.shown("[role=option]")) >= 2, "the list is loaded")
    browser.run("document.querySelector('[role=option]:not([aria-selected=true])').click()")
    wait_until(lambda: len(models_of(site, chat)) == 2, "another reply is asked for")
    assert "Careful thinker" not in models_of(site, chat)[1]
    browser.wait_for_status("done")
    assert browser.texts("[data-model-shown]") == ["Careful thinker"]

    # A refusal names another model and opens the list; nothing is lost. Chromium writes refusals to its console.
    assert browser.complaints == []
    site.execute("UPDATE chat_languagemodel SET enabled = false WHERE id = %s", thinker)
    browser.send("[[tokens=3 rate=0]] Once more")
    browser.wait_for_text("[data-error-text]", "Choose another model")
    assert browser.draft == "[[tokens=3 rate=0]] Once more"
    browser.click("[data-choose]")
    wait_until(lambda: browser.shown("[role=combobox]"), "the list is open")


def test_choice_reaches_other_tabs(site: Site, thinker: int, browser: Browser):
    browser.ask("[[tokens=3 rate=0]] Hi")
    first = browser.tab
    browser.new_tab(f"/c/{browser.conversation}/")
    browser.run(
        "const select = document.querySelector('[name=model]'); select.value = arguments[0]",
        thinker,
    )
    browser.ask("[[tokens=3 rate=0]] Again")
    assert models_of(site, browser.conversation)[1] == "Careful thinker"
    browser.go_to_tab(first)
    browser.wait_for_text("[data-model-shown]", "Careful thinker")


def test_model_for_new_chats_works_without_script(
    site: Site, open_browser: Callable[..., Browser], email: str, thinker: int
):
    browser = open_browser(PHONE, scripting=False)
    browser.sign_up(email)
    browser.open("/models/")
    browser.click(f"[data-model='{thinker}'] button")
    browser.wait_for_text(".models-mark", "New chats use it")
    browser.open("/")
    assert browser.texts("[data-model-shown]") == ["Careful thinker"]
    browser.click(".model-menu > summary")
    Select(browser.find("[name=effort]")).select_by_value("low")
    browser.write("[[tokens=3 rate=0]] Hi")
    browser.click("[data-send-button]")
    browser.wait_for_status("done")
    chat = browser.conversation
    assert models_of(site, chat) == ["Careful thinker low"]
    browser.click(".model-menu > summary")
    select = Select(browser.find("[name=model]"))
    [other] = [one for one in select.options if "Careful" not in one.text][:1]
    name = other.text
    select.select_by_visible_text(name)
    Select(browser.find("[name=effort]")).select_by_value("")
    browser.write("[[tokens=3 rate=0]] Again")
    browser.click("[data-send-button]")
    browser.wait_for_status("done")
    assert models_of(site, chat)[1] == name
    browser.click(".message.reply:last-child [form=models]")
    browser.click(f"[data-model='{thinker}'] button")
    browser.wait_for_status("done")
    assert models_of(site, chat)[2] == "Careful thinker"


@pytest.mark.parametrize(
    ("size", "dark"), [(NARROW, False), (PHONE, True), (DESKTOP, False), (DESKTOP, True)]
)
def test_lists_of_models_fit(
    open_browser: Callable[..., Browser],
    email: str,
    thinker: int,
    size: tuple[int, int],
    dark: bool,
):
    browser = open_browser(size, dark=dark)
    browser.sign_up(email)
    browser.write("A question")
    browser.click(".model-menu > summary")
    wait_until(lambda: "credits" in browser.texts(".model-list")[0], "costs are shown")
    minimum = 44 if size[0] < 500 else 24
    for path in ("", "/models/"):
        if path:
            browser.open(path)
        assert browser.run(OVERFLOW) <= 0, path
        assert browser.run(SMALL, minimum) == [], path
        assert browser.run(LOW_CONTRAST) == [], path
