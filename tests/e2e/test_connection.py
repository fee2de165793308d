"""Lost connections and lost workers: shown after a moment, and repaired automatically."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep
from urllib.parse import quote

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import PASSWORD, Browser, wait_until
from tests.e2e.conftest import Site
from tests.support.fake_llm import reply_pieces, reply_text
from tests.support.upgrade_refuser import UpgradeRefuser

pytestmark = pytest.mark.e2e

NEW = "another-long-password-23"
USER_CONCURRENCY = 5  # the default

INTERRUPTED = "Reply interrupted. Resuming…"
RESTARTED = "Reply interrupted. Starting over."

# Collects in `seen` each text of the newest reply that was ever on the screen, and in `said` each
# announcement.
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
const note = () => announcer.textContent && said.push(announcer.textContent);
new MutationObserver(note).observe(announcer, {childList: true});
"""


# Counts in `resumes` the frames that the page sends to follow a run.
COUNT_RESUMES = """
window.resumes = 0;
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (data) {
  if (data.includes('"resume"')) window.resumes += 1;
  send.call(this, data);
};
"""

# The next frame reaches the server, whose answer is lost and replaced by a refusal; until `recover()`.
REFUSE_AND_LOSE = """
const {connection} = document.querySelector("chat-app");
const send = connection.send;
connection.send = (frame) => {
  send.call(connection, frame);
  connection.pause();
  const detail = {type: "error", code: "unavailable", message: "unavailable", ref: frame.client_id};
  setTimeout(() => connection.dispatchEvent(new CustomEvent("message", {detail})));
  return true;
};
window.recover = () => {
  delete connection.send;
  connection.wake();
};
"""


@pytest.fixture
def message(email: str) -> str:
    """A message whose reply halts after 40 of its 80 tokens until `provider.release(email)`."""
    return f"[[tokens=80 rate=0 hold=40 key={email}]] Through a storm"


def half(message: str) -> str:
    """The reply to `message` up to where it halts."""
    return squeezed("".join(reply_pieces(80, message)[:40]))


def squeezed(text: str) -> str:
    """A text without its white space and the marks of list items, which become layout."""
    return "".join(text.split()).replace("-", "")


def written(browser: Browser) -> str:
    """The text so far of the newest reply, without white space."""
    streams = browser.run(
        "return [...document.querySelectorAll('.message.reply:last-child .stream')]"
        ".map((stream) => stream.textContent)"
    )
    return squeezed("".join(streams))


def seen_on_the_way_to(whole: str, browser: Browser) -> list[str]:
    """The texts that WATCH collected; each must be a beginning of the whole reply."""
    seen = [squeezed(text) for text in browser.run("return seen")]
    assert [text for text in seen if not squeezed(whole).startswith(text)] == []
    return seen


def wait_for_half(browser: Browser, message: str) -> None:
    wait_until(lambda: written(browser) == half(message), "the first half is there")


@pytest.fixture
def half_a_reply(browser: Browser, message: str) -> None:
    """The browser shows the first half of the reply to `message`; WATCH collects its texts."""
    browser.run(WATCH)
    browser.send(message)
    wait_for_half(browser, message)


@pytest.fixture
def continuing_model(site: Site) -> Iterator[None]:
    """All models can continue a partial text."""
    [(before,)] = site.rows("SELECT DISTINCT continuation FROM chat_languagemodel")
    site.execute("UPDATE chat_languagemodel SET continuation = 'prefill'")
    yield
    site.execute("UPDATE chat_languagemodel SET continuation = %s", before)


@contextmanager
def without(site: Site, process: str) -> Iterator[None]:
    """Kill a process, and start it again afterwards."""
    site.stack.kill(process)
    try:
        yield
    finally:
        site.stack.start(process)


# --- The web process --------------------------------------------------------------------------


