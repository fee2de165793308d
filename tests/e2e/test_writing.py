"""Writing: no typed text is ever lost, and keys do what people expect."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from chat.rendering.document import to_html
from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import DESKTOP, HOME, PHONE, Site

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


def test_control_enter_sends_on_a_phone(open_browser: Callable[..., Browser], email: str):
    browser = open_browser(PHONE)
    browser.sign_up(email)
    browser.write("[[tokens=3 rate=0]] one")
    browser.find(FIELD).send_keys(Keys.CONTROL, Keys.ENTER)
    browser.wait_for_status("done")
    browser.write("[[tokens=3 rate=0]] two")
    browser.find(FIELD).send_keys(Keys.META, Keys.ENTER)
    wait_until(lambda: len(browser.own_messages) == 2, "Command and Enter send as well")
    browser.wait_for_status("done")


@contextmanager
def without_modules(browser: Browser) -> Iterator[None]:
    """The modules of the page do not arrive."""
    cdp = browser.driver.execute_cdp_cmd
    cdp("Network.enable", {})
    cdp("Network.setBlockedURLs", {"urls": ["*/js/app*.js"]})
    try:
        yield
    finally:
        cdp("Network.setBlockedURLs", {"urls": []})


@pytest.mark.parametrize(
    "key", [(Keys.ENTER,), (Keys.CONTROL, Keys.ENTER)], ids=["plain", "command"]
)
def test_enter_before_the_script_sends(site: Site, browser: Browser, key: tuple[str, ...]):
    with without_modules(browser):
        browser.open("/")
        browser.write("[[tokens=5 rate=0]] early")
        browser.find(FIELD).send_keys(*key)
        conversation = browser.conversation
    browser.driver.refresh()  # with its modules
    browser.wait_for_status("done")
    assert browser.own_messages == ["[[tokens=5 rate=0]] early"]
    assert site.count_runs(conversation) == 1
    browser.open(browser.path)
    assert browser.draft == ""


def test_text_before_the_script_is_kept(browser: Browser):
    browser.write("older draft")
    browser.open("/chats/")
    stored = (
        "return fetch('/').then((page) => page.text()).then((text) => text.includes('older draft'))"
    )
    wait_until(lambda: browser.run(stored), "the draft is stored")
    with without_modules(browser):
        browser.open("/")
        browser.write("typed early")
        source = browser.run("return document.querySelector('script[type=module]').src")
    # The modules arrive late.
    browser.run(
        "const script = document.createElement('script');"
        "script.type = 'module'; script.src = arguments[0] + '?late';"
        "document.head.append(script)",
        source,
    )
    # The page has the draft already, so it was typed behind it.
    wait_until(lambda: browser.draft == "older drafttyped early", "both are there, once")
    time.sleep(0.5)
    assert browser.draft == "older drafttyped early"


def test_empty_message_is_not_sent(browser: Browser):
    browser.send("")
    browser.find(FIELD).send_keys(Keys.SPACE, Keys.ENTER)
    assert browser.path == "/"
    assert browser.own_messages == []
    assert browser.shown("[data-error]") == []


def test_invisible_characters_are_left_out(browser: Browser):
    browser.run(
        "const field = document.querySelector(arguments[0]);"
        "field.value = '[[tokens=3 rate=0]] a\\0b\\ud83d';"
        "field.dispatchEvent(new Event('input', {bubbles: true}))",
        FIELD,
    )
    browser.find(FIELD).send_keys(Keys.ENTER)
    browser.wait_for_status("done")
    assert browser.own_messages == ["[[tokens=3 rate=0]] ab\ufffd"]
    assert browser.complaints == []


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


def test_draft_follows_to_other_devices(site: Site, browser: Browser):
    browser.ask("[[tokens=3 rate=0]] First")
    chat, first = browser.path, browser.tab
    other = browser.new_tab(chat)  # as on another device: it has a storage of its own
    browser.go_to_tab(first)
    browser.write("Half a thought")
    browser.go_to_tab(other)
    wait_until(lambda: browser.draft == "Half a thought", "it is shown live")
    browser.open("/")
    assert browser.draft == ""
    browser.open(chat)
    assert browser.draft == "Half a thought"
    browser.write(" [[tokens=3 rate=0]]")
    browser.find(FIELD).send_keys(Keys.ENTER)
    wait_until(lambda: len(browser.own_messages) == 2, "it is sent")
    browser.wait_for_status("done")  # the message is shown before the server has it
    browser.go_to_tab(first)
    # It was typed here a moment ago, and stays until the page is opened again.
    browser.open(chat)
    assert browser.draft == ""
    assert site.rows(
        "SELECT count(*) FROM chat_draft WHERE text <> '' AND conversation_id = %s",
        browser.conversation,
    ) == [(0,)]
    assert browser.complaints == []


def test_too_long_text_stays_a_draft(site: Site, browser: Browser):
    browser.write("early")
    stored = "SELECT count(*) FROM chat_draft WHERE text = 'early'"
    wait_until(lambda: site.rows(stored) == [(1,)], "the server has a draft")
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
    browser.driver.refresh()
    assert len(browser.draft) == 20_003
    assert browser.complaints == []


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


def pasted(browser: Browser) -> str:
    """The text of the clipboard, through the composer."""
    field = browser.find(FIELD)
    field.clear()
    field.send_keys(Keys.CONTROL, "v")
    text = browser.draft
    field.clear()
    return text


CODE = "```python\nif x:\n    print(1)\n```"


@pytest.mark.parametrize("host", ["127.0.0.1", HOME], ids=["secure", "plain_http"])
def test_copy_takes_markdown_and_code(site: Site, driver: webdriver.Chrome, email: str, host: str):
    browser = Browser(driver, site.base.replace("127.0.0.1", host), DESKTOP)
    browser.sign_up(email)
    assert browser.run("return isSecureContext") == (host != HOME)
    browser.ask("[[tokens=30 rate=0]] Copy me")
    streamed, _ = site.reply(browser.conversation)
    for text in (streamed, CODE):
        site.execute(
            "UPDATE chat_message SET text = %s, html = %s"
            " WHERE conversation_id = %s AND role = 'assistant'",
            text,
            to_html(text),
            browser.conversation,
        )
        if text == CODE:
            browser.driver.refresh()
        time.sleep(1)
        # The text is at hand before the click: nothing can be fetched now.
        if host == HOME:
            go_offline(browser)
        browser.run("getSelection().selectAllChildren(document.querySelector('.own-text'))")
        top = browser.run("return scrollY")
        browser.click("[data-copy]")
        wait_until(lambda: browser.shown("[data-copy] use[href='#i-check']"), "it is copied")
        assert browser.run("return [scrollY, document.activeElement.matches('[data-copy]')]") == [
            top,
            True,
        ]
        assert browser.run("return getSelection().toString()").endswith("Copy me")
        assert pasted(browser) == text
        go_offline(browser, offline=False)
    browser.click("[data-copy-code]")
    wait_until(lambda: browser.shown("[data-copy-code] use[href='#i-check']"), "it is copied")
    assert pasted(browser) == "if x:\n    print(1)"


def test_offline_refusal_ends_with_the_network(browser: Browser):
    browser.write("Later")
    go_offline(browser)
    browser.click("[data-send-button]")
    browser.wait_for_text("[data-error-text]", "You are offline")
    go_offline(browser, offline=False)
    wait_until(lambda: browser.shown("[data-error]") == [], "nothing is refused any longer")
    assert browser.draft == "Later"


def go_offline(browser: Browser, *, offline: bool = True) -> None:
    cdp = browser.driver.execute_cdp_cmd
    cdp("Network.enable", {})
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    cdp("Network.emulateNetworkConditions", {"offline": offline, **conditions})
