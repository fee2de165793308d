"""One pass in Firefox: composing, the clipboard and scrolling, each by real keys, clicks and the wheel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import PASSWORD
from tests.e2e.conftest import Site
from tests.support import firefox
from tests.support.firefox import CONTROL, ENTER, SHIFT, TAB, Firefox

pytestmark = [
    pytest.mark.firefox,
    pytest.mark.skipif(
        firefox.PROGRAM is None,
        reason="Firefox is missing. On Debian: apt-get install firefox-esr",
    ),
]

FIELD = "chat-composer textarea"
VALUE = f"document.querySelector({json.dumps(FIELD)}).value"
OWN = "document.querySelectorAll('.message.own').length"
STATUS = "document.querySelector('.message.reply:last-child')?.dataset.status"
TOP = "document.scrollingElement.scrollTop"
FROM_END = f"document.scrollingElement.scrollHeight - innerHeight - {TOP}"
CODE = 'print("one")\n\tprint("two")\n'

# Events of an input method that composes a word and accepts it by Enter.
COMPOSE = f"""(() => {{
  const field = document.querySelector({json.dumps(FIELD)});
  field.dispatchEvent(new CompositionEvent("compositionstart", {{bubbles: true}}));
  const enter = {{key: "Enter", isComposing: true, keyCode: 229, bubbles: true, cancelable: true}};
  field.dispatchEvent(new KeyboardEvent("keydown", enter));
  field.dispatchEvent(new CompositionEvent("compositionend", {{bubbles: true, data: "x"}}));
}})()"""


@pytest.fixture
def browser(site: Site, email: str, tmp_path: Path) -> Iterator[Firefox]:
    """A Firefox in which a new user has a new chat open."""
    with Firefox(tmp_path) as browser:
        browser.open(f"{site.base}/accounts/signup/")
        browser.click("[name=email]")
        browser.press(email + TAB)
        browser.press(PASSWORD + ENTER)
        browser.wait_for(
            "customElements.get('chat-app') && location.pathname === '/'", "a new chat"
        )
        yield browser


def test_chat_works_in_firefox(site: Site, browser: Firefox):
    # Composing.
    browser.click(FIELD)
    browser.press("Two")
    browser.press(ENTER, SHIFT)
    browser.press("lines [[tokens=3 rate=0]]")
    browser.run(COMPOSE)
    assert browser.run(VALUE) == "Two\nlines [[tokens=3 rate=0]]"
    assert browser.run(OWN) == 0
    browser.press(ENTER)
    browser.wait_for(f"{STATUS} === 'done'", "the reply")
    assert browser.run(VALUE) == ""
    assert browser.run("document.querySelector('.own-text').innerText").startswith("Two\nlines")

    # The clipboard.
    conversation = browser.run("location.pathname").split("/")[2]
    site.execute(
        "UPDATE chat_message SET html = %s WHERE conversation_id = %s AND role = 'assistant'",
        f'<figure class="code"><pre tabindex="0"><code>{CODE}</code></pre></figure>',
        conversation,
    )
    browser.open(f"{site.base}/c/{conversation}/")
    browser.click("[data-copy-code]")
    browser.click(FIELD)
    browser.press("v", CONTROL)
    browser.wait_for(f"{VALUE}.trim() === {json.dumps(CODE.strip())}", "the code is pasted")
    browser.press("a", CONTROL)
    browser.press("x", CONTROL)
    assert browser.run(VALUE) == ""

    # Scrolling.
    browser.press("[[tokens=900 rate=120]]")
    browser.press(ENTER)
    browser.wait_for(f"{TOP} > 200 && {FROM_END} < 5", "the page follows the reply")
    browser.scroll(-150)
    browser.wait_for(f"{FROM_END} > 100", "the reader is above the end")
    [place, height] = browser.run(f"[{TOP}, document.body.scrollHeight]")
    browser.wait_for(f"document.body.scrollHeight > {height} + 150", "the reply grows")
    assert abs(browser.run(TOP) - place) <= 1
    browser.click("[data-to-end]")
    browser.wait_for(f"{STATUS} === 'done' && {FROM_END} < 5", "the page follows to the end")
    assert browser.errors == []