@pytest.mark.usefixtures("half_a_reply")
def test_reply_continues_after_the_web_server_died(
    site: Site, browser: Browser, email: str, message: str
):
    with without(site, "web"):
        browser.wait_for_text("[data-connection]", "Connection lost. Reconnecting…")
        assert written(browser) == half(message)
    wait_until(lambda: not browser.shown("[data-connection]"), "it is connected again")
    browser.wait_for_text("[data-toast]", "Resumed after a lost connection. Nothing was lost.")
    assert written(browser) == half(message)
    site.provider.release(email)
    browser.wait_for_status("done")

    whole = reply_text(80, message)
    assert site.reply(browser.conversation) == (whole, "done")
    seen = seen_on_the_way_to(whole, browser)
    assert seen == sorted(seen, key=len), "no shown text is ever removed"
    shown = browser.reply
    browser.driver.refresh()
    assert browser.reply == shown


@pytest.mark.usefixtures("half_a_reply")
def test_reply_ended_during_an_outage_is_shown(
    site: Site, browser: Browser, email: str, message: str
):
    with without(site, "web"):
        site.provider.release(email)
        site.provider.wait(active=0)
    browser.wait_for_status("done")
    assert site.reply(browser.conversation) == (reply_text(80, message), "done")


@pytest.mark.usefixtures("half_a_reply")
def test_reload_and_second_tab_continue_the_reply(
    site: Site, browser: Browser, email: str, message: str
):
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


def test_send_and_stop_wait_for_the_server(site: Site, browser: Browser, message: str):
    browser.ask("[[tokens=3 rate=0]] Hello")
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
    assert site.count_runs(browser.conversation) == 2


# --- The worker -------------------------------------------------------------------------------


@pytest.mark.usefixtures("half_a_reply")
def test_reply_of_a_killed_worker_starts_over(
    site: Site, browser: Browser, email: str, message: str
):
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
    seen_on_the_way_to(whole, browser)
    said = browser.run("return said")
    assert said.count(RESTARTED) == 1
    assert not any("in line" in words for words in said)
    assert RESTARTED not in browser.texts(".message.reply")[0]
    shown = browser.reply
    browser.go_to_tab(second)
    browser.wait_for_status("done")
    assert browser.reply == shown


@pytest.mark.usefixtures("continuing_model", "half_a_reply")
def test_continuing_model_resumes_from_the_shown_text(
    site: Site, browser: Browser, email: str, message: str
):
    with without(site, "worker"):
        browser.wait_for_text(".progress", INTERRUPTED)
    site.provider.release(email)
    browser.wait_for_status("done")

    whole = reply_text(80, message)
    assert site.reply(browser.conversation) == (whole, "done")
    seen = seen_on_the_way_to(whole, browser)
    assert seen == sorted(seen, key=len), "no shown text is ever removed"
    assert seen.count(half(message)) == 1
    assert RESTARTED not in browser.run("return said")


def test_message_without_a_worker_warns_and_stops(site: Site, browser: Browser):
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


def test_throttled_message_waits_without_a_warning(site: Site, browser: Browser):
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


def test_busy_refusal_offers_a_retry_later(browser: Browser):
    # The page receives what the server answers while its queue is full.
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


def test_reconnected_tab_catches_up(browser: Browser):
    browser.ask("[[tokens=3 rate=0]] One")
    here = browser.tab
    conversation = browser.conversation

    # This tab receives nothing for a while.
    browser.run("document.querySelector('chat-app').connection.pause()")
    browser.new_tab(f"/c/{conversation}/")
    browser.ask("[[tokens=4 rate=0]] Two")

    browser.go_to_tab(here)
    assert len(browser.own_messages) == 1
    browser.run("document.querySelector('chat-app').connection.wake()")
    wait_until(lambda: len(browser.own_messages) == 2, "it catches up")
    browser.wait_for_status("done")


