"""The settings of a user, in several tabs, and without JavaScript."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import PHONE, Site
from tests.e2e.test_screens import LOW_CONTRAST, OVERFLOW

pytestmark = pytest.mark.e2e

LOOK = """
const style = getComputedStyle(document.documentElement);
return [getComputedStyle(document.body).backgroundColor, style.fontSize, style.colorScheme];
"""
LIGHT, DARK = "rgb(251, 250, 248)", "rgb(22, 21, 19)"


def test_theme_reaches_other_tabs_and_the_next_page(site: Site, browser: Browser):
    first = browser.tab
    second = browser.new_tab("/settings/")
    browser.go_to_tab(first)
    assert browser.run(LOOK) == [LIGHT, "16px", "light dark"]
    browser.go_to_tab(second)
    browser.click(".option:has([value=dark])")
    browser.click(".option:has([value=large])")
    browser.wait_for_text("[data-saved]", "Saved")
    assert browser.run(LOOK) == [DARK, "18px", "dark"]
    assert browser.run(LOW_CONTRAST) == []
    assert not browser.shown(".settings-save")
    browser.go_to_tab(first)
    wait_until(lambda: browser.run(LOOK) == [DARK, "18px", "dark"], "the other tab shows it")
    browser.open("/nowhere")
    assert browser.run(LOOK) == [DARK, "18px", "dark"]
    assert site.rows("SELECT theme, text_size FROM accounts_user ORDER BY id DESC LIMIT 1") == [
        ("dark", "large")
    ]
    browser.open("/billing/")
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.run("return getComputedStyle(document.body).color") == "rgb(0, 0, 0)"


def test_settings_work_without_script(open_browser: Callable[..., Browser], email: str):
    browser = open_browser(PHONE, scripting=False, dark=True)
    browser.sign_up(email)
    browser.open("/settings/")
    browser.click(".option:has([value=light])")
    browser.click(".option:has([value=small])")
    browser.click(".settings-save button")
    browser.wait_for_text(".notice", "Your settings are saved.")
    assert browser.run(LOOK) == [LIGHT, "15px", "light"]
    assert browser.run(OVERFLOW) <= 0
