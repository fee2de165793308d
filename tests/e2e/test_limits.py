"""Limits as a user sees them: too many tabs, too many messages, too many wrong passwords."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site, running_site, second_redis

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("limited")
    with running_site(
        folder,
        REDIS_URL=second_redis(),
        LIMIT_SOCKETS="1",
        LIMIT_MESSAGES="1/15second",
        LIMIT_SIGN_IN="2/5minute",
        EMAIL_URL="smtp://127.0.0.1:9",  # mails wait in the outbox
    ) as site:
        yield site


@pytest.mark.long
def test_one_tab_too_many_waits_and_returns(browser: Browser):
    first = browser.tab
    second = browser.new_tab("/chats/")
    browser.wait_for_text("[data-connection-text]", "You have too many tabs open.")
    browser.wait_for_text("[data-connection-text]", "Reconnecting in ")
    browser.go_to_tab(first)
    browser.run("document.querySelector('chat-app').connection.pause()")
    browser.go_to_tab(second)
    wait_until(lambda: not browser.shown("[data-connection]"), "the tab connects", 45)


def test_refused_message_stays_in_the_composer(browser: Browser):
    browser.ask("[[tokens=3 rate=0]] First")
    browser.send("[[tokens=3 rate=0]] Second")
    browser.wait_for_text("[data-error-text]", "You are sending messages too fast.")
    assert browser.draft == "[[tokens=3 rate=0]] Second"
    assert len(browser.own_messages) == 1
    wait_until(lambda: browser.find("[data-retry]").is_enabled(), "the time has passed", 25)
    browser.click("[data-retry]")
    wait_until(lambda: len(browser.own_messages) == 2, "the message is sent")
    browser.wait_for_status("done")


def test_refused_sign_in_offers_a_new_password(open_browser: Callable[..., Browser], email: str):
    browser = open_browser()
    for answer in ("is not correct", "is not correct", "Too many requests"):
        browser.open("/accounts/login/")
        browser.find("[name=login]").send_keys(email)
        browser.find("[name=password]").send_keys("wrong", Keys.ENTER)
        browser.wait_for_text("main", answer)
    assert "Try again in 5 minutes." in browser.find("main").text
    browser.click("main .button-primary")
    browser.wait_for_text("h1", "Reset your password")
