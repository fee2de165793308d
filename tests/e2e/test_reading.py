"""Reading while a reply is being written: the page moves only for a reader who follows its end."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import PHONE, Site

pytestmark = pytest.mark.e2e

LEFT = (
    "return document.documentElement.scrollHeight - document.documentElement.clientHeight - scrollY"
)
TOP = "return scrollY"

# More than a screen, then a reply that outlasts the test.
LONG = "[[tokens=500 rate=0]] Long"
STREAM = "[[tokens=3000 rate=50]] Stream"


def wait_for_growth(browser: Browser, characters: int = 150) -> None:
    before = len(browser.reply)
    wait_until(lambda: len(browser.reply) > before + characters, "the text grows")


def send(browser: Browser, text: str) -> None:
    browser.write(text)
    browser.click("[data-send-button]")


@pytest.fixture
def streaming(browser: Browser) -> Browser:
    """A browser at the end of a long chat in which a reply is being written."""
    begin_stream(browser)
    return browser


def begin_stream(browser: Browser) -> None:
    send(browser, LONG)
    browser.wait_for_status("done")
    send(browser, STREAM)
    wait_until(lambda: len(browser.reply) > 200, "text comes")
    browser.run("document.activeElement.blur()")


def wheel(distance: int, times: int) -> Callable[[Browser], None]:
    def turn(browser: Browser) -> None:
        for _ in range(times):
            browser.driver.execute_cdp_cmd(
                "Input.dispatchMouseEvent",
                {"type": "mouseWheel", "x": 600, "y": 300, "deltaX": 0, "deltaY": distance},
            )

    return turn


def keys(*pressed: str, times: int = 1) -> Callable[[Browser], None]:
    def press(browser: Browser) -> None:
        for _ in range(times):
            browser.find("body").send_keys(*pressed)

    return press


def drag(distance: int, steps: int) -> Callable[[Browser], None]:
    """Move a finger down, which moves the page up."""

    def move(browser: Browser) -> None:
        def touch(kind: str, y: float | None = None) -> None:
            points = [] if y is None else [{"x": 200, "y": y}]
            browser.driver.execute_cdp_cmd(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": points}
            )

        touch("touchStart", 300)
        for step in range(1, steps + 1):
            touch("touchMove", 300 + distance * step / steps)
        touch("touchEnd")

    return move


def scroll_by(distance: int) -> Callable[[Browser], None]:
    """Scroll as a scrollbar or an assistive technology does: without an event before."""
    return lambda browser: browser.run("scrollBy(0, arguments[0])", distance)


def assert_stays(browser: Browser) -> None:
    """The page has left its end and does not move while the reply grows."""
    wait_until(lambda: browser.run(LEFT) > 1, "the page moves up")
    top = resting_place(browser)
    wait_for_growth(browser)
    assert browser.run(TOP) == top
    assert browser.status == "pending"


def resting_place(browser: Browser) -> float:
    """Return the page's place once smooth scrolling, or a finger's swing, has ended."""
    places = [browser.run(TOP)]

    def rests() -> bool:
        time.sleep(0.4)
        places.append(browser.run(TOP))
        return bool(places[-1] == places[-2])

    wait_until(rests, "the page comes to rest")
    return float(places[-1])


@pytest.mark.parametrize(
    "move",
    [
        wheel(-1, 1),
        wheel(-8, 30),
        wheel(-120, 1),
        keys(Keys.ARROW_UP),
        keys(Keys.ARROW_UP, times=6),
        keys(Keys.PAGE_UP),
        keys(Keys.HOME),
        keys(Keys.SHIFT, Keys.SPACE),
        scroll_by(-3),
        scroll_by(-40),
    ],
    ids=[
        "wheel_1",
        "wheels_8",
        "wheel_120",
        "arrow",
        "arrows",
        "page",
        "home",
        "space",
        "bar_3",
        "bar_40",
    ],
)
def test_movement_up_stops_following(streaming: Browser, move: Callable[[Browser], None]):
    move(streaming)
    assert_stays(streaming)


def test_movement_up_counts_on_short_page(browser: Browser):
    send(browser, STREAM)
    wait_until(lambda: browser.reply, "text comes")
    assert browser.run(LEFT) <= 1
    wheel(-8, 3)(browser)
    wait_until(lambda: browser.run(LEFT) > 200, "the reply grows beyond the page")
    assert browser.run(TOP) == 0


@pytest.mark.parametrize(
    "move", [drag(24, 6), drag(120, 4), drag(288, 40)], ids=["short", "fast", "slow"]
)
def test_finger_stops_following(
    open_browser: Callable[..., Browser], email: str, move: Callable[[Browser], None]
):
    browser = open_browser(PHONE)
    browser.sign_up(email)
    begin_stream(browser)
    move(browser)
    assert_stays(browser)


def test_only_the_end_resumes_following(streaming: Browser):
    wheel(-300, 1)(streaming)
    assert_stays(streaming)
    wheel(100, 1)(streaming)
    assert_stays(streaming)
    # The end moves away meanwhile; the wheel is faster.
    wheel(4_000, 1)(streaming)
    wait_until(lambda: streaming.run(LEFT) < 2, "it is at the end")
    wait_for_growth(streaming)
    wait_until(lambda: streaming.run(LEFT) < 2, "it follows the end again", patience=1)

    wheel(-300, 1)(streaming)
    assert_stays(streaming)
    streaming.click("[data-to-end]")
    assert streaming.run("return document.activeElement.matches('chat-composer textarea')")
    wait_for_growth(streaming)
    wait_until(lambda: streaming.run(LEFT) < 2, "it follows the end again", patience=1)


def test_notices_and_sizes_keep_following(streaming: Browser):
    app = "document.querySelector('chat-app')"
    changes = [
        "document.querySelector('chat-composer').showError('Something failed. '.repeat(30))",
        f"{app}.querySelector('[data-connection]').hidden = false",
        "const field = document.querySelector('textarea');"
        "field.value = 'line\\n'.repeat(12); field.dispatchEvent(new Event('input'))",
        "document.querySelector('.message.reply:last-child [data-no-worker]').hidden = false",
        "document.querySelector('chat-composer').showError('')",
    ]
    for change in changes:
        streaming.run(change)
        wait_for_growth(streaming)
        wait_until(lambda: streaming.run(LEFT) < 2, change, patience=1)
    for height in (420, 800):
        streaming.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 900, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        wait_for_growth(streaming)
        wait_until(lambda: streaming.run(LEFT) < 2, f"{height} pixels high", patience=1)


def test_opened_reasoning_stays_at_its_beginning(browser: Browser):
    send(browser, LONG)
    browser.wait_for_status("done")
    send(browser, "[[tokens=3000 rate=50 reasoning=400]] Think")
    wait_until(lambda: browser.shown(".reasoning summary"), "thoughts come")
    time.sleep(3)
    browser.run("document.querySelector('.reply:last-child .reasoning summary').click()")
    place = "return document.querySelector('.reply:last-child summary').getBoundingClientRect().y"
    time.sleep(0.2)
    before = browser.run(place)
    time.sleep(1)
    assert browser.run(place) == pytest.approx(before, abs=1)


# The letters at the middle of the window, and their height above its top.
LINE = """
const range = document.caretRangeFromPoint(700, 400);
const text = range.startContainer.data ?? "";
const {top} = range.getBoundingClientRect();
return [text.slice(range.startOffset).replace(/[^\\p{L}]/gu, "").slice(0, 12), top];
"""
# The height of the first text that begins with these letters.
HEIGHT = """
const walker = document.createTreeWalker(
  document.querySelector(".message.reply:last-child"), NodeFilter.SHOW_TEXT);