# The page was fetched with the run before its `run.queued` arrives: then it is already followed.
LATE_CONFIRMATION = """
const transcript = document.querySelector("chat-transcript");
const {run} = transcript.cursor;
const reply = document.querySelector(".message.reply:last-child").id.slice(2);
transcript.showSending({client_id: "late", text: "Tides"});
const before = document.querySelectorAll("[data-pending]").length;
const event = {client_id: "late", run, reply: {id: reply}, conversation: transcript.conversation};
transcript.queue({...event, position: 0, eta: null}, {own: true});
return [before, document.querySelectorAll("[data-pending]").length];
"""


def test_late_confirmation_ends_the_sending(browser: Browser):
    browser.send("[[tokens=60 rate=15]] Tides")
    wait_until(lambda: browser.reply, "text comes")
    assert browser.run(LATE_CONFIRMATION) == [1, 0]
    browser.wait_for_status("done")


def test_message_without_confirmation_arrives_once(site: Site, browser: Browser):
    browser.ask("[[tokens=3 rate=0]] One")
    conversation = browser.conversation
    # As if the connection broke just then: the frame is accepted, and no answer comes.
    browser.run(
        "const {connection} = document.querySelector('chat-app');connection.send = () => true"
    )
    browser.send("[[tokens=3 rate=0]] Two")
    browser.wait_for_text(".own-state", "Sending")
    assert len(browser.own_messages) == 2
    assert site.count_runs(conversation) == 1

    browser.driver.refresh()
    wait_until(lambda: len(browser.own_messages) == 2, "it is still there after a reload")
    browser.wait_for_status("done")
    wait_until(lambda: site.count_runs(conversation) == 2, "it arrived")
    browser.driver.refresh()
    assert browser.own_messages == ["[[tokens=3 rate=0]] One", "[[tokens=3 rate=0]] Two"]


@pytest.mark.parametrize("is_changed", [False, True], ids=["unchanged", "changed"])
def test_repeated_message_refused_by_mistake_arrives_once(
    site: Site, browser: Browser, is_changed: bool
):
    browser.ask("[[tokens=3 rate=0]] One")
    conversation = browser.conversation
    browser.run(REFUSE_AND_LOSE)
    browser.send("[[tokens=3 rate=0]] Two")
    browser.wait_for_text("[data-error-text]", "unavailable")
    wait_until(lambda: site.count_runs(conversation) == 2, "the server accepted it")
    browser.run("window.recover()")
    wait_until(lambda: len(browser.own_messages) == 2, "it catches up")
    browser.wait_for_status("done")

    more = " Three" if is_changed else ""
    browser.find("chat-composer textarea").send_keys(more, Keys.ENTER)
    wait_until(lambda: not browser.draft, "it is accepted")
    browser.wait_for_status("done")
    texts = ["One", "Two"] + ["Two Three"] * is_changed
    wait_until(lambda: len(browser.own_messages) == len(texts), "all are shown")
    browser.driver.refresh()
    assert browser.own_messages == [f"[[tokens=3 rate=0]] {text}" for text in texts]
    assert site.count_runs(conversation) == len(texts)


def test_sign_out_leads_other_tabs_to_sign_in(browser: Browser, email: str):
    """The server closes the open socket; the draft is still there after the next sign-in."""
    browser.ask("[[tokens=3 rate=0]] First")
    chat = browser.path
    browser.write("Not sent yet")
    here = browser.tab
    browser.new_tab("/")
    browser.click(".account summary")
    browser.click(".account form button")
    wait_until(lambda: browser.path.startswith("/accounts/login/"), "the user is signed out")
    browser.go_to_tab(here)
    wait_until(
        lambda: browser.path == f"/accounts/login/?next={quote(chat, safe='')}",
        "the other tab shows the sign-in page",
        patience=8,
    )
    browser.find("[name=login]").send_keys(email)
    browser.find("[name=password]").send_keys(PASSWORD, Keys.ENTER)
    wait_until(lambda: browser.path == chat, "signing in leads back to the chat")
    assert browser.draft == "Not sent yet"


