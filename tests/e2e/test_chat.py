"""The usual way of a chat: send, watch the reply grow, reload, stop, regenerate."""

from __future__ import annotations

import re

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import Site
from tests.support.fake_llm import reasoning_text, reply_pieces, reply_text

pytestmark = pytest.mark.e2e


def words(text: str) -> list[str]:
    """A text without its white space, which HTML does not show as it is."""
    return text.split()


def plain(tokens: int, rate: int) -> str:
    """A message whose reply Markdown and HTML show exactly as it is."""
    for number in range(10_000):
        message = f"[[tokens={tokens} rate={rate}]] Story {number}"
        if not re.search(r"[<>\\\t]|\n[-.]|\n\n|:\n|\n ", reply_text(tokens, message)):
            return message
    raise AssertionError("no seed gives a plain reply of that length")


def test_reply_grows_and_survives_a_reload(site: Site, browser: Browser):
    message = "[[tokens=90 rate=30]] Tell me of lighthouses"
    browser.send(message)

    wait_until(lambda: len(words(browser.reply)) > 5, "text comes")
    first = words(browser.reply)
    wait_until(lambda: len(words(browser.reply)) > len(first) + 5, "the text grows")
    assert words(browser.reply)[: len(first) - 1] == first[:-1]
    assert browser.status == "pending"
    conversation = browser.conversation

    browser.driver.refresh()
    wait_until(lambda: len(words(browser.reply)) >= len(first), "the text is back after a reload")
    assert browser.status == "pending"
    browser.wait_for_status("done")

    text, status = site.reply(conversation)
    assert (text, status) == (reply_text(90, message), "done")
    assert browser.own_messages == [message]
    assert browser.complaints == []


def test_shown_reply_is_exactly_the_stored_text(site: Site, browser: Browser):
    message = plain(14, 40)
    browser.ask(message)
    text, _ = site.reply(browser.conversation)
    assert browser.reply == text

    browser.driver.refresh()
    assert browser.reply == text


def test_new_chat_gets_address_and_title_without_reload(site: Site, browser: Browser):
    browser.run("window.isSamePage = true")
    browser.ask("[[tokens=10 rate=0]] On tides")
    assert browser.run("return window.isSamePage")
    assert browser.path == f"/c/{browser.conversation}/"
    assert browser.texts("h1") == ["[[tokens=10 rate=0]] On tides"]
    assert browser.driver.title == "[[tokens=10 rate=0]] On tides · Parley"
    assert browser.shown("[data-chat-menu]")
    wait_until(lambda: not browser.shown(".sidebar-active"), "nothing is being written any more")
    here = ["[[tokens=10 rate=0]] On tides"]
    wait_until(
        lambda: browser.texts("chat-sidebar [aria-current]") == here, "the list has its title"
    )

    browser.ask("[[tokens=5 rate=0]] And ebbs?")
    assert site.rows(
        "SELECT count(*) FROM chat_conversation WHERE id = %s", browser.conversation
    ) == [(1,)]


def test_suggested_prompt_is_sent_by_one_click(browser: Browser):
    [first, *_] = browser.texts(".prompt")
    browser.click(".prompt")
    browser.wait_for_status("done")
    assert browser.own_messages == [first]


def test_reasoning_is_shown_and_folds_away(browser: Browser):
    message = "[[tokens=30 rate=30 reasoning=60]] Think"
    browser.send(message)
    browser.wait_for_text(".reasoning summary", "Thinking… 1 s")
    browser.click(".reasoning summary")
    wait_until(lambda: "".join(browser.texts(".reasoning-text")), "the thoughts are there to read")
    browser.wait_for_status("done")
    marks = {"-"}  # of lists, which are shown as bullets
    thoughts = [word for word in words(reasoning_text(60, message)) if word not in marks]
    assert words(browser.texts(".reasoning-text")[0]) == thoughts
    (summary,) = browser.texts(".reasoning summary")
    assert re.fullmatch(r"Thought for \d s", summary)
    assert browser.run("return document.querySelector('.reasoning').open"), "it stays open"


# --- Stop -------------------------------------------------------------------------------------


