"""Chats into Parley and out of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chat.transfer.test_imports import CLAUDE, chatgpt
from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site
from tests.support import axe

pytestmark = pytest.mark.e2e


def test_chats_come_in_and_go_out(site: Site, browser: Browser, tmp_path: Path):
    """An import with its report, and an export that reports its end on another page."""
    site.stack.start_once("low")
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps([chatgpt(), CLAUDE, {"chat_messages": [], "name": "Empty"}]))
    browser.open("/chats/import/")
    upload = browser.driver.find_element("css selector", "#import-upload")
    with (tmp_path / "large.json").open("wb") as large:
        large.truncate(100_000_001)
    upload.send_keys(large.name)
    assert "larger than 100 MB" in upload.get_property("validationMessage")
    browser.click(".transfer button[type=submit]")
    assert browser.find(".transfer form") is not None  # nothing was sent
    upload.send_keys(str(file))
    browser.click(".transfer button[type=submit]")
    wait_until(lambda: "Finished." in browser.run("return document.body.innerText"), "its end")
    browser.open("/chats/")
    browser.driver.find_element("link text", "Trees").click()
    wait_until(lambda: "/c/" in browser.path, "the chat")
    browser.driver.get(browser.driver.current_url.split("#")[0] + "print/")
    assert "Name a tree" in browser.run("return document.body.innerText")
    assert axe.violations(browser.driver) == []

    site.stack.pause("low")
    browser.open("/chats/export/")
    browser.click(".transfer form button")
    browser.wait_for_text(".transfer", "Waiting to begin.")
    browser.open("/")
    site.stack.go_on("low")
    wait_until(lambda: browser.shown("chat-ready"), "the notice")
    browser.click("chat-ready a")
    browser.wait_for_text(".transfer", "2 chats,")
    address = browser.find(".transfer a[download]").get_attribute("href")
    kind = browser.run(
        "return fetch(arguments[0]).then((one) => one.headers.get('content-type'))", address
    )
    assert kind == "application/zip"
    assert not browser.shown("chat-ready")
    assert browser.complaints == []