def test_revoked_tab_keeps_a_refused_message(site: Site, browser: Browser, email: str):
    """The session is deleted unnoticed by the processes, and the tab sends at once."""
    browser.write("Into nowhere")
    site.execute("DELETE FROM django_session")
    browser.find("chat-composer textarea").send_keys(Keys.ENTER)
    wait_until(lambda: browser.path == "/accounts/login/?next=%2F", "the sign-in page is shown")
    browser.sign_in(email)
    wait_until(lambda: browser.draft == "Into nowhere", "the text is a draft again")
    assert site.rows("SELECT 1 FROM chat_message WHERE text = 'Into nowhere'") == []


def test_password_change_keeps_own_tabs(site: Site, browser: Browser, email: str):
    """Other tabs of the same browser reconnect with its new session, without a reload."""
    browser.ask("[[tokens=3 rate=0]] First")
    browser.write("Not sent yet")
    browser.run("window.isSamePage = true")
    here = browser.tab
    [(old,)] = site.rows("SELECT password FROM accounts_user WHERE email = %s", email)
    browser.new_tab("/accounts/password/change/")
    for name, word in (("oldpassword", PASSWORD), ("password1", NEW), ("password2", NEW)):
        browser.find(f"[name={name}]").send_keys(word)
    browser.find("[name=password2]").send_keys(Keys.ENTER)
    current = "SELECT 1 FROM accounts_user WHERE email = %s AND password <> %s"
    wait_until(lambda: site.rows(current, email, old), "the password is changed")
    browser.go_to_tab(here)
    sleep(4)
    assert browser.run("return window.isSamePage")
    assert browser.draft == "Not sent yet"
    browser.find("chat-composer textarea").send_keys(" [[tokens=3 rate=0]]", Keys.ENTER)
    wait_until(lambda: len(browser.own_messages) == 2, "the message is shown")
    browser.wait_for_status("done")


def test_deleted_run_is_not_resumed_again(site: Site, browser: Browser, message: str):
    browser.send(message)
    wait_for_half(browser, message)
    site.execute(
        "UPDATE chat_conversation SET deleted_at = now() WHERE id = %s", browser.conversation
    )
    browser.run(COUNT_RESUMES)
    with without(site, "web"):
        browser.wait_for_text("[data-connection]", "Connection lost. Reconnecting…")
    browser.wait_for_text("[data-error-text]", "Not found, or you do not have access.")
    sleep(5)
    assert browser.run("return window.resumes") == 1
    assert not browser.shown("[data-stop]")


def test_message_to_locked_account_is_tried_in_words(browser: Browser, site: Site, email: str):
    account = "SELECT FROM billing_account WHERE user_id = (SELECT id FROM accounts_user WHERE email = %s)"
    with site.transaction(f"{account} FOR UPDATE", email):
        browser.send("[[tokens=5 rate=0]] Paid")
        browser.wait_for_text("[data-error]", "still being tried")
    browser.wait_for_status("done")
    assert browser.texts("[data-error]") in ([], [""])
    assert browser.own_messages == ["[[tokens=5 rate=0]] Paid"]


def test_reply_streams_and_stops_without_sockets(browser: Browser, site: Site, message, email):
    with UpgradeRefuser(site.stack.port) as network:
        browser.base = network.base
        browser.open("/")
        browser.send(message)
        shown = half(message)
        wait_until(lambda: squeezed(browser.reply).startswith(shown), "half of the reply streams")
        assert network.refused
        site.provider.release(email)
        whole = squeezed(reply_text(80, message))
        wait_until(lambda: squeezed(browser.reply) == whole, "the reply ends")
        browser.send("[[tokens=2000 rate=20]]")
        wait_until(lambda: len(browser.reply.split()) > 5, "another reply streams")
        browser.click("chat-composer [data-stop]")
        query = "SELECT count(*) FROM chat_run WHERE status = 'stopped' AND user_id IN (SELECT id FROM accounts_user WHERE email = %s)"
        wait_until(lambda: site.rows(query, email)[0][0] == 1, "the reply was stopped")
        browser.base = site.base
