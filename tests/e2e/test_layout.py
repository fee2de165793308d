"""Layout on screen and on paper: nothing covers text, and a print shows the conversation alone."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterator

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from chat.rendering.document import to_html
from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import DESKTOP, PHONE, Site
from tests.e2e.test_screens import LOW_CONTRAST, NARROW

pytestmark = pytest.mark.e2e

LINE = "x = " + "'a line of code that is wider than any paper' + " * 5 + "''"
MARKDOWN = (
    f"""## A heading

See [the manual](https://example.org/manual) and
[https://example.org/plain](https://example.org/plain).

```python
{LINE}
```

| a | b |
|---|---|
| 1 | 2 |

"""
    + "A paragraph of several words that fills the page. " * 20
    + "\n\n"
)


def chat(site: Site, browser: Browser, email: str, repeat: int = 6) -> None:
    """Open a chat with a long reply."""
    browser.sign_up(email)
    browser.write("How do I plan a journey by boat? [[tokens=3 rate=0]]")
    browser.click("[data-send-button]")
    browser.wait_for_status("done")
    site.execute(
        "UPDATE chat_message SET html = %s WHERE conversation_id = %s AND role = 'assistant'",
        to_html(MARKDOWN * repeat),
        browser.conversation,
    )
    browser.driver.refresh()


# The visible lines of the messages that a box overlaps. Lines below the composer are hidden by it.
COVERED = """
const box = document.querySelector("[data-to-end]").getBoundingClientRect();
const bottom = document.querySelector("chat-composer").getBoundingClientRect().top;
const walker = document.createTreeWalker(
  document.querySelector(".messages"), NodeFilter.SHOW_TEXT);
const covered = [];
while (walker.nextNode()) {
  const range = document.createRange();
  range.selectNodeContents(walker.currentNode);
  for (const line of range.getClientRects()) {
    const end = Math.min(line.bottom, bottom);
    if (line.top >= end || line.width === 0) continue;
    if (end > box.top && line.top < box.bottom && line.right > box.left && line.left < box.right) {
      covered.push(walker.currentNode.data.slice(0, 40));
    }
  }
}
return covered;
"""


@pytest.mark.parametrize("size", [NARROW, PHONE, DESKTOP], ids=["narrow", "phone", "desktop"])
def test_jump_to_latest_covers_no_text(
    site: Site, open_browser: Callable[..., Browser], email: str, size: tuple[int, int]
):
    browser = open_browser(size)
    chat(site, browser, email)
    composer = "document.querySelector('chat-composer')"
    browser.run("scrollTo(0, document.body.scrollHeight - innerHeight - 400)")
    for change in (
        "",
        f"{composer}.showError('The queue is full. Try again.', {{retryAfter: 20}})",
        "const field = document.querySelector('textarea');"
        "field.value = 'line\\n'.repeat(9); field.dispatchEvent(new Event('input'))",
    ):
        browser.run(change)
        wait_until(lambda: browser.shown("[data-to-end]"), "the button is there")
        for _ in range(6):
            assert browser.run(COVERED) == []
            browser.run("scrollBy(0, -11)")
    # The row of the button moves no text.
    place = "return document.querySelector('.messages').getBoundingClientRect().bottom + scrollY"
    before = browser.run(place)
    browser.click("[data-to-end]")
    wait_until(lambda: not browser.shown("[data-to-end]"), "the button is hidden")
    assert browser.run(place) == pytest.approx(before, abs=1)
    covered = browser.run(
        "const rows = document.querySelectorAll('.message:last-child .actions *');"
        "const top = document.querySelector('chat-composer').getBoundingClientRect().top;"
        "return [...rows].some((row) => row.getBoundingClientRect().bottom > top)"
    )
    assert not covered


# How much of the focused element bars cover, outside of the sidebar and layers over the page; null: all is visible.
COVERED_FOCUS = """
const focused = document.activeElement;
const bars = [...document.querySelectorAll(".topbar, .announcements, .chats-bar, chat-composer")]
  .filter((bar) => getComputedStyle(bar).position === "sticky");
if (!focused.closest("main") || bars.some((bar) => bar.contains(focused))) return null;
const box = focused.getBoundingClientRect();
const isOff = box.height > 0 && (box.bottom <= 0 || box.top >= innerHeight);
const hidden = bars.map((bar) => bar.getBoundingClientRect())
  .map((bar) => Math.min(box.bottom, bar.bottom) - Math.max(box.top, bar.top))
  .filter((height) => height >= Math.min(box.height, 44) / 2 && height >= 1);
return isOff || hidden.length > 0 ? `${focused.outerHTML.slice(0, 80)} ${hidden}` : null;
"""


@pytest.fixture
def banners(site: Site) -> Iterator[None]:
    """Two announcements that are shown to all."""
    for text in ("Maintenance on Sunday " * 6, "New models"):
        site.execute(
            "INSERT INTO chat_announcement"
            " (text, html, level, audience, starts_at, is_dismissible, created_at)"
            " VALUES ('x', %s, 'info', 'all', now(), true, now())",
            f"<p>{text}</p>",
        )
    yield
    site.execute("DELETE FROM chat_announcement")


@pytest.mark.usefixtures("banners")
@pytest.mark.parametrize("scripting", [True, False], ids=["script", "without script"])
def test_focus_by_keyboard_is_not_covered(
    site: Site, open_browser: Callable[..., Browser], email: str, scripting: bool
):
    browser = open_browser(PHONE, scripting=scripting)
    chat(site, browser, email, repeat=2)
    while not browser.shown(".announcement"):  # which the site keeps in memory for seconds
        browser.open(browser.path)
    browser.run("scrollTo(0, 0); document.querySelector('main').focus()")
    for keys in ([Keys.TAB], [Keys.SHIFT, Keys.TAB]):
        for _ in range(25):
            chain = ActionChains(browser.driver, duration=0)
            for key in keys:
                chain.key_down(key)
            for key in reversed(keys):
                chain.key_up(key)
            chain.perform()
            wait_until(lambda: not browser.run(COVERED_FOCUS), browser.run(COVERED_FOCUS), 2)


def test_phone_shows_much_of_a_title(site: Site, open_browser: Callable[..., Browser], email: str):
    browser = open_browser(PHONE)
    chat(site, browser, email, repeat=1)
    browser.run("document.querySelector('[data-balance-available]').textContent = '12,345.67'")
    # The characters of the title that are inside its box.
    shown = browser.run(
        "const title = document.querySelector('[data-title]');"
        "const {bottom, right} = title.getBoundingClientRect();"
        "const text = title.firstChild;"
        "return [...text.data].filter((_, at) => {"
        "  const range = document.createRange();"
        "  range.setStart(text, at); range.setEnd(text, at + 1);"
        "  const box = range.getBoundingClientRect();"
        "  return box.bottom <= bottom + 1 && box.right <= right + 1;"
        "}).join('')"
    )
    assert shown.startswith("How do I plan a journey")
    bar = browser.run("return document.querySelector('.topbar').offsetHeight")
    assert bar <= 60


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_notices_do_not_touch_the_bar(
    site: Site, open_browser: Callable[..., Browser], email: str, size: tuple[int, int]
):
    browser = open_browser(size)
    chat(site, browser, email, repeat=1)
    browser.click("[data-chat-menu] summary")
    browser.click("[data-chat-menu] .menu-item-danger")
    browser.click("[data-chat-menu] .button-danger")
    browser.wait_for_text(".notice-text", "was deleted")
    gap = browser.run(
        "return document.querySelector('.notice').getBoundingClientRect().top"
        " - document.querySelector('.topbar').getBoundingClientRect().bottom"
    )
    assert gap >= 8


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_print_shows_the_conversation_alone(
    site: Site, open_browser: Callable[..., Browser], email: str, dark: bool
):
    browser = open_browser(DESKTOP, dark=dark)
    chat(site, browser, email)
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    cdp = browser.driver.execute_cdp_cmd
    cdp("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    cdp(
        "Emulation.setDeviceMetricsOverride",
        {"width": 672, "height": 1000, "deviceScaleFactor": 1, "mobile": False},
    )
    assert not browser.shown("chat-sidebar, chat-composer, button, summary, textarea, .connection")
    assert browser.texts("h1")[0].startswith("How do I plan a journey by boat?")
    assert browser.texts(".message h2") == ["You said", "Reply"]
    assert browser.run(
        "const {backgroundColor, color} = getComputedStyle(document.body);"
        "return [backgroundColor, color, getComputedStyle(document.querySelector('.prose p')).color]"
    ) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)", "rgb(0, 0, 0)"]
    assert browser.run(LOW_CONTRAST) == []
    assert (
        browser.run(
            "return [...document.querySelectorAll('.prose, .prose *')]"
            ".filter((box) => box.scrollWidth > box.clientWidth + 1 && box.clientWidth > 0).length"
        )
        == 0
    )
    links = browser.run(
        "return [...document.querySelectorAll('.prose p:first-of-type a')].slice(0, 2)"
        ".map((link) => getComputedStyle(link, '::after').content)"
    )
    assert links[0].startswith('" (')
    assert links[1] == "none"

    printed = b64decode(cdp("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    pages = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 2 <= pages <= 8
