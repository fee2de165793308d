"""An announcement in an open page."""

from __future__ import annotations

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site
from tests.support import axe

pytestmark = pytest.mark.e2e


def test_planned_announcement_appears_and_is_closed(site: Site, browser: Browser):
    site.execute(
        "INSERT INTO chat_announcement"
        " (text, html, level, audience, starts_at, is_dismissible, created_at) VALUES"
        " ('x', '<p>Maintenance on Sunday</p>', 'info', 'all', now() + '2 s', true, now())"
    )
    try:
        wait_until(lambda: browser.shown(".announcement"), "the announcement", patience=60)
        assert browser.texts(".announcement-text") == ["Maintenance on Sunday"]
        assert axe.violations(browser.driver) == []
        browser.click(".announcement button")
        wait_until(lambda: not browser.shown(".announcements"), "its end")
        browser.open("/")
        assert not browser.shown(".announcements")
        assert browser.complaints == []
    finally:
        site.execute("DELETE FROM chat_announcementdismissal")
        site.execute("DELETE FROM chat_announcement")