def test_stop_keeps_the_text_so_far(site: Site, browser: Browser):
    message = "[[tokens=2000 rate=30]] Tell me all"
    browser.send(message)
    wait_until(lambda: len(words(browser.reply)) > 5, "text comes")
    assert not browser.shown("[data-send-button]")
    browser.click("[data-stop]")
    browser.wait_for_status("stopped")
    text, status = site.reply(browser.conversation)
    assert status == "stopped"
    assert text
    assert reply_text(2000, message).startswith(text)
    assert browser.texts(".reply .notice p") == [
        "You stopped this reply. The text so far is saved."
    ]
    assert browser.shown("[data-send-button]")
    assert not browser.shown("[data-stop]")


def test_stop_works_before_the_first_word(site: Site, browser: Browser):
    browser.send("[[tokens=20 first=60]] Slow")
    browser.wait_for_text(".progress", "Reading your message")
    browser.click("[data-stop]")
    browser.wait_for_status("stopped")
    assert site.reply(browser.conversation) == ("", "stopped")
    browser.wait_for_text(".reply .notice p", "before it started")


def test_stopped_reply_can_be_regenerated(site: Site, browser: Browser):
    browser.send("[[tokens=40 rate=30]] Twice")
    wait_until(lambda: browser.reply, "text comes")
    browser.click("[data-stop]")
    browser.wait_for_status("stopped")
    browser.click("[data-regenerate]")
    browser.wait_for_status("done")
    assert site.reply(browser.conversation)[0] == reply_text(40, "[[tokens=40 rate=30]] Twice")
    assert len(browser.own_messages) == 1
    assert len(browser.texts(".message.reply")) == 1


# --- Failing ----------------------------------------------------------------------------------


def test_failed_reply_has_one_retry_button(site: Site, browser: Browser, email: str):
    # Refused once (a 400 is not retried automatically), then answered.
    message = f"[[status=400 fail=1 key={email} tokens=12 rate=0]] Hello"
    browser.send(message)
    browser.wait_for_status("failed")
    assert len(browser.shown(".reply button")) == 1
    assert "Traceback" not in browser.texts(".reply")[0]
    browser.click(".reply [data-regenerate]")
    browser.wait_for_status("done")
    assert site.reply(browser.conversation)[0] == reply_text(12, message)


def test_broken_off_reply_keeps_its_text(site: Site, browser: Browser):
    message = "[[tokens=60 rate=0 cut=20]] Hello"
    browser.send(message)
    browser.wait_for_status("failed")
    text, status = site.reply(browser.conversation)
    assert status == "failed"
    assert text
    assert reply_text(60, message).startswith(text)
    assert words(browser.reply)[:3] == words(text)[:3]
    assert browser.shown(".reply [data-regenerate]")


def test_failed_regeneration_restores_the_old_reply(site: Site, browser: Browser):
    browser.ask("[[tokens=12 rate=0]] Hello")
    before = browser.reply
    # The fake provider obeys the message: from now on it refuses.
    site.execute(
        "UPDATE chat_message SET text = '[[status=400]] Hello'"
        " WHERE conversation_id = %s AND role = 'user'",
        browser.conversation,
    )
    browser.click("[data-regenerate]")
    browser.wait_for_text(".reply .notice", "The previous reply is kept.")
    browser.wait_for_text(".reply .branch-place", "1 / 2")
    assert browser.reply == before
    browser.driver.refresh()
    browser.wait_for_text(".reply .notice", "The previous reply is kept.")
    assert browser.reply == before


# --- Two tabs ---------------------------------------------------------------------------------


def test_two_tabs_show_the_same_reply(browser: Browser):
    browser.ask("[[tokens=10 rate=0]] One")
    first = browser.tab
    second = browser.new_tab(f"/c/{browser.conversation}/")
    message = "[[tokens=80 rate=20]] Two"

    browser.go_to_tab(first)
    browser.send(message)
    wait_until(lambda: len(words(browser.reply)) > 3, "text comes in the first tab")

    browser.go_to_tab(second)
    wait_until(lambda: len(browser.own_messages) == 2, "the second tab has the message")
    wait_until(lambda: len(words(browser.reply)) > 3, "text comes in the second tab")
    assert browser.shown("[data-stop]")
    browser.click("[data-stop]")
    browser.wait_for_status("stopped")
    stopped = browser.reply

    browser.go_to_tab(first)
    browser.wait_for_status("stopped")
    assert browser.reply == stopped


