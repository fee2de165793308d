"""Losing the connection, or whoever makes the reply: said after a moment, made good by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site
from tests.support.fake_llm import reply_pieces, reply_text

pytestmark = pytest.mark.e2e

USER_CONCURRENCY = 5  # as it is by default

INTERRUPTED = "Reply interrupted. Resuming…"
RESTARTED = "Reply interrupted. Starting over."

# Keeps in `seen` each state of the newest reply that was ever on the screen, and in `said` what was
# read out.
WATCH = """
window.seen = [];
window.said = [];
const look = () => {
  const text = document.querySelector(".message.reply:last-child .stream")?.textContent;
  if (text !== undefined && text !== seen.at(-1)) seen.push(text);
  requestAnimationFrame(look);
};
look();
const announcer = document.querySelector("[data-announcer]");
const hear = () => announcer.textContent && said.push(announcer.textContent);
new MutationObserver(hear).observe(announcer, {childList: true});
"""


@pytest.fixture
def message(email: str) -> str:
    """One whose reply halts after 40 of its 80 tokens, until `site.provider.release(email)`."""
    return f"[[tokens=80 rate=0 hold=40 key={email}]] Through a storm"


def half(message: str) -> str:
    """The reply to `message` up to where it halts."""
    return squeezed("".join(reply_pieces(80, message)[:40]))


def squeezed(text: str) -> str:
    """A text without its white space, as some of that is how it is laid out on the page."""
    return "".join(text.split())


def written(browser: Browser) -> str:
    """What there is of the newest reply while it is being written, without white space."""
    streams = browser.run(
        "return [...document.querySelectorAll('.message.reply:last-child .stream')]"
        ".map((stream) => stream.textContent)"
    )
    return squeezed("".join(streams))


def wait_for_half(browser: Browser, message: str) -> None:
    wait_until(lambda: written(browser) == half(message), "the first half is there")


@contextmanager
def without(site: Site, process: str) -> Iterator[None]:
    """Kill a process, and start it again afterwards."""
    site.stack.kill(process)
    try:
        yield
    finally:
        site.stack.start(process)


# --- The web process --------------------------------------------------------------------------


def test_a_killed_web_server_is_told_of_and_the_reply_goes_on_where_it_was(
    site: Site, browser: Browser, email: str, message: str
):
    browser.sign_up(email)
    browser.run(WATCH)
    browser.send(message)
    wait_for_half(browser, message)

    with without(site, "web"):
        browser.wait_for_text("[data-connection]", "Connection lost. Reconnecting…")
        assert written(browser) == half(message)
    wait_until(lambda: not browser.shown("[data-connection]"), "it is connected again")
    assert written(browser) == half(message)
    site.provider.release(email)
    browser.wait_for_status("done")

    whole = reply_text(80, message)
    assert site.reply(browser.conversation) == (whole, "done")
    seen = [squeezed(text) for text in browser.run("return seen")]
    assert [text for text in seen if not squeezed(whole).startswith(text)] == []
    assert seen == sorted(seen, key=len), "what was shown is never taken away"
    shown = browser.reply
    browser.driver.refresh()
    assert browser.reply == shown


def test_a_reply_that_ends_while_the_web_server_is_away_is_there_afterwards(
    site: Site, browser: Browser, email: str, message: str
):
    browser.sign_up(email)
    browser.send(message)
    wait_for_half(browser, message)
    with without(site, "web"):
        site.provider.release(email)
        site.provider.wait(active=0)
    browser.wait_for_status("done")
    assert site.reply(browser.conversation) == (reply_text(80, message), "done")


def test_a_reload_and_a_second_tab_show_all_that_is_written_and_go_on(
    site: Site, browser: Browser, email: str, message: str
):
    browser.sign_up(email)
    browser.send(message)
    wait_for_half(browser, message)
    first = browser.tab
    browser.driver.refresh()
    wait_for_half(browser, message)
    browser.new_tab(browser.path)
    wait_for_half(browser, message)

    site.provider.release(email)
    browser.wait_for_status("done")
    shown = browser.reply
    assert site.reply(browser.conversation) == (reply_text(80, message), "done")
    browser.go_to_tab(first)
    browser.wait_for_status("done")
    assert browser.reply == shown
    assert browser.complaints == []


def test_what_is_sent_and_stopped_while_the_web_server_is_away_is_done_when_it_is_back(
    site: Site, browser: Browser, email: str, message: str
):
    browser.sign_up(email)
    browser.send("[[tokens=3 rate=0]] Hello")
    browser.wait_for_status("done")
    with without(site, "web"):
        browser.wait_for_text("[data-connection]", "Connection lost. Reconnecting…")
        browser.send(message)
        browser.wait_for_text(".own-state", "Sending")
    wait_for_half(browser, message)
    assert len(browser.own_messages) == 2

    with without(site, "web"):
        browser.wait_for_text("[data-connection]", "Connection lost. Reconnecting…")
        browser.click("[data-stop]")
    browser.wait_for_status("stopped")
    text, status = site.reply(browser.conversation)
    assert (squeezed(text), status) == (half(message), "stopped")
    assert site.rows(
        "SELECT count(*) FROM chat_run WHERE conversation_id = %s", browser.conversation
    ) == [(2,)]


# --- The worker -------------------------------------------------------------------------------


def test_a_killed_workers_reply_begins_again_and_is_clean_at_the_end(
    site: Site, browser: Browser, email: str, message: str
):
    browser.sign_up(email)
    browser.run(WATCH)
    browser.send(message)
    wait_for_half(browser, message)
    with without(site, "worker"):
        browser.wait_for_text(".progress", INTERRUPTED)
        assert written(browser) == half(message)
        first = browser.tab
        second = browser.new_tab(browser.path)
        wait_for_half(browser, message)
        browser.wait_for_text(".progress", INTERRUPTED)
        browser.go_to_tab(first)
    browser.wait_for_text("[data-restarted]", RESTARTED)
    wait_for_half(browser, message)
    site.provider.release(email)
    browser.wait_for_status("done")

    whole = reply_text(80, message)
    assert site.reply(browser.conversation) == (whole, "done")
    assert site.rows(
        "SELECT attempt FROM chat_run WHERE conversation_id = %s", browser.conversation
    ) == [(2,)]
    seen = [squeezed(text) for text in browser.run("return seen")]
    assert [text for text in seen if not squeezed(whole).startswith(text)] == []
    said = browser.run("return said")
    assert said.count(RESTARTED) == 1
    assert not any("in line" in words for words in said)
    assert RESTARTED not in browser.texts(".message.reply")[0]
    shown = browser.reply
    browser.go_to_tab(second)
    browser.wait_for_status("done")
    assert browser.reply == shown


def test_a_model_that_can_continue_goes_on_from_what_is_shown(
    site: Site, browser: Browser, email: str, message: str
):
    [(before,)] = site.rows("SELECT DISTINCT continuation FROM chat_languagemodel")
    site.execute("UPDATE chat_languagemodel SET continuation = 'prefill'")
    try:
        browser.sign_up(email)
        browser.run(WATCH)
        browser.send(message)
        wait_for_half(browser, message)
        with without(site, "worker"):
            browser.wait_for_text(".progress", INTERRUPTED)
        site.provider.release(email)
        browser.wait_for_status("done")
    finally:
        site.execute("UPDATE chat_languagemodel SET continuation = %s", before)

    whole = reply_text(80, message)
    assert site.reply(browser.conversation) == (whole, "done")
    seen = [squeezed(text) for text in browser.run("return seen")]
    assert [text for text in seen if not squeezed(whole).startswith(text)] == []
    assert seen == sorted(seen, key=len), "what was shown is never taken away"
    assert seen.count(half(message)) == 1
    assert RESTARTED not in browser.run("return said")


def test_without_a_worker_a_message_says_where_it_stands_then_warns_and_can_be_stopped(
    site: Site, browser: Browser, email: str
):
    browser.sign_up(email)
    with without(site, "worker"):
        browser.send("[[tokens=5 rate=0]] Anybody?")
        browser.wait_for_text(".progress", "Queued, next in line")
        assert not browser.shown("[data-no-worker]")
        site.execute(
            "UPDATE chat_run SET queued_at = now() - interval '2 minutes'"
            " WHERE conversation_id = %s",
            browser.conversation,
        )
        browser.driver.refresh()
        browser.wait_for_text("[data-no-worker]", "This is taking longer than usual.")
        browser.wait_for_text(".progress", "Queued, next in line")
        browser.click("[data-stop]")
        browser.wait_for_status("stopped")
    assert not browser.shown("[data-no-worker]")
    assert site.reply(browser.conversation) == ("", "stopped")


def test_a_message_that_waits_for_ones_own_others_says_so_and_does_not_warn(
    site: Site, browser: Browser, email: str
):
    browser.sign_up(email)
    with without(site, "worker"):
        for number in range(USER_CONCURRENCY):
            browser.open("/")
            browser.send(f"[[tokens=5 rate=0]] In line {number}")
            browser.wait_for_text(".progress", "next in line" if number == 0 else "in line")
        for others in ("", "1 message ahead"):
            browser.open("/")
            browser.send("[[tokens=5 rate=0]] Held back")
            browser.wait_for_text(".progress", "Queued behind your other replies")
            browser.wait_for_text(".progress", others)
        site.execute(
            "UPDATE chat_run SET queued_at = now() - interval '2 minutes'"
            " WHERE conversation_id = %s",
            browser.conversation,
        )
        browser.driver.refresh()
        browser.wait_for_text(".progress", "Queued behind your other replies")
        assert not browser.shown("[data-no-worker]")
    browser.wait_for_status("done")


# --- Everything else --------------------------------------------------------------------------


def test_a_refusal_that_passes_keeps_the_text_and_offers_to_send_it_again_in_time(
    site: Site, browser: Browser, email: str
):
    browser.sign_up(email)
    # As the server answers while too many wait: told to the page instead of by it.
    browser.run(
        "const {connection} = document.querySelector('chat-app');"
        "connection.send = ({client_id}) => {"
        "  delete connection.send;"
        "  const detail = {type: 'error', code: 'busy', message: 'Too many.', retry_after: 2,"
        "    ref: client_id};"
        "  setTimeout(() => connection.dispatchEvent(new CustomEvent('message', {detail})));"
        "  return true;"
        "}"
    )
    browser.send("[[tokens=3 rate=0]] Not now")
    browser.wait_for_text("[data-error-text]", "Too many.")
    assert browser.draft == "[[tokens=3 rate=0]] Not now"
    assert browser.own_messages == []
    assert browser.shown("[data-send-button]")
    button = browser.find("[data-retry]")
    assert button.text.startswith("Try again")
    wait_until(lambda: button.is_enabled() and button.text == "Try again", "its time has come")
    button.click()
    browser.wait_for_status("done")
    assert browser.own_messages == ["[[tokens=3 rate=0]] Not now"]
    assert browser.draft == ""
    assert not browser.shown("[data-error]")


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