const heights = [];
while (walker.nextNode()) {
  const {data} = walker.currentNode;
  for (let at = 0; at < data.length; at += 1) {
    const rest = data.slice(at, at + 60);
    if (!/^\\p{L}/u.test(rest)) continue;
    if (!rest.replace(/[^\\p{L}]/gu, "").startsWith(arguments[0])) continue;
    const range = document.createRange();
    range.setStart(walker.currentNode, at);
    range.setEnd(walker.currentNode, at + 1);
    heights.push(range.getBoundingClientRect().top);
  }
}
return heights;
"""


def test_finished_text_stays_under_the_reader(site: Site, browser: Browser):
    browser.send("[[tokens=900 rate=0 hold=850 key=line]] Stream")
    wait_until(lambda: len(browser.reply) > 4_000, "most of the text")
    wheel(-600, 1)(browser)
    wait_until(lambda: browser.run(LEFT) > 400, "the page moves up")
    time.sleep(0.5)
    sample, height = browser.run(LINE)
    assert sample
    site.provider.release("line")
    browser.wait_for_status("done")
    heights = browser.run(HEIGHT, sample)
    assert heights
    assert min(abs(found - height) for found in heights) < 30


# --- Selections -------------------------------------------------------------------------------

# Selects 40 characters of the reply's first paragraph.
SELECT = """
const text = document.querySelector(".message.reply:last-child .stream p").firstChild;
getSelection().setBaseAndExtent(text, 3, text, 43);
return getSelection().toString();
"""
SELECTED = "return getSelection().toString()"


def test_selection_survives_stream_and_end(site: Site, browser: Browser):
    send(browser, "[[tokens=150 rate=50]] Stream")
    wait_until(lambda: len(browser.reply) > 100, "text comes")
    selected = browser.run(SELECT)
    assert len(selected) == 40
    wait_for_growth(browser)
    assert browser.run(SELECTED) == selected
    browser.wait_for_status("done")
    time.sleep(0.3)
    assert browser.run(SELECTED) == selected
    assert browser.shown("[data-copy]")
    assert not browser.shown(".progress")
    text, _ = site.reply(browser.conversation)
    browser.run("getSelection().removeAllRanges()")
    wait_until(lambda: browser.shown(".stream-tail") == [], "the formatted text takes its place")
    shown = browser.run("return document.querySelector('.prose').textContent")
    assert re.sub(r"\W", "", shown) == re.sub(r"\W", "", text)
    assert len(browser.shown("[data-copy]")) == 1
    assert browser.complaints == []


# The height of a line of text that is at least from 430 to 680 pixels wide.
WIDE_LINE = """
for (let y = 250; y < 650; y += 5) {
  const text = document.caretRangeFromPoint(450, y).startContainer;
  const range = document.createRange();
  range.selectNodeContents(text);
  for (const { top, bottom, left, right } of range.getClientRects()) {
    if (top < y && y < bottom && left < 430 && right > 680) return y;
  }
}
"""


def test_text_stays_while_it_is_selected(streaming: Browser):
    def mouse(kind: str, x: float) -> None:
        streaming.driver.execute_cdp_cmd(
            "Input.dispatchMouseEvent",
            {"type": kind, "x": x, "y": height, "button": "left", "buttons": 1, "clickCount": 1},
        )

    height = streaming.run(WIDE_LINE)
    mouse("mousePressed", 450)
    for step in range(1, 11):
        mouse("mouseMoved", 450 + 20 * step)
    selected, top = streaming.run(SELECTED), streaming.run(TOP)
    # At most some lines: the reply may have grown by one between press and movement.
    assert 0 < len(selected) < 300
    wait_for_growth(streaming)
    mouse("mouseMoved", 651)
    assert streaming.run(TOP) == top
    assert len(streaming.run(SELECTED)) < 300
    mouse("mouseReleased", 651)
    streaming.click("[data-to-end]")
    wait_for_growth(streaming)
    wait_until(lambda: streaming.run(LEFT) < 2, "it follows the end again", patience=1)


def test_selection_survives_a_reconnection(browser: Browser):
    browser.ask("[[tokens=40 rate=0]] One")
    here = browser.tab
    browser.run(
        "getSelection().selectAllChildren(document.querySelector('.prose'));"
        "document.querySelector('chat-app').connection.pause()"
    )
    selected = browser.run(SELECTED)
    browser.new_tab(browser.path)
    browser.ask("[[tokens=40 rate=0]] Two")
    browser.go_to_tab(here)
    browser.run("document.querySelector('chat-app').connection.wake()")
    wait_until(lambda: len(browser.own_messages) == 2, "it catches up")
    assert browser.run(SELECTED) == selected