def test_sidebar_of_another_tab_follows_changes(browser: Browser):
    first = browser.tab
    second = browser.new_tab("/")
    assert browser.texts(".sidebar-title") == []

    browser.go_to_tab(first)
    browser.ask("[[tokens=3 rate=0]] Boats")
    browser.go_to_tab(second)
    browser.wait_for_text(".sidebar-title", "Boats")

    browser.go_to_tab(first)
    browser.click("[data-chat-menu] summary")
    field = browser.find("[data-rename]")
    field.clear()
    field.send_keys("Harbours")
    browser.click("[data-chat-menu] form button")
    browser.wait_for_text("h1", "Harbours")
    browser.go_to_tab(second)
    browser.wait_for_text(".sidebar-title", "Harbours")

    browser.go_to_tab(first)
    browser.click("[data-chat-menu] summary")
    browser.click("[data-chat-menu] .menu-item-danger")
    browser.click("[data-chat-menu] .button-danger")
    browser.wait_for_text(".notice-text", "was deleted")
    browser.go_to_tab(second)
    wait_until(lambda: browser.texts(".sidebar-title") == [], "the other tab removes it")


# --- Editing ----------------------------------------------------------------------------------


def test_message_can_be_edited_and_resent(site: Site, browser: Browser):
    browser.ask("[[tokens=5 rate=0]] Wrong")
    browser.ask("[[tokens=5 rate=0]] More")
    conversation = browser.conversation

    browser.click(".action-edit")
    wait_until(lambda: "edit=" in browser.path, "the page to edit opens")
    assert browser.draft == "[[tokens=5 rate=0]] Wrong"
    browser.find("textarea").clear()
    browser.send("[[tokens=6 rate=0]] Right")
    wait_until(lambda: browser.own_messages == ["[[tokens=6 rate=0]] Right"], "it takes its place")
    browser.wait_for_status("done")
    assert site.reply(conversation)[0] == reply_text(6, "[[tokens=6 rate=0]] Right")
    assert browser.path == f"/c/{conversation}/"
    # Nothing is destroyed by an edit.
    assert site.rows(
        "SELECT count(*) FROM chat_message WHERE conversation_id = %s", conversation
    ) == [(6,)]


def test_shown_thoughts_become_reasoning_and_stay_so(site: Site, browser: Browser):
    """A server that sends only the end of the thoughts: they are shown as text until it comes."""
    message = "[[tokens=9 reasoning=9 rate=0 tags=end hold=0 key=moved]] Think"
    thoughts = reasoning_text(9, message)
    browser.send(message)
    site.provider.wait(held=1)
    wait_until(lambda: words(browser.reply) == words(thoughts), "the thoughts are shown")

    site.provider.release("moved")
    browser.wait_for_status("done")
    text, status = site.reply(browser.conversation)
    assert (text, status) == (reply_text(9, message), "done")
    for _ in range(2):
        browser.click(".reasoning summary")
        assert words(browser.texts(".reasoning-text")[0]) == words(thoughts)
        browser.driver.refresh()
    assert browser.complaints == []


@pytest.mark.parametrize(
    ("directives", "status", "sentence"),
    [
        ("tokens=0", "failed", "The model returned nothing. Try again. Nothing was charged."),
        ("tokens=0 reasoning=4", "failed", "The model ended after thinking, without an answer."),
        ("tokens=0 finish=content_filter", "failed", "content filter blocked this reply"),
        ("tokens=0 reasoning=4 finish=length", "done", "thinking used the whole length"),
        ("tokens=4 finish=SAFETY", "done", "content filter cut this reply short"),
        ("tokens=4 finish=model_length", "done", "The reply reached its maximum length."),
    ],
)
def test_reply_that_ended_early_says_so(browser: Browser, directives, status, sentence):
    browser.send(f"[[rate=0 {directives}]] Say something")
    browser.wait_for_status(status)
    browser.wait_for_text(".reply .notice", sentence)
    assert browser.shown(".reply [data-regenerate]")
    assert browser.complaints == []


def test_moved_thoughts_survive_a_reload_of_running_reply(site: Site, browser: Browser):
    message = "[[tokens=9 reasoning=9 rate=0 tags=end hold=4 key=reloaded]] Think"
    browser.send(message)
    site.provider.wait(held=1)
    for _ in range(2):
        wait_until(
            lambda: words(browser.reply) == words("".join(reply_pieces(9, message)[:4])),
            "the text after the thoughts is shown",
        )
        browser.click(".reasoning summary")
        assert words(browser.texts(".reasoning-text")[0]) == words(reasoning_text(9, message))
        browser.driver.refresh()
    site.provider.release("reloaded")
    browser.wait_for_status("done")
    assert site.reply(browser.conversation) == (reply_text(9, message), "done")
