"""An exported chat that is uploaded: it is read, and its statistics are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site
from tests.support import axe
from tests.support.chat_exports import large

pytestmark = pytest.mark.e2e


def test_uploaded_chat_shows_its_statistics(site: Site, browser: Browser, tmp_path: Path):
    site.stack.start_once("low")
    export = tmp_path / "WhatsApp Chat mit Anna.txt"
    export.write_text(large(300))
    browser.open("/documents/")
    browser.find("#document-file").send_keys(str(export))
    browser.click("[data-upload] button[type=submit]")
    statistics = "a[href$='/statistics/']"
    wait_until(lambda: browser.shown(statistics), "the chat is read")
    browser.click(statistics)
    browser.wait_for_text(".figures", "300")
    assert len(browser.shown(".figures-chart .chart-bar rect.part-1")) > 5
    assert browser.texts(".figures-people tbody th")[0] in ("Anna", "Ben", "Cem", "Dörte")
    browser.run("document.querySelector('#figures-names').value = 'letters'")
    browser.click(".figures-names button")
    wait_until(lambda: "Person A" in browser.texts(".figures-people tbody th"), "letters")
    assert axe.violations(browser.driver) == []
    assert browser.complaints == []
