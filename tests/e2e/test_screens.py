"""Phone and desktop: pages fit, controls are large enough, focus is visible."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import Browser, wait_until
from tests.e2e.conftest import DESKTOP, PHONE, Site

pytestmark = pytest.mark.e2e

NARROW = (320, 640)

# A reply with every kind of wide content.
WIDE = (
    "<p>" + "unbroken" * 40 + "</p>"
    '<figure class="code"><figcaption>python</figcaption><pre tabindex="0"><code>'
    + "x = 1; "
    * 60
    + '</code></pre></figure><div class="table" role="group" aria-label="Table" tabindex="0">'
    "<table><tr>" + "<td>1234567890</td>" * 30 + "</tr></table></div>"
)

OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"

# Controls that are too small for a finger. Links inside a sentence have no minimum size, and a choice
# is as large as its label.
SMALL = """
return [...document.querySelectorAll(
    "a, button, summary, textarea, .field-choice, .option, input:not([type=hidden], .field-choice *, .chats-box *, .chats-all *, .option *)")]
  .filter((element) => element.checkVisibility({opacityProperty: false}))
  .filter((element) => !element.closest(".prose, .form-note, .hint, .field-help, .visually-hidden, .skip"))
  .map((element) => {
    const {width, height} = element.getBoundingClientRect();
    return [element.outerHTML.slice(0, 90), Math.round(width), Math.round(height)];
  })
  .filter(([, width, height]) => width > 0 && (width < arguments[0] || height < arguments[0]));
"""


def pages(site: Site, browser: Browser, email: str) -> Iterator[str]:
    """Walks through all kinds of pages."""
    for path in ("/accounts/login/", "/accounts/signup/", "/accounts/password/reset/", "/nowhere"):
        browser.open(path)
        yield path
    browser.sign_up(email)
    yield "new chat"
    browser.write("[[tokens=3 rate=0]] " + "x" * 300)
    browser.click("[data-send-button]")
    browser.wait_for_status("done")
    site.execute(
        "UPDATE chat_message SET html = %s WHERE conversation_id = %s AND role = 'assistant'",
        WIDE,
        browser.conversation,
    )
    chat = browser.path
    browser.open(chat)
    yield "conversation"
    browser.click("[data-chat-menu] summary")
    yield "menu"
    browser.open(f"{chat}?edit={browser.find('.message.own').get_attribute('data-id')}")
    yield "edit"
    for path in (
        "/chats/",
        "/settings/",
        "/settings/notifications/",
        "/settings/data/",
        "/accounts/profile/",
        "/accounts/email/",
        "/accounts/password/change/",
        "/accounts/logout/",
    ):
        browser.open(path)
        yield path


@pytest.mark.parametrize("size", [NARROW, PHONE, DESKTOP], ids=["narrow", "phone", "desktop"])
def test_pages_fit_and_controls_are_large_enough(
    site: Site, open_browser: Callable[..., Browser], email: str, size: tuple[int, int]
):
    browser = open_browser(size)
    minimum = 44 if size[0] < 500 else 24
    for page in pages(site, browser, email):
        assert browser.run(OVERFLOW) <= 0, page
        assert browser.run(SMALL, minimum) == [], page


def test_phone_sidebar_opens_closes_and_navigates(open_browser: Callable[..., Browser], email: str):
    browser = open_browser(PHONE)
    browser.sign_up(email)
    browser.driver.set_window_size(PHONE[0], 560)
    browser.open("/")
    assert browser.run("return document.body.scrollHeight > innerHeight")
    assert browser.run("return scrollY") == 0  # the greeting is in sight
    browser.run("scrollTo(0, 20); return new Promise((done) => setTimeout(done, 200))")
    assert not browser.shown("[data-to-end]")
    browser.write("[[tokens=3 rate=0]] Boats")
    browser.click("[data-send-button]")
    browser.wait_for_status("done")
    browser.open("/")
    assert not browser.shown("chat-sidebar")
    browser.click(".topbar [popovertarget=sidebar]")
    wait_until(lambda: browser.shown("chat-sidebar"), "it opens")
    browser.find("body").send_keys(Keys.ESCAPE)
    wait_until(lambda: not browser.shown("chat-sidebar"), "Escape closes it")
    browser.click(".topbar [popovertarget=sidebar]")
    browser.click(".sidebar-title")
    wait_until(lambda: browser.path.startswith("/c/"), "it leads to the chat")
    assert not browser.shown("chat-sidebar")


def test_page_is_usable_by_keyboard(browser: Browser):
    # From the top of the page: the script has focused the field.
    browser.run("document.querySelector('.skip').focus({focusVisible: true})")
    seen: list[str] = []
    while "Send" not in seen and len(seen) < 30:
        focused = browser.driver.switch_to.active_element
        ring = browser.run(
            "const box = arguments[0].matches('textarea') ? arguments[0].form : arguments[0];"
            "return getComputedStyle(box).outlineStyle",
            focused,
        )
        name = (focused.get_attribute("aria-label") or focused.text).split("\n")[0]
        assert ring == "solid", [*seen, name, focused.tag_name]
        seen.append(name)
        focused.send_keys(Keys.TAB)
    assert seen[:4] == ["Skip to content", "Parley", "New chat", "Search your chats"]
    assert seen[-1] == "Send"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_has_enough_contrast(
    site: Site, open_browser: Callable[..., Browser], email: str, dark: bool
):
    browser = open_browser(dark=dark)
    for page in pages(site, browser, email):
        assert browser.run(LOW_CONTRAST) == [], page


# Texts whose contrast against their background is below 4.5 (WCAG 2.2, AA). The colours are read from
# a canvas, as computed styles may be in any notation.
LOW_CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const paint = (colours) => {
  canvas.clearRect(0, 0, 1, 1);
  for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const low = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
  if (element.closest(".visually-hidden, .skip, template, noscript, script, option")) continue;
  const behind = [];
  for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
  const back = luminance(paint(["white", ...behind]));
  const front = luminance(paint(["white", ...behind, getComputedStyle(element).color]));
  const ratio = (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
  if (ratio < 4.5) low.push([element.outerHTML.slice(0, 80), ratio.toFixed(2)]);
}
return low;
"""
