"""Losing the connection: said after a moment, made good without anybody's help."""

from __future__ import annotations

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site
from tests.stub import reply_text

pytestmark = pytest.mark.e2e


def test_a_killed_web_server_is_told_of_and_the_reply_is_whole_afterwards(
    site: Site, browser: Browser, email: str
):
    message = "[[tokens=150 rate=15]] Through a storm"
    browser.sign_up(email)
    browser.run("window.isSamePage = true")
    browser.send(message)
    wait_until(lambda: len(browser.reply) > 20, "text comes")

    site.stack.kill("web")
    browser.wait_for_text("[data-connection]", "Connection lost. Reconnecting…")
    seen = browser.reply
    site.stack.start("web")
    wait_until(lambda: not browser.shown("[data-connection]"), "it is connected again")
    browser.wait_for_status("done")

    assert browser.run("return window.isSamePage")
    assert browser.reply.split()[:3] == seen.split()[:3]
    assert site.reply(browser.conversation) == (reply_text(150, message), "done")


def test_what_happened_elsewhere_meanwhile_is_there_after_reconnecting(
    site: Site, browser: Browser, email: str
):
    browser.sign_up(email)
    browser.send("[[tokens=3 rate=0]] One")
    browser.wait_for_status("done")
    here = browser.tab
    conversation = browser.conversation

    # This tab hears nothing for a while.
    browser.run("document.querySelector('chat-app').connection.pause()")
    browser.new_tab(f"/c/{conversation}/")
    browser.send("[[tokens=4 rate=0]] Two")
    wait_until(lambda: len(browser.own_messages) == 2, "it is sent")
    browser.wait_for_status("done")

    browser.go_to_tab(here)
    assert len(browser.own_messages) == 1
    browser.run("document.querySelector('chat-app').connection.wake()")
    wait_until(lambda: len(browser.own_messages) == 2, "it catches up")
    browser.wait_for_status("done")


def test_a_message_that_is_sent_while_the_server_is_away_arrives_once(
    site: Site, browser: Browser, email: str
):
    browser.sign_up(email)
    browser.send("[[tokens=3 rate=0]] One")
    browser.wait_for_status("done")
    conversation = browser.conversation
    # As if the connection broke in the very moment: the frame is kept, and nothing comes back.
    browser.run(
        "const {connection} = document.querySelector('chat-app');connection.send = () => true"
    )
    browser.send("[[tokens=3 rate=0]] Two")
    browser.wait_for_text(".own-state", "Sending")
    assert len(browser.own_messages) == 2
    assert site.rows("SELECT count(*) FROM chat_run WHERE conversation_id = %s", conversation) == [
        (1,)
    ]

    browser.driver.refresh()
    wait_until(lambda: len(browser.own_messages) == 2, "it is still there after a reload")
    browser.wait_for_status("done")
    wait_until(
        lambda: (
            site.rows("SELECT count(*) FROM chat_run WHERE conversation_id = %s", conversation)
            == [(2,)]
        ),
        "it arrived",
    )
    browser.driver.refresh()
    assert browser.own_messages == ["[[tokens=3 rate=0]] One", "[[tokens=3 rate=0]] Two"]


def test_signing_out_in_one_tab_leads_the_other_to_the_sign_in_page(browser: Browser, email: str):
    browser.sign_up(email)
    first = browser.tab
    browser.new_tab("/")
    browser.click(".account summary")
    browser.click(".account form button")
    wait_until(lambda: "/accounts/login/" in browser.path, "signed out")

    browser.go_to_tab(first)
    browser.run(
        "const {connection} = document.querySelector('chat-app');"
        "connection.pause(); connection.wake()"
    )
    wait_until(lambda: "/accounts/login/?next=" in browser.path, "the other tab asks to sign in")
