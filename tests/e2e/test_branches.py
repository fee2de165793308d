"""Branches: walking between siblings, failed replacements, other tabs, and the same by plain forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import DESKTOP, PHONE, Site

pytestmark = pytest.mark.e2e

PLACE = ".reply .branch-place"


def top_of(browser: Browser, selector: str) -> float:
    return float(
        browser.run(
            "return document.querySelector(arguments[0]).getBoundingClientRect().top", selector
        )
    )


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_siblings_are_walked_without_page_load(
    open_browser: Callable[..., Browser], email: str, size: tuple[int, int]
):
    browser = open_browser(size)
    browser.sign_up(email)
    for text in ("[[tokens=10 rate=0]] One", "[[tokens=120 rate=0]] Two"):
        browser.write(text)
        browser.click("[data-send-button]")
        browser.wait_for_text(".message:nth-last-child(2) .own-text", text)
        browser.wait_for_status("done")
    first_replies = browser.texts(".reply .prose")
    # Regenerate the first reply, in the middle of the chat.
    browser.run("document.querySelector('.reply [data-regenerate]').click()")
    browser.wait_for_text(PLACE, "2 / 2")
    browser.wait_for_status("done")
    assert len(browser.own_messages) == 1
    browser.write("half a sentence")
    browser.run("document.mark = 'the same page'")

    browser.find(".branches button").click()
    browser.wait_for_text(PLACE, "1 / 2")
    wait_until(lambda: browser.texts(".reply .prose") == first_replies, "the old branch")
    assert browser.draft == "half a sentence"
    # The other button has the focus, as there is no earlier sibling.
    focused = "return document.activeElement.getAttribute('aria-label')"
    wait_until(lambda: browser.run(focused) == "Next version", "the control keeps the focus")
    before = top_of(browser, PLACE)
    # Wherever in the message the focus is, which the message has afterwards.
    browser.find(".reply [data-copy]").send_keys(Keys.ARROW_RIGHT)
    browser.wait_for_text(PLACE, "2 / 2")
    assert len(browser.own_messages) == 1
    if browser.run("return document.scrollingElement.scrollTop") > 0:
        assert abs(top_of(browser, PLACE) - before) < 2
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    wait_until(lambda: browser.texts(".reply .prose") == first_replies, "back again")
    assert browser.run("return document.mark") == "the same page"
    browser.driver.refresh()
    assert browser.texts(".reply .prose") == first_replies
    assert browser.complaints == []


def test_other_tab_follows_chosen_branch(browser: Browser):
    browser.ask("[[tokens=10 rate=0]] One")
    browser.click("[data-regenerate]")
    browser.wait_for_text(PLACE, "2 / 2")
    browser.wait_for_status("done")
    first = browser.tab
    browser.new_tab(f"/c/{browser.conversation}/")
    browser.click(".branches button")
    browser.wait_for_text(PLACE, "1 / 2")
    browser.go_to_tab(first)
    browser.wait_for_text(PLACE, "1 / 2")
    # An edit is a branch as well; the old text is one step away.
    browser.click(".action-edit")
    wait_until(lambda: "edit=" in browser.path, "the page to edit opens")
    browser.write(" more")
    browser.click("[data-send-button]")
    browser.wait_for_text(".own .branch-place", "2 / 2")
    browser.wait_for_status("done")
    browser.click(".own .branches button")
    browser.wait_for_text(PLACE, "2 / 2")
    assert browser.own_messages == ["[[tokens=10 rate=0]] One"]


def test_branch_is_left_during_its_reply(site: Site, browser: Browser, email: str):
    browser.ask("[[tokens=10 rate=0]] One")
    before = browser.reply
    site.execute(
        "UPDATE chat_message SET text = '[[tokens=300 hold=20 key=' || %s || ']] Hello'"
        " WHERE conversation_id = %s AND role = 'user'",
        email,
        browser.conversation,
    )
    browser.click("[data-regenerate]")
    wait_until(lambda: browser.status == "pending" and len(browser.reply) > 20, "text comes")
    browser.click(".branches button")
    wait_until(lambda: browser.reply == before, "the old reply")
    assert browser.shown("[data-stop]")
    browser.click(".branches button:last-child")
    wait_until(lambda: browser.status == "pending" and len(browser.reply) > 20, "the text so far")
    browser.click(".branches button")
    wait_until(lambda: browser.reply == before, "the old reply again")
    site.provider.release(email)
    wait_until(lambda: browser.shown("[data-send-button]"), "the reply has ended")
    assert browser.reply == before
    browser.wait_for_text(PLACE, "1 / 2")


def test_reply_at_its_limit_is_continued(site: Site, browser: Browser):
    browser.ask("[[tokens=30 rate=0 finish=length]] Tell me")
    text = browser.reply
    browser.click("[data-continue]")
    # The text so far stays in sight, and grows.
    wait_until(lambda: browser.status == "pending", "the new reply")
    shown = " ".join(browser.texts(".message.reply:last-child :is(.stream, .prose)"))
    assert shown.split()[:5] == text.split()[:5]
    browser.wait_for_text(PLACE, "2 / 2")
    browser.wait_for_status("done")
    assert browser.reply.startswith(text)
    assert len(browser.reply) > len(text)
    assert not browser.shown("[data-continue]")
    browser.click(".branches button")
    wait_until(lambda: browser.reply == text, "the old reply")
    # Refused: the old reply stays, and the reason is shown.
    site.execute("UPDATE billing_account SET status = 'frozen'")
    try:
        browser.click("[data-continue]")
        browser.wait_for_text("[data-error-text]", "frozen")
    finally:
        site.execute("UPDATE billing_account SET status = 'active'")
    assert browser.reply == text
    assert browser.complaints == []


def test_branches_work_without_script(open_browser: Callable[..., Browser], email: str):
    browser = open_browser(PHONE, scripting=False)
    browser.sign_up(email)
    browser.write("[[tokens=10 rate=0]] One")
    browser.click("[data-send-button]")
    browser.wait_for_status("done")
    first = browser.find(".reply").get_attribute("data-id")
    browser.click("[data-regenerate]")
    browser.wait_for_text(PLACE, "2 / 2")
    browser.wait_for_status("done")
    browser.click(".reply .branches button")
    browser.wait_for_text(PLACE, "1 / 2")
    assert browser.find(".reply").get_attribute("data-id") == first
    assert browser.path.endswith(f"#m-{first}")
    browser.write("[[tokens=10 rate=0 finish=length]] Two")
    browser.click("[data-send-button]")
    browser.wait_for_text(".message:nth-last-child(2) .own-text", "Two")
    browser.wait_for_status("done")
    browser.click("[data-continue]")
    browser.wait_for_text(".reply:last-child .branch-place", "2 / 2")
    browser.wait_for_status("done")

    # A copy of the chat up to its first reply.
    browser.click(".reply [name=fork]")
    wait_until(lambda: browser.find("h1").text.endswith("(copy)"), "the copy opens")
    assert browser.own_messages == ["[[tokens=10 rate=0]] One"]
    browser.write("[[tokens=10 rate=0]] Other")
    browser.click("[data-send-button]")
    browser.wait_for_status("done")
    assert len(browser.own_messages) == 2
    # A copy that ends with an own message, which is then answered.
    browser.click(".own [name=fork]")
    browser.click(".unanswered button")
    browser.wait_for_status("done")
    assert (len(browser.own_messages), browser.shown(".unanswered button")) == (1, [])


# --- Comparing models


@pytest.fixture
def second_model(site: Site) -> Iterator[str]:
    """The name of a second model with a price, for the time of the test."""
    name = f"second {uuid4().hex[:6]}"
    site.execute(
        "INSERT INTO chat_languagemodel (name, provider_model, context_tokens, max_output_tokens,"
        " continuation, enabled, created_at, provider_id)"
        " SELECT %s, %s, context_tokens, max_output_tokens, '', true, now(), provider_id"
        " FROM chat_languagemodel ORDER BY id LIMIT 1",
        name,
        name,
    )
    site.execute(
        "INSERT INTO billing_modelprice"
        " SELECT (jsonb_populate_record(one, jsonb_build_object("
        "  'id', nextval(pg_get_serial_sequence('billing_modelprice', 'id')), 'model', %s::text))).*"
        " FROM billing_modelprice one ORDER BY id LIMIT 1",
        name,
    )
    yield name
    site.execute("UPDATE chat_languagemodel SET enabled = false WHERE name = %s", name)


def choose_two(browser: Browser, *, scripting: bool = True) -> None:
    browser.click("[data-compare-menu] summary")
    if not scripting:
        browser.click(".compare-models label:first-child input")
        browser.click(".compare-models label:nth-child(2) input")
        browser.click("[data-compare-menu] [data-compare]")
        return
    wait_until(lambda: len(browser.shown(".model[data-model]")) >= 2, "the list is loaded")
    for option in browser.shown(".model[data-model]")[:2]:
        option.click()
    browser.click("[data-compare-foot] [data-compare]")


def boxes(browser: Browser) -> list[dict[str, float]]:
    found = browser.run(
        "return [...document.querySelectorAll('[data-compared]')]"
        ".map((reply) => reply.getBoundingClientRect().toJSON())"
    )
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_compared_replies_stream_and_one_is_chosen(
    site: Site,
    open_browser: Callable[..., Browser],
    email: str,
    second_model: str,
    size: tuple[int, int],
):
    browser = open_browser(size)
    browser.sign_up(email)
    browser.write(f"[[tokens=60 rate=0 hold=20 key={email}]] Which one?")
    choose_two(browser)
    streams = "[data-compared] .stream"
    wait_until(
        lambda: [len(text) > 40 for text in browser.texts(streams)] == [True, True], "both stream"
    )
    assert len(browser.texts(".compare-head")) == 2
    first, second = boxes(browser)
    if size == PHONE:
        assert second["top"] >= first["bottom"]
    else:
        assert (second["top"], second["left"] > first["right"]) == (first["top"], True)
    # A reload shows both, and follows both.
    browser.driver.refresh()
    wait_until(
        lambda: [len(text) > 40 for text in browser.texts(streams)] == [True, True], "both again"
    )
    # Each has its own Stop.
    browser.click("[data-compared]:last-child [data-stop]")
    wait_until(lambda: browser.status == "stopped", "the second is stopped")
    assert browser.shown("chat-composer [data-stop]")
    site.provider.release(email)
    wait_until(lambda: browser.shown("[data-send-button]"), "the first has ended")
    assert len(browser.texts("[data-compared] .prose")) == 2
    kept = browser.texts("[data-compared]:last-child .prose")
    model = browser.texts("[data-compared]:last-child .compare-head")
    other = browser.tab
    browser.new_tab(browser.path)
    browser.click("[data-compared]:last-child .compare-foot button")
    browser.wait_for_text(PLACE, "2 / 2")
    assert browser.texts(".reply .prose") == kept
    assert not browser.shown("[data-compared], .compare-head")
    wait_until(lambda: browser.texts("[data-model-shown]") == model, "its model goes on")
    browser.go_to_tab(other)
    wait_until(lambda: browser.texts("[data-model-shown]") == model, "in all tabs")
    browser.write("[[tokens=5 rate=0]] Go on")
    browser.click("[data-send-button]")
    browser.wait_for_text(".message:nth-last-child(2) .own-text", "Go on")
    browser.wait_for_status("done")
    assert len(browser.own_messages) == 2
    assert browser.complaints == []


def test_comparison_works_without_script(
    open_browser: Callable[..., Browser], email: str, second_model: str
):
    browser = open_browser(PHONE, scripting=False)
    browser.sign_up(email)
    browser.write("[[tokens=10 rate=0]] Which one?")
    choose_two(browser, scripting=False)
    wait_until(lambda: len(browser.texts("[data-compared] .prose")) == 2, "both have ended")
    # By keyboard: the field lies over the button until the page is scrolled.
    browser.find("[data-compared]:last-child .compare-foot button").send_keys(Keys.ENTER)
    browser.wait_for_text(PLACE, "2 / 2")
    assert browser.status == "done"
