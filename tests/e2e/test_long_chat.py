"""A chat of 2,000 messages on a phone: opening, loading its history, scrolling, and a reply that streams in."""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise
from uuid import UUID

import pytest

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import PHONE, Site
from tests.e2e.test_reading import resting_place

pytestmark = pytest.mark.e2e

MESSAGES = 2_000
WORDS = "harbour tides moon ships river paper window evening letter station garden winter"
REPLY = (
    f"<p>Message {{0}}. {WORDS} {WORDS} {WORDS}</p><ul><li>{WORDS}</li><li>{WORDS}</li></ul>"
    "<figure class='code' dir='ltr'><figcaption>py</figcaption><pre tabindex='0'>"
    f"<code class='language-py'>print(1)\nprint(2)</code></pre></figure><p>{WORDS}</p>"
)


def add_messages(site: Site, conversation: str, number: int, count: int) -> None:
    """Add questions and replies to the end of a chat, numbered from `number` on."""
    [(leaf,)] = site.rows("SELECT leaf_id FROM chat_conversation WHERE id = %s", conversation)
    # As if one were written each millisecond: ids are in order of time.
    rest = leaf.int & ((1 << 80) - 1)
    ids = [UUID(int=((leaf.int >> 80) + 1 + index) << 80 | rest) for index in range(count)]
    rows: list[tuple[object, ...]] = []
    for index, (parent, id) in enumerate(pairwise([leaf, *ids])):
        text, is_reply = f"Message {number + index}. {WORDS}", index % 2 == 1
        role, html = ("assistant", REPLY.format(number + index)) if is_reply else ("user", "")
        rows.append((id, conversation, parent, role, text, html))
    site.insert(
        "INSERT INTO chat_message (id, conversation_id, parent_id, role, status, text, html, created_at)"
        " VALUES (%s, %s, %s, %s, 'done', %s, %s, now())",
        rows,
    )
    site.execute("UPDATE chat_conversation SET leaf_id = %s WHERE id = %s", ids[-1], conversation)


# Milliseconds of each frame, and the place of a message from frame to frame.
WATCH = """
window.frames = []; window.tops = [];
const message = document.getElementById(arguments[0]);
let last = performance.now();
(function look() {
  const now = performance.now();
  window.frames.push(now - last);
  window.tops.push(message.getBoundingClientRect().top);
  last = now;
  requestAnimationFrame(look);
})();
"""
COUNT = "return document.querySelectorAll('.message').length"
NUMBERS = """
return [...document.querySelectorAll('.message')]
  .map((item) => Number(item.textContent.match(/Message (\\d+)\\./)?.[1] ?? -1))
"""


def layouts(browser: Browser) -> float:
    found = browser.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return float(next(one["value"] for one in found if one["name"] == "LayoutCount"))


def swipe(browser: Browser, distance: int) -> None:
    browser.driver.execute_cdp_cmd(
        "Input.synthesizeScrollGesture",
        {"x": 200, "y": 400, "yDistance": distance, "speed": 3_000, "gestureSourceType": "touch"},
    )


def has_more(browser: Browser, shown: int) -> bool:
    return bool(browser.run(COUNT) > shown)


def report(what: str, frames: list[float], changes: float) -> None:
    ordered = sorted(frames[2:])
    p50, p95 = ordered[len(ordered) // 2], ordered[int(0.95 * len(ordered))]
    figures = (
        f"{what}: {len(ordered)} frames, p50 {p50:.1f} ms, p95 {p95:.1f} ms; {changes:.0f} layouts"
    )
    print(figures)  # noqa: T201 # of docs/performance.md


def test_long_chat_is_read_and_followed_on_phone(site: Site, open_browser, email):
    browser = open_browser(PHONE)
    browser.sign_up(email)
    browser.write("Hi")
    browser.click("[data-send-button]")
    browser.wait_for_status("done")
    add_messages(site, browser.conversation, 0, MESSAGES)
    browser.driver.execute_cdp_cmd("Performance.enable", {})
    browser.driver.execute_cdp_cmd("Emulation.setCPUThrottlingRate", {"rate": 4})
    try:
        browser.driver.refresh()
        wait_until(lambda: browser.run("return scrollY") > 2_000, "the page opens at its end")
        shown = browser.run(COUNT)
        browser.run(WATCH, browser.run("return document.querySelector('.message').id"))
        # History comes as the reader nears it, and the line that is read stays.
        for _ in range(2):
            shown = browser.run(COUNT)
            browser.run("scrollTo(0, 300); window.tops = []")
            wait_until(partial(has_more, browser, shown), "earlier messages come")
            wait_until(lambda: browser.run("return window.tops.length") > 10, "frames pass")
            tops = browser.run("return window.tops.slice(1)")
            assert max(tops) - min(tops) <= 1
        numbers = browser.run(NUMBERS)
        assert numbers == list(range(numbers[0], MESSAGES))

        # A page that is fetched again, after a lost connection, takes none of it away.
        add_messages(site, browser.conversation, MESSAGES, 60)
        browser.run(
            "document.querySelector('chat-transcript').dispatchEvent(new CustomEvent('chat:stale', { bubbles: true }))"
        )
        wait_until(lambda: browser.run(NUMBERS)[-1] == MESSAGES + 59, "the new ones come")
        assert browser.run(NUMBERS) == list(range(numbers[0], MESSAGES + 60))

        browser.run("scrollTo(0, 20_000)")
        resting_place(browser)
        browser.run("window.frames = []")
        before = layouts(browser)
        swipe(browser, 3_000)
        changes = layouts(browser) - before
        report("scrolling", browser.run("return window.frames"), changes)
        assert changes < 5, "nothing is laid out while the page scrolls"

        browser.write("[[tokens=400 rate=50]] Stream")
        browser.click("[data-send-button]")
        streamed = "return document.querySelector('.stream')?.innerText.length ?? 0"
        wait_until(lambda: browser.run(streamed) > 50, "text comes")
        browser.run("window.frames = []")
        before = layouts(browser)
        time.sleep(3)
        frames, changes = browser.run("return window.frames"), layouts(browser) - before
        report("streaming", frames, changes)
        assert changes <= len(frames) + 5, "the page is laid out at most once a frame"
        assert browser.complaints == []
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setCPUThrottlingRate", {"rate": 1})
