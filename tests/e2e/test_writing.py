"""Writing: no typed text is ever lost, and keys do what people expect."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import PHONE, Site

pytestmark = pytest.mark.e2e

FIELD = "chat-composer textarea"


def test_shift_enter_begins_a_new_line(browser: Browser):
    browser.write("[[tokens=3 rate=0]] <b>one</b>")
    browser.find(FIELD).send_keys(Keys.SHIFT, Keys.ENTER)
    browser.ask("  two & three")
    assert browser.own_messages == ["[[tokens=3 rate=0]] <b>one</b>\n  two & three"]


def test_enter_during_composition_sends_nothing(browser: Browser):
    browser.write("にほんご")
    prevented = browser.run(
        "return [{isComposing: true, keyCode: 13}, {isComposing: false, keyCode: 229}].map("
        "  (more) => !document.querySelector(arguments[0]).dispatchEvent(new KeyboardEvent("
        "    'keydown', {key: 'Enter', bubbles: true, cancelable: true, ...more})))",
        FIELD,
    )
    assert prevented == [False, False]
    assert browser.own_messages == []
    assert browser.draft == "にほんご"


def test_enter_on_a_phone_begins_a_new_line(open_browser: Callable[..., Browser], email: str):
    browser = open_browser(PHONE)
    browser.sign_up(email)
    browser.send("one")
    browser.write("two")
    assert browser.draft == "one\ntwo"
    assert browser.own_messages == []
    browser.click("[data-send-button]")
    browser.wait_for_status("done")
    assert browser.own_messages == ["one\ntwo"]


def test_empty_message_is_not_sent(browser: Browser):
    browser.send("")
    browser.find(FIELD).send_keys(Keys.SPACE, Keys.ENTER)
    assert browser.path == "/"
    assert browser.own_messages == []
    assert browser.shown("[data-error]") == []


def test_draft_survives_a_reload(browser: Browser):
    browser.write("Half a mess")
    browser.driver.refresh()
    assert browser.draft == "Half a mess"
    browser.find(FIELD).clear()
    browser.ask("[[tokens=3 rate=0]] Whole")
    browser.open("/")
    assert browser.draft == ""


def test_drafts_belong_to_their_chat(browser: Browser):
    browser.ask("[[tokens=3 rate=0]] First")
    chat = browser.path
    browser.write("for the first")
    browser.open("/")
    assert browser.draft == ""
    browser.write("for a new one")
    browser.open(chat)
    assert browser.draft == "for the first"


def test_message_during_a_reply_stays_a_draft(browser: Browser):
    browser.send("[[tokens=60 rate=20]] First")
    wait_until(lambda: browser.reply, "text comes")
    browser.send("Second")
    browser.wait_for_text("[data-error-text]", "A reply is still being written.")
    assert browser.draft == "Second"
    browser.wait_for_status("done")
    assert browser.draft == "Second"


def test_too_long_text_stays_a_draft(browser: Browser):
    browser.run(
        "const field = document.querySelector(arguments[0]);"
        "field.value = '🙂'.repeat(20_003);"
        "field.dispatchEvent(new Event('input', {bubbles: true}))",
        FIELD,
    )
    assert browser.texts("[data-count]") == ["3 characters over the limit"]
    browser.find(FIELD).send_keys(Keys.ENTER)
    browser.wait_for_text("[data-error-text]", "3 characters too long")
    assert browser.own_messages == []
    assert len(browser.draft) == 20_003


def test_text_too_large_for_a_frame_is_posted(site: Site, browser: Browser):
    # 19,990 characters are allowed, but as 80 kB they do not fit into a frame.
    browser.run(
        "document.querySelector(arguments[0]).value = '🙂'.repeat(19_980) + '[[tokens=3]]'", FIELD
    )
    browser.find(FIELD).send_keys(Keys.ENTER)
    browser.wait_for_status("done")
    [(text,)] = site.rows(
        "SELECT text FROM chat_message WHERE conversation_id = %s AND role = 'user'",
        browser.conversation,
    )
    assert text == "🙂" * 19_980 + "[[tokens=3]]"
    assert browser.draft == ""


def set_account(site: Site, email: str, status: str) -> None:
    """Freeze or thaw the account of a user: a frozen one may not send."""
    query = (
        "UPDATE billing_account SET status = %s"
        " WHERE user_id = (SELECT id FROM accounts_user WHERE email = %s)"
    )
    site.execute(query, status, email)


def test_refused_message_becomes_a_draft_again(site: Site, browser: Browser, email: str):
    browser.ask("[[tokens=3 rate=0]] First")
    set_account(site, email, "frozen")
    browser.send("Into nowhere")
    browser.wait_for_text("[data-error-text]", "frozen")
    assert browser.draft == "Into nowhere"
    assert browser.own_messages == ["[[tokens=3 rate=0]] First"]


def test_refused_edit_stays_an_edit(site: Site, browser: Browser, email: str):
    browser.ask("[[tokens=3 rate=0]] First")
    browser.click(".action-edit")
    wait_until(lambda: "edit=" in browser.path, "the page to edit opens")
    set_account(site, email, "frozen")
    browser.send(" and more")
    browser.wait_for_text("[data-error-text]", "frozen")
    assert browser.draft == "[[tokens=3 rate=0]] First and more"
    assert browser.shown("[data-editing]")

    set_account(site, email, "active")
    browser.find(FIELD).send_keys(Keys.ENTER)
    wait_until(lambda: browser.own_messages == ["[[tokens=3 rate=0]] First and more"], "it is sent")
    browser.wait_for_status("done")
    assert browser.draft == ""
    assert not browser.shown("[data-editing]")


def test_page_follows_only_at_its_end(browser: Browser):
    browser.ask("[[tokens=600 rate=0]] Long")
    browser.send("[[tokens=400 rate=80]] Longer")
    wait_until(lambda: len(browser.reply) > 300, "text comes")
    left = "return document.body.scrollHeight - innerHeight - scrollY"
    assert browser.run(left) < 50
    assert browser.shown("[data-to-end]") == []

    browser.run("scrollTo(0, 100)")
    wait_until(lambda: browser.shown("[data-to-end]"), "the way back is offered")
    before = len(browser.reply)
    wait_until(lambda: len(browser.reply) > before + 100, "the text grows")
    assert browser.run("return scrollY") == 100

    browser.click("[data-to-end]")
    wait_until(lambda: browser.run(left) < 50, "it is at the end again")
    browser.wait_for_status("done")
    assert browser.run(left) < 50
    assert browser.shown("[data-to-end]") == []


def test_only_the_end_of_a_reply_is_announced(browser: Browser):
    browser.run(
        "window.said = [];"
        "new MutationObserver(() => said.push(document.querySelector('[data-announcer]').innerText))"
        ".observe(document.querySelector('[data-announcer]'), {childList: true})"
    )
    browser.ask("[[tokens=40 rate=40]] Speak")
    wait_until(lambda: "Reply finished" in browser.run("return said"), "the end is announced")
    assert [said for said in browser.run("return said") if said] == ["Reply finished"]
    assert browser.shown("[aria-live], [role=log]") == []


def test_copy_takes_the_markdown(site: Site, browser: Browser):
    browser.driver.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": browser.base},
    )
    browser.ask("[[tokens=30 rate=0]] Copy me")
    browser.click("[data-copy]")
    text, _ = site.reply(browser.conversation)
    read = "const done = arguments[0]; navigator.clipboard.readText().then(done, () => done(''))"
    wait_until(
        lambda: browser.driver.execute_async_script(read) == text, "the clipboard has the text"
    )
