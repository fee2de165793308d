"""The style guide: it lists every style sheet, and its components pass axe in both themes and directions."""

from __future__ import annotations

import pytest

from tests.e2e.browser import Browser
from tests.e2e.conftest import Site
from tests.e2e.test_screens import OVERFLOW
from tests.support import axe
from tests.support.stack import PROJECT

pytestmark = pytest.mark.e2e

# Of no screen for users: the admin's, paper, the reference for programs, and the frame of the style guide.
NO_SECTION = {
    *("admin", "admin_billing", "admin_providers"),
    *("api_reference", "paper", "print", "styleguide"),
}
SIZES = {"desktop": (1280, 900), "narrow": (320, 640)}


def test_every_component_is_listed_and_accessible(site: Site, browser: Browser, email: str):
    browser.open("/styleguide/")
    browser.wait_for_text("h1", "Access denied")
    assert len(browser.complaints) == 1  # of this status, 403
    site.execute("UPDATE accounts_user SET is_staff = true WHERE email = %s", email)
    browser.open("/styleguide/")
    sheets = {path.stem for path in (PROJECT / "static/css").glob("*.css")}
    for panel in ("light-ltr", "light-rtl", "dark-ltr", "dark-rtl"):
        names = browser.run(
            "return [...document.getElementById(arguments[0]).parentElement"
            ".querySelectorAll('[data-sheet]')].map(({dataset}) => dataset.sheet)",
            panel,
        )
        assert sorted(names) == sorted(sheets - NO_SECTION), panel
    for name, size in SIZES.items():
        browser.resize(size)
        assert browser.run(OVERFLOW) <= 0, name
    assert axe.violations(browser.driver) == []
    assert browser.complaints == []
