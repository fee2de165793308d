"""Writing: what is typed is never lost, and keys do what one expects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import PHONE, Site

pytestmark = pytest.mark.e2e

FIELD = "chat-composer textarea"


def test_shift_and_enter_begin_a_new_line_and_both_are_shown(browser: Browser, email: str):
    browser.sign_up(email)
    browser.write("[[tokens=3 rate=0]] <b>one</b>")
    browser.find(FIELD).send_keys(Keys.SHIFT, Keys.ENTER)
    browser.send("  two & three")
    browser.wait_for_status("done")
    assert browser.own_messages == ["[[tokens=3 rate=0]] <b>one</b>\n  two & three"]


def test_enter_that_ends_the_composing_of_a_word_sends_nothing(browser: Browser, email: str):
    browser.sign_up(email)
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


def test_enter_is_a_new_line_where_the_keyboard_is_on_the_screen(
    open_browser: Callable[..., Browser], email: str
):
    browser = open_browser(PHONE)
    browser.sign_up(email)
    browser.send("one")
    browser.write("two")
    assert browser.draft == "one\ntwo"
    assert browser.own_messages == []
    browser.click("[data-send-button]")
    browser.wait_for_status("done")
    assert browser.own_messages == ["one\ntwo"]


def test_nothing_is_sent_without_text(site: Site, browser: Browser, email: str):
    browser.sign_up(email)
    browser.send("")
    browser.find(FIELD).send_keys(Keys.SPACE, Keys.ENTER)
    assert browser.path == "/"
    assert browser.own_messages == []
    assert browser.shown("[data-error]") == []


def test_half_a_message_is_still_there_after_a_reload(browser: Browser, email: str):
    browser.sign_up(email)
    browser.write("Half a mess")
    browser.driver.refresh()
    assert browser.draft == "Half a mess"
    browser.find(FIELD).clear()
    browser.send("[[tokens=3 rate=0]] Whole")
    browser.wait_for_status("done")
    browser.open("/")
    assert browser.draft == ""


def test_drafts_belong_to_their_chat(browser: Browser, email: str):
    browser.sign_up(email)
    browser.send("[[tokens=3 rate=0]] First")
    browser.wait_for_status("done")
    chat = browser.path
    browser.write("for the first")
    browser.open("/")
    assert browser.draft == ""
    browser.write("for a new one")
    browser.open(chat)
    assert browser.draft == "for the first"


def test_one_can_write_on_while_a_reply_comes_but_not_send(browser: Browser, email: str):
    browser.sign_up(email)
    browser.send("[[tokens=60 rate=20]] First")
    wait_until(lambda: browser.reply, "text comes")
    browser.send("Second")
    browser.wait_for_text("[data-error-text]", "A reply is still being written.")
    assert browser.draft == "Second"
    browser.wait_for_status("done")
    assert browser.draft == "Second"


def test_a_text_that_is_too_long_stays_in_the_field_and_says_so(
    site: Site, browser: Browser, email: str
):
    browser.sign_up(email)
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
    assert len(browser.draft) == 20_003 * (2 if len("🙂".encode("utf-16-le")) == 2 else 1)


def test_a_text_that_is_too_large_for_the_socket_goes_as_a_form(
    site: Site, browser: Browser, email: str
):
    # 19,990 characters are allowed, but as 80 kB they do not fit into a frame.
    browser.sign_up(email)
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


def test_what_the_server_refuses_comes_back_into_the_field(
    site: Site, browser: Browser, email: str
):
    # The chat is deleted behind the page's back: a send is refused.
    browser.sign_up(email)
    browser.send("[[tokens=3 rate=0]] First")
    browser.wait_for_status("done")
    site.execute(
        "UPDATE chat_conversation SET deleted_at = now() WHERE id = %s", browser.conversation
    )
    browser.send("Into nowhere")
    browser.wait_for_text("[data-error-text]", "Not found, or you do not have access.")
    assert browser.draft == "Into nowhere"
    assert browser.own_messages == ["[[tokens=3 rate=0]] First"]


def test_an_edit_that_is_refused_stays_an_edit(site: Site, browser: Browser, email: str):
    browser.sign_up(email)
    browser.send("[[tokens=3 rate=0]] First")
    browser.wait_for_status("done")
    conversation = browser.conversation
    browser.click(".action-edit")
    wait_until(lambda: "edit=" in browser.path, "the page to edit opens")
    site.execute("UPDATE chat_conversation SET deleted_at = now() WHERE id = %s", conversation)
    browser.send(" and more")
    browser.wait_for_text("[data-error-text]", "Not found, or you do not have access.")
    assert browser.draft == "[[tokens=3 rate=0]] First and more"
    assert browser.shown("[data-editing]")

    site.execute("UPDATE chat_conversation SET deleted_at = NULL WHERE id = %s", conversation)
    browser.find(FIELD).send_keys(Keys.ENTER)
    wait_until(lambda: browser.own_messages == ["[[tokens=3 rate=0]] First and more"], "it is sent")
    browser.wait_for_status("done")
    assert browser.draft == ""
    assert not browser.shown("[data-editing]")


def test_the_page_follows_the_reply_only_for_who_is_at_its_end(browser: Browser, email: str):
    browser.sign_up(email)
    browser.send("[[tokens=600 rate=0]] Long")
    browser.wait_for_status("done")
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


def test_the_end_of_a_reply_is_announced_and_its_words_are_not(browser: Browser, email: str):
    browser.sign_up(email)
    browser.run(
        "window.said = [];"
        "new MutationObserver(() => said.push(document.querySelector('[data-announcer]').innerText))"
        ".observe(document.querySelector('[data-announcer]'), {childList: true})"
    )
    browser.send("[[tokens=40 rate=40]] Speak")
    browser.wait_for_status("done")
    wait_until(lambda: "Reply finished" in browser.run("return said"), "the end is announced")
    assert [said for said in browser.run("return said") if said] == ["Reply finished"]
    assert browser.shown("[aria-live], [role=log]") == []


def test_copying_takes_the_markdown_as_it_was_written(site: Site, browser: Browser, email: str):
    browser.sign_up(email)
    browser.driver.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": browser.base},
    )
    browser.send("[[tokens=30 rate=0]] Copy me")
    browser.wait_for_status("done")
    browser.click("[data-copy]")
    wait_until(lambda: browser.shown("use[href='#i-check']") or True, "it says so")
    text, _ = site.reply(browser.conversation)
    wait_until(
        lambda: (
            browser.driver.execute_async_script(
                "const done = arguments[0]; navigator.clipboard.readText().then(done, () => done(''))"
            )
            == text
        ),
        "the clipboard has the text",
    )
